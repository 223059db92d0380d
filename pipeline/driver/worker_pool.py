"""The workers of a run as Ray actors: started, given shards, asked for progress, replaced when they die or must leave.

A tick looks at the workers from which something came or is due, not at all of them; only Ray looks at every pending
ref, a bounded number at a time.
"""

import heapq
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle, exceptions

from pipeline.cluster.failures import describe_death, was_preempted, worker_deaths
from pipeline.cluster.node_states import NodeStates
from pipeline.driver.events import (
    Event,
    ShardAbandoned,
    ShardEnded,
    WorkerDied,
    WorkerLeaving,
    WorkerLeft,
    WorkerNotStarted,
    WorkerReported,
    WorkerRetired,
    WorkerStarted,
    WorkersWaiting,
)
from pipeline.driver.member_actors import SpreadWorkers
from pipeline.driver.room_watch import RoomWatch
from pipeline.errors import ModelError, RunError
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.logs import relay_lines
from pipeline.messages import (
    Assignment,
    Hang,
    PartialResult,
    ShardFailure,
    ShardResult,
    WorkerFailure,
    WorkerProgress,
    WorkerReady,
)
from pipeline.models.foreign_code import raised
from pipeline.models.load_function import function_name
from pipeline.otel import FLUSH_S
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.text import without_colors
from pipeline.worker.callers_model import CallersModel, callers_search_path
from pipeline.worker.commit_claim import ORPHAN_AFTER_S
from pipeline.worker.worker import MAX_CONCURRENCY, Worker, WorkerSettings

if TYPE_CHECKING:
    from pipeline.worker.segmenter import LoadModel

# How often a busy worker is asked. With more workers than this number each is asked more rarely, so that the driver
# asks QUESTIONS_PER_S of them in a second: a question costs it some 0.5 ms, most of it Ray's.
PROGRESS_EVERY_S = 1.0
QUESTIONS_PER_S = 200
# A worker that hears nothing for ORPHAN_AFTER_S commits nothing any more: of three questions in that time, two may be
# late.
MAX_PROGRESS_EVERY_S = ORPHAN_AFTER_S / 3
# `ray.wait` takes about 0.7 ms for so many refs that are not ready, and longer for each of a larger number.
REFS_PER_WAIT = 1000
# Between two rounds of waiting for more refs than that, so that they take less than a tenth of the time.
PAUSE_PER_REF_S = 1e-5
MIN_PAUSE_S = 0.05
# A worker whose code holds the interpreter's lock cannot answer, and correct code does that for seconds at times.
MIN_SILENCE_S = 30.0
# For the last question to all workers, which working ones answer in milliseconds.
FINAL_CHECK_S = 2.0
LOST_RAYLET = "the raylet of its node died"
# Spot nodes are warned 30 s (Azure, Google) or 120 s (AWS) before their end; the question takes half a millisecond.
DRAINS_EVERY_S = 2.0
# Before its node goes a worker is ended, so that its shard is begun elsewhere without waiting for Ray to notice.
LAST_MOMENT_S = 5.0
# A worker that is not needed costs a node; starting another one costs its model's loading. Reads of the last shards and
# speculative copies begin within this time.
IDLE_S = 10.0
IDLE_CHECK_EVERY_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Cause:
    """Why a worker is gone."""

    reason: str
    was_preempted: bool = False
    hang: Hang | None = None


@dataclass
class _Member:
    """One actor; refs are Ray's object refs.

    begun_ref: answered as soon as the process runs, which may be long after it was requested, on a cluster that grows.
    begun_at: when it was answered. node: by its hexadecimal id, then. requested_at: when the actor was requested.
    """

    handle: Any
    begun_ref: Any
    start_ref: Any
    requested_at: float
    begun_at: float | None = None
    node: str = ""
    shard_refs: dict[Any, int] = field(default_factory=dict)
    abandon_refs: dict[Any, int] = field(default_factory=dict)
    progress_ref: Any = None
    images_done: int = 0
    is_ready: bool = False
    shards_done: int = 0
    memory_bytes: int = 0

    def refs(self) -> list[Any]:
        """Return the refs of every call that this worker has not answered."""
        pending = [*self.shard_refs, *self.abandon_refs]
        if not self.is_ready:
            pending.append(self.start_ref)
        if self.begun_at is None:
            pending.append(self.begun_ref)
        if self.progress_ref is not None:
            pending.append(self.progress_ref)
        return pending


