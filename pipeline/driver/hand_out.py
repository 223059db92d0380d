"""Which worker gets which shard next: breadth first, retries elsewhere, speculative copies for idle workers."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pipeline.driver.pool import Pool
from pipeline.driver.progress import ProgressDisplay
from pipeline.driver.shard_queue import SHARDS_IN_FLIGHT, ShardQueue
from pipeline.logs import note
from pipeline.messages import Assignment
from pipeline.runs.error_budget import ErrorBudget
from pipeline.runs.row_counts import RowCounts
from pipeline.runs.run import RunHandle


class ShardDispatcher:
    """Hands the shards of a queue to the workers of a pool."""

    def __init__(
        self,
        run: RunHandle,
        queue: ShardQueue,
        budget: ErrorBudget,
        display: ProgressDisplay,
        *,
        on_assigned: Callable[[int], None] = lambda worker: None,
    ) -> None:
        """`on_assigned`: called with each worker that gets a shard."""
        self._run = run
        self._queue = queue
        self._budget = budget
        self._display = display
        self._on_assigned = on_assigned

    def hand_out(self, pool: Pool, rows: RowCounts) -> None:
        """Give every worker that can take one a shard.

        Args:
            rows: the run's committed rows, which decide whether the error budget needs a sampled shard.
        """
        ready = pool.ready_workers()
        held = {worker: list(shards) for worker, shards in ready.items() if len(shards) < SHARDS_IN_FLIGHT}
        # Before an idle worker gets a speculative copy.
        self._reclaim(pool, ready)
        # Breadth first: a worker gets a second shard, whose reads overlap the first one's compute, only when there are
        # enough shards for the workers that hold none yet or still load their model.
        for depth in range(SHARDS_IN_FLIGHT):
            assigned = self._assign(pool, ready, held, rows, depth=depth)
            # In the order of the manifest, whose parts would be read again and again when thousands of retries are due.
            for worker, assignment in sorted(assigned, key=lambda pair: pair[1].index):
                self._submit(pool, worker, assignment)
        if self._run.is_planned and not self._queue.is_reclaiming:
            self._copy_late(pool, (worker for worker, shards in held.items() if not shards and pool.may_take(worker)))

    def _assign(
        self, pool: Pool, ready: Collection[int], held: dict[int, list[int]], rows: RowCounts, *, depth: int
    ) -> list[tuple[int, Assignment]]:
        """Assign a shard to each worker that holds `depth` of them, as long as there are any; adds them to `held`."""
        assigned: list[tuple[int, Assignment]] = []
        # Workers that are still starting do not count: without free cores they never become ready, and a shard that
        # failed on the only other worker would wait forever.
        has_peers = len(ready) > 1
        idle = pool.size - len(ready) + sum(not shards for shards in held.values())
        for worker, shards in held.items():
            if not self._queue.has_assignable or (depth > 0 and self._queue.waiting <= idle):
                break
            if len(shards) != depth or not pool.may_take(worker):
                continue
            assignment = self._next_for(worker, shards, rows, has_peers=has_peers)
            if assignment is not None:
                assigned.append((worker, assignment))
                shards.append(assignment.index)
        return assigned

    def _copy_late(self, pool: Pool, idle: Iterable[int]) -> None:
        """Have idle workers start speculative copies of the shards that take long."""
        for worker in idle:
            assignment = self._queue.speculative_copy_for(worker)
            if assignment is None:
                break
            sentence = f"Shard {assignment.index} takes long; an idle worker starts a speculative copy."
            values: dict[str, Any] = {"shard": assignment.index, "worker": worker, "attempt": assignment.attempt}
            self._display.note(note("shard_copied", sentence, **values))
            self._submit(pool, worker, assignment)

    def _submit(self, pool: Pool, worker: int, assignment: Assignment) -> None:
        pool.submit(worker, self._run.read_shard(assignment.index), assignment)
        self._on_assigned(worker)

    def _reclaim(self, pool: Pool, ready: Mapping[int, Sequence[int]]) -> None:
        """Ask for shards back that are queued behind others, while workers are idle."""
        idle = 0 if self._queue.waiting else sum(not held and pool.may_take(worker) for worker, held in ready.items())
        queued = ((worker, index) for worker, held in ready.items() for index in held[1:])
        while (found := self._queue.reclaim(queued, idle_workers=idle)) is not None:
            pool.abandon(*found, is_queued=True)

    def _next_for(self, worker: int, held: list[int], rows: RowCounts, *, has_peers: bool) -> Assignment | None:
        is_planned = self._run.is_planned
        wants_sample = is_planned and self._budget.wants_sample(images_done=rows.images, errors=rows.new_errors)
        waiting = self._queue.untouched
        assignment = self._queue.next_for(worker, held, has_peers=has_peers, is_sampled=wants_sample)
        if assignment is not None and assignment.is_sampled:
            self._budget.sampled(
                assignment.index,
                shards=waiting,
                shard_images=self._run.manifest.shard_images,
                images=self._run.image_count,
                errors=rows.new_errors,
            )
        return assignment
