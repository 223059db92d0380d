"""The workers of a run as Ray actors: started, given shards, asked how far they are, replaced when they die."""

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from pipeline.cluster import WorkerPlan, describe_death, was_preempted, worker_deaths
from pipeline.errors import RunError
from pipeline.ledger import Assignment
from pipeline.plan import Shard
from pipeline.reports import ShardFailure, ShardReport, WorkerFailure, WorkerProgress, WorkerReady
from pipeline.worker import MAX_CONCURRENCY, Worker, WorkerSettings

PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class WorkerStarted:
    """A worker has its model."""

    worker: int
    ready: WorkerReady


@dataclass(frozen=True)
class WorkerNotStarted:
    """A worker could not load its model; it is gone."""

    worker: int
    failure: WorkerFailure


@dataclass(frozen=True)
class ShardEnded:
    """An attempt ended, with a commit or without."""

    worker: int
    outcome: ShardReport | ShardFailure


@dataclass(frozen=True)
class WorkerDied:
    """A worker's process or node is gone, and with it the attempts it was making.

    was_ready: whether it had loaded its model.
    """

    worker: int
    reason: str
    was_ready: bool
    was_preempted: bool
    lost_shards: tuple[int, ...]


Event = WorkerStarted | WorkerNotStarted | ShardEnded | WorkerDied


@dataclass
class _Member:
    """One actor; refs are Ray's object refs."""

    handle: Any
    start_ref: Any
    shard_refs: dict[Any, int] = field(default_factory=dict)
    progress_ref: Any = None
    asked_at: float = 0.0
    images_done: int = 0
    is_ready: bool = False

    def refs(self) -> list[Any]:
        """Everything this worker owes an answer for."""
        owed = [*self.shard_refs]
        if not self.is_ready:
            owed.append(self.start_ref)
        if self.progress_ref is not None:
            owed.append(self.progress_ref)
        return owed


class Fleet:
    """All workers of a run; called from one thread."""

    def __init__(self, settings: WorkerSettings, plan: WorkerPlan) -> None:
        # max_restarts and max_task_retries stay 0: the driver decides what is tried again, and where.
        self._actor: Any = ray.remote(Worker).options(
            num_cpus=plan.cpus, num_gpus=plan.gpus, max_concurrency=MAX_CONCURRENCY, max_restarts=0
        )
        self._settings = settings
        self._numbers = itertools.count()
        self._members: dict[int, _Member] = {}
        self._deaths = worker_deaths()

    @property
    def size(self) -> int:
        """Workers alive, those still loading their model included."""
        return len(self._members)

    @property
    def images_in_flight(self) -> int:
        """Images done in shards that are not committed yet, as far as the workers have told."""
        return sum(member.images_done for member in self._members.values())

    def ready_workers(self) -> dict[int, tuple[int, ...]]:
        """The workers that have their model, each with the shards it holds."""
        return {
            number: tuple(member.shard_refs.values()) for number, member in self._members.items() if member.is_ready
        }

    def top_up(self, wanted: int) -> None:
        """Start workers until `wanted` are alive."""
        while self.size < wanted:
            handle = self._actor.remote(self._settings)
            self._members[next(self._numbers)] = _Member(handle, handle.start.remote())

    def submit(self, worker: int, shard: Shard, assignment: Assignment) -> None:
        """Give a ready worker a shard."""
        member = self._members[worker]
        ref = member.handle.run_shard.remote(shard, assignment.attempt, assignment.is_last)
        member.shard_refs[ref] = shard.index

    def events(self, timeout_s: float) -> list[Event]:
        """Wait until something happens, at most `timeout_s`; deaths come after what was finished before them.

        Raises:
            RunError: the cluster itself is gone.
        """
        self._ask_for_progress()
        owners = {ref: number for number, member in self._members.items() for ref in member.refs()}
        if not owners:
            time.sleep(timeout_s)
            return []
        try:
            ready, _ = ray.wait(list(owners), num_returns=1, timeout=timeout_s)
            if ready:
                ready, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        except (exceptions.RaySystemError, exceptions.LocalRayletDiedError) as error:
            raise RunError(f"The Ray cluster is gone: {describe_death(error)}.") from error
        events: list[Event] = []
        dead: dict[int, Exception] = {}
        for ref in ready:
            worker = owners[ref]
            try:
                event = self._receive(worker, ref)
            except self._deaths as error:
                dead.setdefault(worker, error)
                continue
            if event is not None:
                events.append(event)
        return events + [self._bury(worker, error) for worker, error in dead.items()]

    def shut_down(self) -> None:
        """Kill all workers; what they have not committed is lost to this session."""
        for worker in list(self._members):
            self._kill(worker)

    def _receive(self, worker: int, ref: Any) -> Event | None:
        member = self._members[worker]
        if ref == member.progress_ref:
            member.progress_ref = None
            progress: WorkerProgress = ray.get(ref)
            held = set(member.shard_refs.values())
            member.images_done = sum(done for index, done in progress.images_done.items() if index in held)
            return None
        if ref == member.start_ref:
            return self._started(worker, ray.get(ref))
        index = member.shard_refs[ref]
        try:
            outcome: ShardReport | ShardFailure = ray.get(ref)
        except exceptions.RayTaskError as error:
            # Nothing should get past the worker's own border; what does is a bug all the same.
            outcome = ShardFailure(index, "bug", describe_death(error), str(error))
        del member.shard_refs[ref]
        member.images_done = 0
        return ShardEnded(worker, outcome)

    def _started(self, worker: int, outcome: WorkerReady | WorkerFailure) -> Event:
        if isinstance(outcome, WorkerFailure):
            self._kill(worker)
            return WorkerNotStarted(worker, outcome)
        self._members[worker].is_ready = True
        return WorkerStarted(worker, outcome)

    def _bury(self, worker: int, error: Exception) -> WorkerDied:
        member = self._members[worker]
        self._kill(worker)
        return WorkerDied(
            worker,
            describe_death(error),
            was_ready=member.is_ready,
            was_preempted=was_preempted(error),
            lost_shards=tuple(member.shard_refs.values()),
        )

    def _kill(self, worker: int) -> None:
        # Also when it seems dead: one that merely could not be reached must not commit behind the driver's
        # back.
        ray.kill(self._members.pop(worker).handle)

    def _ask_for_progress(self) -> None:
        now = time.monotonic()
        for member in self._members.values():
            if member.shard_refs and member.progress_ref is None and now - member.asked_at >= PROGRESS_EVERY_S:
                member.progress_ref = member.handle.progress.remote()
                member.asked_at = now
