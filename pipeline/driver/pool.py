"""What the session needs of a pool of workers, and how it opens one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pipeline.driver.events import Event, WorkerLeft
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.messages import Assignment
from pipeline.worker.worker import WorkerSettings


class Pool(Protocol):
    """Workers that are started, given shards and replaced; `pipeline.driver.worker_pool.WorkerPool` is one.

    The session calls it from one thread.
    """

    @property
    def max_workers(self) -> int:
        """The most workers there is room for."""

    @property
    def size(self) -> int:
        """Workers alive, those still loading their model included."""

    @property
    def images_in_flight(self) -> int:
        """Images done in shards that are not committed yet, as far as the workers have reported."""

    @property
    def running(self) -> int:
        """Workers whose process runs, those still loading their model included."""

    def ready_workers(self) -> dict[int, tuple[int, ...]]:
        """The workers that have their model, each with the shards it holds."""

    def may_take(self, worker: int) -> bool:
        """Return whether a worker may get one more shard."""

    def scale_to(self, wanted: int, *, spare: int | None = None) -> None:
        """Start workers until `wanted` are alive, those on nodes that are being drained not counted.

        Workers beyond that number whose process has not begun are not waited for any more.

        Args:
            spare: how many idle workers to keep beside; others end after a while, so that an autoscaler can remove
                their nodes. None keeps all.
        """

    def submit(self, worker: int, shard: Shard, assignment: Assignment) -> None:
        """Give a ready worker a shard."""

    def abandon(self, worker: int, index: int, *, is_queued: bool = False) -> None:
        """Ask a worker to leave a shard's commit to the driver; it may have died, or have begun to commit.

        Args:
            is_queued: only when none of the shard's images is done yet.
        """

    def events(self, timeout_s: float) -> list[Event]:
        """Wait until something happens, at most `timeout_s`; deaths come after what was finished before them.

        Raises:
            RunError: the cluster itself is gone.
        """

    def end(self, worker: int, reason: str) -> WorkerLeft:
        """End a worker; what it has not committed is for others to do."""

    def final_check(self) -> Sequence[Event]:
        """Ask every ready worker once more: otherwise nothing shows the death of one that holds no shard.

        Returns:
            The workers' reports, and deaths.
        """

    def shut_down(self) -> None:
        """Kill all workers; what they have not committed is lost to this session."""


class OpenPool(Protocol):
    """Opens a pool for the time of a block; `pipeline.driver.session.ray_pool` does so on Ray."""

    def __call__(
        self, settings: WorkerSettings, *, compute: ComputeSection, retry: RetrySection, shards: int | None
    ) -> AbstractContextManager[Pool]:
        """Open the pool.

        Args:
            settings: for each worker; the pool sets `cpus` and `gpus`.
            compute: how many workers, and when one is replaced.
            retry: the time limits after which a worker is replaced.
            shards: how many are left; None while that is unknown.
        """
