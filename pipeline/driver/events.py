"""Events of a run's workers, which the worker pool reports to the session; plain values."""

from dataclasses import dataclass

from pipeline.messages import (
    Hang,
    PartialResult,
    ShardFailure,
    ShardResult,
    WorkerFailure,
    WorkerReady,
    WorkerReport,
)


@dataclass(frozen=True)
class WorkerStarted:
    """A worker has loaded its model, `start_s` seconds after it was requested."""

    worker: int
    ready: WorkerReady
    start_s: float = 0.0


@dataclass(frozen=True)
class WorkerReported:
    """A worker has answered what it does."""

    worker: int
    report: WorkerReport


@dataclass(frozen=True)
class WorkerNotStarted:
    """A worker could not load its model; it is gone."""

    worker: int
    failure: WorkerFailure


@dataclass(frozen=True)
class ShardEnded:
    """An attempt ended, with a commit or without."""

    worker: int
    outcome: ShardResult | PartialResult | ShardFailure


@dataclass(frozen=True)
class ShardAbandoned:
    """A worker was asked to leave a shard's commit to the driver, and agreed."""

    worker: int
    index: int


@dataclass(frozen=True)
class WorkerDied:
    """A worker's process or node is gone, and with it its attempts.

    was_ready: whether it had loaded its model.
    lost_shards: the shards that it held.
    hang: the images that took too long, when the worker was ended for that.
    """

    worker: int
    reason: str
    was_ready: bool
    was_preempted: bool
    lost_shards: tuple[int, ...]
    hang: Hang | None = None

    def failure_of(self, index: int) -> ShardFailure:
        """Return the failure of one of the lost shards: one that merely shared the worker of a hang is not charged.

        When images of both shards were in the batch that hung, each is charged as for a death, so that each is tried
        alone next; nothing says yet whose image it was.
        """
        if self.hang is None:
            return ShardFailure(index, "death", self.reason, is_charged=not self.was_preempted)
        if self.hang.is_shared:
            return ShardFailure(index, "death", self.reason)
        if self.hang.index == index:
            return ShardFailure(index, "hang", self.reason, suspects=self.hang.positions)
        return ShardFailure(index, "death", self.reason, is_charged=False)


@dataclass(frozen=True)
class WorkerRetired:
    """A worker that reached its limits was ended between two shards, for a new one to take its place."""

    worker: int
    reason: str


@dataclass(frozen=True)
class WorkerLeaving:
    """A worker's node is being drained: it gets no further shard, and is replaced at once.

    reason: one line. shards: those that it holds, the one that it is doing first.
    seconds_left: until its node goes; None without a deadline.
    """

    worker: int
    reason: str
    shards: tuple[int, ...]
    seconds_left: float | None


@dataclass(frozen=True)
class WorkerLeft:
    """A worker on a node that is being drained was ended; the shards that it still held go to others, uncharged."""

    worker: int
    reason: str
    lost_shards: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorkersWaiting:
    """Workers wait for room on the cluster; `reason` is one sentence for the user."""

    reason: str


Event = (
    WorkerStarted
    | WorkerNotStarted
    | WorkerReported
    | ShardEnded
    | ShardAbandoned
    | WorkerDied
    | WorkerRetired
    | WorkerLeaving
    | WorkerLeft
    | WorkersWaiting
)