class WorkerActor(Worker):
    """A worker as an actor of Ray."""

    def node(self) -> str:
        """Return the id of the node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())


def _ray_actor(plan: WorkerPlan) -> Callable[[WorkerSettings], Any]:
    # max_restarts and max_task_retries stay 0: the driver decides what is retried, and where.
    actor: Any = ray.remote(WorkerActor).options(
        num_cpus=plan.cpus, num_gpus=plan.gpus, max_concurrency=MAX_CONCURRENCY, max_restarts=0
    )
    start: Callable[[WorkerSettings], Any] = actor.remote
    return start


def _carried(load_model: "LoadModel") -> CallersModel:
    name = function_name(load_model)
    try:
        pickled = cloudpickle.dumps(load_model)  # type: ignore[no-untyped-call]
    except Exception as error:  # the boundary of another's objects
        raise ModelError(
            f"load_model ({name}) cannot be sent to the workers: {raised(error)}; have the function make what it holds."
        ) from error
    return CallersModel(pickled, callers_search_path(), name)


class WorkerPool:
    """All workers of a run; called from one thread."""

    def __init__(
        self,
        settings: WorkerSettings,
        plan: WorkerPlan,
        *,
        compute: ComputeSection,
        retry: RetrySection,
        start_actor: Callable[[WorkerSettings], Any] | None = None,
        nodes: NodeStates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the actors; `scale_to` starts them.

        Args:
            settings: for each worker; `cpus` and `gpus` come from the plan.
            compute: when a worker is replaced. retry: its time limits.
            start_actor: starts a worker and returns its handle; by default as a Ray actor.
            nodes: asks for drained and lost nodes; None when there are none to ask for.
        """
        self._end_actor: Callable[[Any], object] = lambda handle: None
        ensemble = settings.model.ensemble
        if start_actor is None and ensemble is not None and ensemble.spread:
            spread = SpreadWorkers(plan, len(ensemble.members), ray.remote(WorkerActor))
            start_actor, self._end_actor = spread.start, spread.ended
        self._start_actor = start_actor or _ray_actor(plan)
        self._clock = clock
        if settings.load_model is not None:
            settings = replace(settings, load_model=_carried(settings.load_model))
        self._settings = replace(settings, cpus=plan.cpus, gpus=plan.gpus)
        self._max_workers = plan.workers
        self._nodes = nodes
        self._room: RoomWatch | None = None
        if nodes is not None:
            self._room = RoomWatch(plan, nodes.shapes, start_timeout_s=retry.start_timeout_s, clock=clock)
        self._next_drains = clock()
        self._next_idle_check = clock()
        self._compute = compute
        self._numbers = itertools.count()
        self._members: dict[int, _Member] = {}
        # By number: what the workers that are ready hold.
        self._held: dict[int, tuple[int, ...]] = {}
        # Those that wait for room; those that are idle, and since when, in the order of time; and those on drained
        # nodes, with the moment when they are ended, None without a deadline.
        self._waiting: dict[int, None] = {}
        self._idle_since: dict[int, float] = {}
        self._leaving: dict[int, float | None] = {}
        self._pending: dict[Any, int] = {}
        self._images_in_flight = 0
        # A heap of when to ask which worker next.
        self._questions: list[tuple[float, int]] = []
        # Workers that have not answered, and when they were asked; those that load their model, and since when. Both in
        # the order of time.
        self._asked_at: dict[int, float] = {}
        self._loading_since: dict[int, float] = {}
        self._deaths = worker_deaths()
        self._raised: tuple[type[Exception], ...] = (exceptions.RayTaskError, *self._deaths)
        timeout_s = retry.image_timeout_s
        self._start_timeout_s = retry.start_timeout_s
        self._silence_s = None if timeout_s is None else max(MIN_SILENCE_S, timeout_s)

    @property
    def max_workers(self) -> int:
        """The most workers that the cluster has or may get room for."""
        return self._room.max_workers if self._room else self._max_workers

    @property
    def size(self) -> int:
        """Workers alive or asked for, those on nodes that are being drained not included."""
        return len(self._members) - len(self._leaving)

    @property
    def images_in_flight(self) -> int:
        """Images done in shards that are not committed yet, as far as the workers have reported."""
        return self._images_in_flight

    @property
    def running(self) -> int:
        """Workers whose process runs: a worker for which the cluster has no room yet does not."""
        return sum(member.is_ready or member.begun_at is not None for member in self._members.values())

    def ready_workers(self) -> dict[int, tuple[int, ...]]:
        """The workers that have their model, each with the shards it holds; not those on drained nodes."""
        return dict(self._held)

    def may_take(self, worker: int) -> bool:
        """Return whether a worker may get one more shard."""
        member = self._members[worker]
        return not self._why_spent(member, member.shards_done + len(member.shard_refs))

    def scale_to(self, wanted: int, *, spare: int | None = None) -> None:
        """Start workers until `wanted` are alive, those on nodes that are being drained not counted.

        Workers beyond that number whose process has not begun are not waited for any more: an autoscaler would bring
        nodes for them.

        Args:
            spare: how many idle workers to keep beside; others end after IDLE_S, so that an autoscaler can remove
                their nodes. None keeps all.
        """
        while self.size < wanted:
            number = next(self._numbers)
            handle = self._start_actor(replace(self._settings, number=number))
            member = self._members[number] = _Member(handle, handle.node.remote(), handle.start.remote(), self._clock())
            self._waiting[number] = None
            self._pending.update(dict.fromkeys(member.refs(), number))
        while self.size > wanted and self._waiting:
            self._kill(next(reversed(self._waiting)))
        if spare is not None and len(self._idle_since) > spare and self._clock() >= self._next_idle_check:
            self._next_idle_check = self._clock() + IDLE_CHECK_EVERY_S
            self._release(min(len(self._idle_since) - spare, self.size - max(wanted, self._compute.fewest_workers)))

    def _release(self, most: int) -> None:
        """End at most so many idle workers, first those on the nodes with the fewest other workers that are busy."""
        since = self._clock() - IDLE_S
        idle = [number for number, _ in itertools.takewhile(lambda each: each[1] <= since, self._idle_since.items())]
        if most <= 0 or not idle:
            return
        busy = Counter(member.node for member in self._members.values() if member.shard_refs)
        idle.sort(key=lambda number: (busy[self._members[number].node], self._members[number].node))
        for number in idle[:most]:
            log.info("worker %d is ended: there is nothing left for it to do", number)
            self._kill(number)

    def submit(self, worker: int, shard: Shard, assignment: Assignment) -> None:
        """Give a ready worker a shard."""
        member = self._members[worker]
        ref = member.handle.run_shard.remote(shard, assignment)
        self._pending[ref] = worker
        member.shard_refs[ref] = shard.index
        self._note_held(worker)

    def _note_held(self, worker: int) -> None:
        self._idle_since.pop(worker, None)
        if worker in self._leaving:
            return
        self._held[worker] = tuple(self._members[worker].shard_refs.values())
        if not self._held[worker]:
            self._idle_since[worker] = self._clock()

    def end(self, worker: int, reason: str) -> WorkerLeft:
        """End a worker; what it has not committed is for others to do."""
        lost = tuple(self._members[worker].shard_refs.values())
        self._kill(worker)
        return WorkerLeft(worker, reason, lost)

    def abandon(self, worker: int, index: int, *, is_queued: bool = False) -> None:
        """Ask a worker to leave a shard's commit to the driver; it may have died, or have begun to commit.

        Args:
            is_queued: only when none of the shard's images is done yet.
        """
        member = self._members.get(worker)
        if member is not None:
            ref = member.handle.abandon.remote(index, is_queued=is_queued)
            self._pending[ref] = worker
            member.abandon_refs[ref] = index

    def events(self, timeout_s: float) -> list[Event]:
        """Wait until something happens, at most `timeout_s`; deaths come after what was finished before them.

        Raises:
            RunError: the cluster itself is gone.
        """
        self._ask_for_progress()
        events: list[Event] = [*self._leave_drained_nodes(), *self._check_room()]
        if not self._pending:
            time.sleep(timeout_s)
            return events
        try:
            ready = self._wait(0.0 if events else timeout_s)
        except (exceptions.RaySystemError, exceptions.LocalRayletDiedError) as error:
            raise RunError(f"The Ray cluster is gone: {describe_death(error)}.") from error
        dead: dict[int, _Cause] = {}
        for ref, answer in self._answers(ready):
            worker = self._pending.pop(ref, None)
            if worker is None:
                # Of a worker that was ended for an earlier one of these answers.
                continue
            if isinstance(answer, self._deaths):
                dead.setdefault(worker, _Cause(describe_death(answer), was_preempted(answer)))
                continue
            event = self._receive(worker, ref, answer)
            if isinstance(event, _Cause):
                dead.setdefault(worker, event)
            elif event is not None:
                events.append(event)
        for worker in self._unresponsive_workers():
            dead.setdefault(worker, _Cause(f"the worker was ended: it answered nothing for {self._silence_s:.0f} s"))
        for worker, seconds in self._late_starters().items():
            reason = f"the worker was ended: it was loading its model for {seconds:.0f} s"
            dead.setdefault(worker, _Cause(f"{reason}; the limit is retry.start_timeout_s"))
        reporters = {event.worker for event in events if isinstance(event, ShardEnded)}
        dead = self._excused({worker: cause for worker, cause in dead.items() if worker in self._members})
        events += [self._remove_dead(worker, cause) for worker, cause in dead.items()]
        return events + self._retire(reporters)

    def _excused(self, dead: dict[int, _Cause]) -> dict[int, _Cause]:
        """Return the causes of death with those of nodes that are gone, which no shard has caused."""
        open_cases = {worker for worker, cause in dead.items() if not cause.was_preempted and cause.hang is None}
        if self._nodes is None or not open_cases:
            return dead
        drained = {worker for worker in open_cases if worker in self._leaving}
        nodes = {self._members[worker].node for worker in open_cases - drained} - {""}
        lost = self._nodes.lost(nodes) if nodes else set()
        gone = drained | {worker for worker in open_cases if self._members[worker].node in lost}
        return {
            worker: replace(cause, reason=f"{cause.reason}; its node is gone", was_preempted=True)
            if worker in gone
            else cause
            for worker, cause in dead.items()
        }

    def _check_room(self) -> list[Event]:
        if self._room is None or not self._members:
            return []
        sentence = self._room.check(asked=self.size, begun=self.size - len(self._waiting))
        return [WorkersWaiting(sentence)] if sentence else []

    def _leave_drained_nodes(self) -> list[Event]:
        """Take the workers on nodes that are being drained out of service, and end those whose time is over."""
        now = self._clock()
        events: list[Event] = []
        if self._nodes is not None and now >= self._next_drains:
            self._next_drains = now + DRAINS_EVERY_S
            draining = self._nodes.draining()
            if draining:
                events = [
                    self._leave(number, draining[member.node])
                    for number, member in list(self._members.items())
                    if member.node in draining and number not in self._leaving
                ]
        late = [number for number, end_at in self._leaving.items() if end_at is not None and now >= end_at]
        return events + [self.end(number, "there is no time left") for number in late]

    def _leave(self, worker: int, seconds_left: float | None) -> Event:
        member = self._members[worker]
        reason = "its node is being drained"
        if seconds_left is not None:
            reason += f" and goes in {max(0.0, seconds_left):.0f} s"
        if not member.shard_refs:
            return self.end(worker, reason)
        usable_s = None if seconds_left is None else max(0.0, seconds_left - LAST_MOMENT_S)
        self._leaving[worker] = None if usable_s is None else self._clock() + usable_s
        for known in (self._held, self._idle_since):
            known.pop(worker, None)
        return WorkerLeaving(worker, reason, tuple(member.shard_refs.values()), usable_s)

    def _wait(self, timeout_s: float) -> list[Any]:
        """Return the pending refs that are ready, after at most `timeout_s` without any."""
        refs = list(self._pending)
        if len(refs) <= REFS_PER_WAIT:
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
            return _ready_among(refs) if ready else []
        pause_s = min(timeout_s, max(MIN_PAUSE_S, len(refs) * PAUSE_PER_REF_S))
        rounds = int(timeout_s / pause_s) if pause_s else 1
        for _ in range(rounds):
            # With so many workers something is ready nearly always; what comes meanwhile is received with it.
            time.sleep(pause_s)
            ready = [ref for some in _slices(refs) for ref in _ready_among(some)]
            if ready:
                return ready
        return []

    def _answers(self, refs: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each ref with its answer, or with the exception that it raises."""
        for some in _slices(refs):
            try:
                answers = ray.get(some)
            except self._raised:
                # At least one of them raises this.
                answers = [self._answer(ref) for ref in some]
            yield from zip(some, answers, strict=True)

    def _answer(self, ref: Any) -> Any:
        try:
            return ray.get([ref])[0]
        except self._raised as error:
            return error

    def final_check(self) -> list[WorkerReported | WorkerDied]:
        """Ask every ready worker once more: otherwise nothing shows the death of one that holds no shard."""
        reports: list[WorkerReported | WorkerDied] = []
        asked = {member.handle.progress.remote(): number for number, member in self._members.items() if member.is_ready}
        if not asked:
            return []
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=FINAL_CHECK_S)
        dead: dict[int, _Cause] = {}
        for ref in answered:
            try:
                progress: WorkerProgress = ray.get(ref)
                relay_lines(progress.log_lines)
                if progress.has_lost_raylet:
                    dead[asked[ref]] = _Cause(LOST_RAYLET, was_preempted=True)
                elif progress.worker is not None:
                    reports.append(WorkerReported(asked[ref], progress.worker))
            except self._deaths as error:
                dead[asked[ref]] = _Cause(describe_death(error), was_preempted(error))
        for worker in {asked[ref] for ref in set(asked) - set(answered)}:
            # Ray takes many seconds to declare a node dead, and its workers do not answer meanwhile.
            if not self._members[worker].shard_refs:
                dead[worker] = _Cause(f"it answered nothing for {FINAL_CHECK_S:.0f} s at the end", was_preempted=True)
        return reports + [self._remove_dead(worker, cause) for worker, cause in dead.items()]

    def shut_down(self) -> None:
        """Kill all workers; what they have not committed is lost to this session."""
        if self._settings.otel is not None and self._members:
            asked = [member.handle.flush.remote() for member in self._members.values() if member.is_ready]
            ray.wait(asked, num_returns=len(asked), timeout=FLUSH_S) if asked else None
        for worker in list(self._members):
            self._kill(worker)

    def _receive(self, worker: int, ref: Any, answer: Any) -> Event | _Cause | None:
        member = self._members[worker]
        if ref in member.shard_refs:
            return self._shard_ended(worker, member.shard_refs.pop(ref), answer)
        if isinstance(answer, exceptions.RayTaskError):
            raise answer
        if ref == member.progress_ref:
            member.progress_ref = None
            self._asked_at.pop(worker, None)
            return self._progressed(worker, answer)
        if ref == member.begun_ref:
            member.begun_at, member.node = self._clock(), answer
            self._waiting.pop(worker, None)
            if not member.is_ready:
                self._loading_since[worker] = member.begun_at
            return None
        if ref == member.start_ref:
            return self._started(worker, answer)
        left = member.abandon_refs.pop(ref)
        return ShardAbandoned(worker, left) if answer else None

    def _progressed(self, worker: int, progress: WorkerProgress) -> WorkerReported | _Cause | None:
        member = self._members[worker]
        relay_lines(progress.log_lines)
        held = set(member.shard_refs.values())
        self._count_images(member, sum(done for index, done in progress.images_done.items() if index in held))
        if progress.has_lost_raylet:
            return _Cause(LOST_RAYLET, was_preempted=True)
        if progress.hang:
            return _Cause(progress.hang.reason, hang=progress.hang)
        return WorkerReported(worker, progress.worker) if progress.worker else None

    def _shard_ended(self, worker: int, index: int, answer: Any) -> Event:
        member = self._members[worker]
        outcome: ShardResult | PartialResult | ShardFailure = answer
        if isinstance(answer, exceptions.RayTaskError):
            # Nothing should pass the worker's error boundaries; what does is a bug as well.
            outcome = ShardFailure(index, "bug", describe_death(answer), without_colors(str(answer)))
        self._note_held(worker)
        self._count_images(member, 0)
        member.shards_done += 1
        if not isinstance(outcome, ShardFailure):
            report = outcome.report if isinstance(outcome, PartialResult) else outcome
            member.memory_bytes = report.memory_bytes
        return ShardEnded(worker, outcome)

    def _count_images(self, member: _Member, images_done: int) -> None:
        self._images_in_flight += images_done - member.images_done
        member.images_done = images_done

    def _started(self, worker: int, outcome: WorkerReady | WorkerFailure) -> Event:
        if isinstance(outcome, WorkerFailure):
            self._kill(worker)
            return WorkerNotStarted(worker, outcome)
        self._members[worker].is_ready = True
        self._note_held(worker)
        self._loading_since.pop(worker, None)
        # Those that start together are not asked together.
        spread_s = random.uniform(PROGRESS_EVERY_S, self._progress_every_s)  # noqa: S311 - jitter, not a secret
        heapq.heappush(self._questions, (self._clock() + spread_s, worker))
        return WorkerStarted(worker, outcome, self._clock() - self._members[worker].requested_at)

    def _why_spent(self, member: _Member, shards: int) -> str:
        """Return why a worker that has done `shards` shards gets no further one; empty when it may get one."""
        limits = self._compute
        if limits.worker_max_shards is not None and shards >= limits.worker_max_shards:
            return f"it has done {shards} shards"
        if limits.worker_max_memory_gib is not None and member.memory_bytes > limits.worker_max_memory_gib * 2**30:
            return f"it holds {member.memory_bytes / 2**30:.1f} GiB"
        return ""

    def _retire(self, workers: Iterable[int]) -> list[Event]:
        """End those of the workers that get no further shard and hold none any more."""
        idle = [number for number in workers if number in self._members and not self._members[number].shard_refs]
        left = [self.end(number, "its node is being drained") for number in idle if number in self._leaving]
        alive = [(number, self._members[number]) for number in idle if number in self._members]
        spent = {number: why for number, member in alive if (why := self._why_spent(member, member.shards_done))}
        for number in spent:
            self._kill(number)
        return [*(WorkerRetired(number, why) for number, why in spent.items()), *left]

    def _unresponsive_workers(self) -> list[int]:
        if self._silence_s is None:
            return []
        since = self._clock() - self._silence_s
        return [number for number, _ in itertools.takewhile(lambda asked: asked[1] < since, self._asked_at.items())]

    def _late_starters(self) -> dict[int, float]:
        """Return the workers that have been loading their model for too long, each with its seconds."""
        if self._start_timeout_s is None:
            return {}
        since = self._clock() - self._start_timeout_s
        late = itertools.takewhile(lambda loading: loading[1] < since, self._loading_since.items())
        return {number: self._clock() - begun_at for number, begun_at in late}

    def _remove_dead(self, worker: int, cause: _Cause) -> WorkerDied:
        member = self._members[worker]
        self._kill(worker)
        return WorkerDied(
            worker,
            cause.reason,
            was_ready=member.is_ready,
            was_preempted=cause.was_preempted,
            lost_shards=tuple(member.shard_refs.values()),
            hang=cause.hang,
        )

    def _kill(self, worker: int) -> None:
        # Also when it seems dead: one that merely could not be reached must not commit without the driver's knowledge.
        member = self._members.pop(worker)
        for ref in member.refs():
            self._pending.pop(ref, None)
        self._count_images(member, 0)
        known: dict[int, Any]
        for known in (self._held, self._asked_at, self._loading_since, self._waiting, self._idle_since, self._leaving):
            known.pop(worker, None)
        ray.kill(member.handle)
        self._end_actor(member.handle)

    @property
    def _progress_every_s(self) -> float:
        return min(MAX_PROGRESS_EVERY_S, max(PROGRESS_EVERY_S, self.size / QUESTIONS_PER_S))

    def _ask_for_progress(self) -> None:
        now, every_s = self._clock(), self._progress_every_s
        while self._questions and self._questions[0][0] <= now:
            _, worker = heapq.heappop(self._questions)
            member = self._members.get(worker)
            if member is None:
                continue
            if member.shard_refs and member.progress_ref is None:
                member.progress_ref = member.handle.progress.remote()
                self._pending[member.progress_ref] = worker
                self._asked_at[worker] = now
            # After a pause of the driver all are due at once; not so the next time.
            again_s = max(PROGRESS_EVERY_S, every_s * random.uniform(0.75, 1.0))  # noqa: S311 - jitter, not a secret
            heapq.heappush(self._questions, (now + again_s, worker))


def _slices(refs: list[Any]) -> Iterator[list[Any]]:
    return (refs[first : first + REFS_PER_WAIT] for first in range(0, len(refs), REFS_PER_WAIT))


def _ready_among(refs: list[Any]) -> list[Any]:
    ready: list[Any] = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
    return ready
