"""A worker pool in the test's own process: workers without Ray, one shard after the other, deaths by exception."""

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.driver.events import Event, ShardAbandoned, ShardEnded, WorkerDied, WorkerLeft, WorkerStarted
from pipeline.driver.pool import OpenPool, Pool
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.messages import Assignment, WorkerReady
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.worker.worker import Worker, WorkerSettings


class Death(BaseException):
    """Passes every error boundary, as the end of a process does."""


@dataclass
class Member:
    worker: Worker
    is_ready: bool = False
    held: deque[tuple[Shard, Assignment]] = field(default_factory=deque)


class InProcessPool:
    """Does what `pipeline.driver.worker_pool.WorkerPool` does, step by step.

    starts: workers started, over all pools of the class.
    assignments: everything that was handed out.
    """

    starts = 0
    assignments: list[Assignment] = []  # noqa: RUF012 - reset by `forget`

    def __init__(self, settings: WorkerSettings, plan: WorkerPlan, **limits: object) -> None:
        self._settings = settings
        self.max_workers = plan.workers
        self._numbers = itertools.count()
        self._members: dict[int, Member] = {}
        self._events: deque[Event] = deque()

    @classmethod
    def forget(cls) -> None:
        """Reset the counts."""
        cls.starts, cls.assignments = 0, []

    @property
    def size(self) -> int:
        return len(self._members)

    @property
    def running(self) -> int:
        return len(self._members)

    @property
    def images_in_flight(self) -> int:
        return 0

    def ready_workers(self) -> dict[int, tuple[int, ...]]:
        return {
            number: tuple(shard.index for shard, _ in member.held)
            for number, member in self._members.items()
            if member.is_ready
        }

    def may_take(self, worker: int) -> bool:
        return True

    def scale_to(self, wanted: int, *, spare: int | None = None) -> None:
        while self.size < wanted:
            type(self).starts += 1
            number = next(self._numbers)
            self._members[number] = Member(Worker(self._settings))
            ready = self._members[number].worker.start()
            assert isinstance(ready, WorkerReady)
            self._events.append(WorkerStarted(number, ready))

    def submit(self, worker: int, shard: Shard, assignment: Assignment) -> None:
        self.assignments.append(assignment)
        self._members[worker].held.append((shard, assignment))

    def abandon(self, worker: int, index: int, *, is_queued: bool = False) -> None:
        member = self._members[worker]
        found = [pair for pair in member.held if pair[0].index == index]
        if found:
            member.held.remove(found[0])
            self._events.append(ShardAbandoned(worker, index))

    def events(self, timeout_s: float) -> list[Event]:
        if self._events:
            event = self._events.popleft()
            if isinstance(event, WorkerStarted):
                self._members[event.worker].is_ready = True
            return [event]
        for number, member in list(self._members.items()):
            if member.held:
                return [self._step(number, member)]
        return []

    def end(self, worker: int, reason: str) -> WorkerLeft:
        raise NotImplementedError("no node of this pool is drained")

    def final_check(self) -> list[WorkerDied]:
        return []

    def shut_down(self) -> None:
        self._members.clear()

    def _step(self, number: int, member: Member) -> Event:
        shard, assignment = member.held[0]
        try:
            outcome = member.worker.run_shard(shard, assignment)
        except Death:
            lost = tuple(held.index for held, _ in member.held)
            del self._members[number]
            return WorkerDied(number, "the worker died", was_ready=True, was_preempted=False, lost_shards=lost)
        member.held.popleft()
        return ShardEnded(number, outcome)


def in_process(pool_class: type[InProcessPool] = InProcessPool, *, workers: int = 1) -> OpenPool:
    """Return what opens pools of so many workers in this process, for `run(open_pool=...)`."""

    @contextmanager
    def open_pool(
        settings: WorkerSettings, *, compute: ComputeSection, retry: RetrySection, shards: int | None
    ) -> Iterator[Pool]:
        yield pool_class(settings, WorkerPlan(workers, 1.0, 0.0))

    return open_pool
