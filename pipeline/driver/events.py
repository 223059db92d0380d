"""What happens to a run's workers, as the session's loop takes it from the fleet; plain values."""

from dataclasses import dataclass

from pipeline.messages import Hang, PartialResult, ShardFailure, ShardResult, WorkerFailure, WorkerReady


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
    outcome: ShardResult | PartialResult | ShardFailure


@dataclass(frozen=True)
class ShardAbandoned:
    """A worker was asked to leave a shard's commit to the driver, and does."""

    worker: int
    index: int


@dataclass(frozen=True)
class WorkerDied:
    """A worker's process or node is gone, and with it the attempts it was making.

    was_ready: whether it had loaded its model.
    hang: the images for which it was ended, when they took too long.
    """

    worker: int
    reason: str
    was_ready: bool
    was_preempted: bool
    lost_shards: tuple[int, ...]
    hang: Hang | None = None

    def failure_of(self, index: int) -> ShardFailure:
        """What it means for one of the lost shards: who merely shared the worker of a hang is not charged."""
        if self.hang is None:
            return ShardFailure(index, "death", self.reason, is_charged=not self.was_preempted)
        if self.hang.index == index:
            return ShardFailure(index, "hang", self.reason, suspects=self.hang.positions)
        return ShardFailure(index, "death", self.reason, is_charged=False)


@dataclass(frozen=True)
class WorkerRetired:
    """A worker that had done its part was ended between two shards, for a new one to take its place."""

    worker: int
    reason: str


Event = WorkerStarted | WorkerNotStarted | ShardEnded | ShardAbandoned | WorkerDied | WorkerRetired
