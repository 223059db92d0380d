"""LiveView: a session's workers and shards in detail, for progress.json; and the account of the workers' time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from pipeline.driver.live_workers import MAX_SHARDS, LiveWorkers, Look
from pipeline.driver.run_totals import RunTotals
from pipeline.driver.shard_queue import ShardQueue
from pipeline.runs.bottleneck import Bottleneck, find_bottleneck

# A minute's account of less time than this is chance.
MIN_RECENT_S = 5.0


class LiveView:
    """Looks at the workers from time to time and keeps what was seen; called from one thread.

    Attributes:
        content: for `RunProgress.live`, plain values:
            time_s, recent_s: the workers' seconds by cause, of the session and of the last minute.
            busy_shares: shares of the stages' busy time, of committed shards.
            workers: alive, starting, started and lost so far, images_per_s, batch_fill, memory_bytes,
                max_memory_bytes, gpu_bytes, gpu_share, tiles_done, tiles_total, causes (how many do what now), and
                rows: see `live_workers.WorkerRow`; of more workers than `live_workers.MAX_ROWS` the first in each
                order.
            shards: left, in_flight, waiting and retrying counts, usual_s, oldest (in flight, see
                `shard_queue.InFlight`), slowest (committed).
            failed_attempts: of this session, by what ended them.
        tiles: done, and all, of the images that are being cut into tiles.
        recent_bottleneck: of the last minute, without the start of workers.
        bottleneck, time_s: of the session, once it has ended.
    """

    def __init__(
        self,
        workers: LiveWorkers,
        queue: ShardQueue,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at these workers and at the shards of this queue."""
        self._workers = workers
        self._queue = queue
        self._clock = clock
        self._next_look: float | None = None
        self.content: Mapping[str, object] = {}
        self.tiles = (0, 0)
        self.recent_bottleneck: Bottleneck | None = None
        self.bottleneck: Bottleneck | None = None
        self.time_s: Mapping[str, float] = {}

    def update(self, held: Mapping[int, tuple[int, ...]], *, starting: int, totals: RunTotals) -> None:
        """Look again if the last time is long enough ago.

        Args:
            held: the workers that have their model, each with the shards that it holds.
            starting: workers that load their model.
        """
        now = self._clock()
        if self._next_look is not None and now < self._next_look:
            return
        self._next_look = now + self._workers.look_every_s
        look = self._workers.look(held)
        # How much the start counts is known when the run has ended.
        working = {cause: seconds for cause, seconds in look.recent.items() if cause != "start_up"}
        if sum(working.values()) >= MIN_RECENT_S:
            self.recent_bottleneck = find_bottleneck(working)
        self.tiles = look.tiles_done, look.tiles_total
        self.content = self._describe(look, starting=starting, totals=totals)

    def end(self) -> None:
        """Take the account of the session's time, before its workers are ended."""
        self.time_s = self._workers.seconds() if self._workers.were_any else {}
        self.bottleneck = find_bottleneck(self.time_s)

    def _describe(self, look: Look, *, starting: int, totals: RunTotals) -> Mapping[str, object]:
        queue = self._queue
        aggregates = {name: value for name, value in vars(look).items() if name not in ("seconds", "recent", "rows")}
        return {
            "time_s": look.seconds,
            "recent_s": look.recent,
            "busy_shares": {stage: round(share, 3) for stage, share in totals.stage_shares.items()},
            "workers": {
                "alive": len(self._workers) + starting,
                "starting": starting,
                "started": totals.workers_started,
                "lost": totals.workers_lost,
                **aggregates,
                "rows": [asdict(row) for row in look.rows],
            },
            "shards": {
                "left": queue.left,
                "in_flight": queue.in_flight,
                "waiting": queue.waiting,
                "retrying": queue.retrying,
                "usual_s": queue.usual_s and round(queue.usual_s, 1),
                "oldest": [asdict(each) for each in queue.oldest(MAX_SHARDS)],
                "slowest": self._workers.slowest_shards(),
            },
            "failed_attempts": dict(totals.failed_attempts),
        }
