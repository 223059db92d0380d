"""LiveWorkers: what every worker of a session does and waits for, from its reports; for progress.json and the summary.

A report costs a few additions, whatever the number of workers. Whatever looks at all of them is done at `look`, which
the session calls more rarely the more workers there are.
"""

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.messages import CAUSES, ShardResult, WorkerReady, WorkerReport

# What a worker did recently is what it did since a report of that age; the last minute, for all workers together.
RECENT_S = 15.0
WINDOW_S = 60.0
# A look at a thousand workers takes some 10 ms.
LOOK_EVERY_S = 1.0
WORKERS_PER_LOOK_S = 1000
# So that progress.json stays below 100 kB: all workers up to so many, else the first ones in each order.
MAX_ROWS = 200
ROWS_BY_ORDER = 32
MAX_SHARDS = 10

_START, _NO_SHARD, _TAIL = CAUSES.index("start_up"), CAUSES.index("no_shard"), CAUSES.index("tail")
Seconds = tuple[float, ...]
NOTHING: Seconds = (0.0,) * len(CAUSES)


@dataclass
class _Live:
    """One worker.

    seconds: by cause, as last reported; reported_at: when, by the driver's clock. since: when it was requested.
    held: shards at the worker. idle_at: since when it holds none; tail_at: seconds of tail before that.
    tail_s: seconds without a shard in the run's tail.
    before, recent: two earlier moments, with images and seconds, to compute what was done since.
    """

    since: float
    host: str
    seconds: Seconds
    reported_at: float
    report: WorkerReport | None = None
    held: int = 0
    idle_at: float = 0.0
    tail_at: float = 0.0
    tail_s: float = 0.0
    before: tuple[float, int, Seconds] = (0.0, 0, NOTHING)
    recent: tuple[float, int, Seconds] = (0.0, 0, NOTHING)


@dataclass(frozen=True)
class WorkerRow:
    """One worker in progress.json.

    worker: its number in the session. host: its machine. up_s: seconds since it was requested.
    cause, cause_s: what its model does or waits for, and for how long. reported_s_ago: how old that is.
    shards: those that it holds. images: done. images_per_s: recently. shares: of its recent time, by cause.
    batch_fill: share of the batches' places that were filled; None before the first batch.
    memory_bytes, gpu_bytes: of its process. gpu_share: of the whole GPU, None if unknown.
    """

    worker: int
    host: str
    up_s: float
    cause: str
    cause_s: float
    reported_s_ago: float
    shards: tuple[int, ...]
    images: int
    images_per_s: float
    shares: Mapping[str, float]
    batch_fill: float | None
    memory_bytes: int
    gpu_bytes: int
    gpu_share: float | None

    @property
    def wait_share(self) -> float:
        """The share of its recent time in which its model was not busy."""
        return 1.0 - self.shares.get("infer", 0.0) if self.shares else 0.0


# `htc top --sort`: which workers come first.
ORDERS: Mapping[str, Callable[[WorkerRow], Any]] = {
    "worker": lambda row: row.worker,
    "speed": lambda row: row.images_per_s,
    "wait": lambda row: -row.wait_share,
    "stuck": lambda row: (row.cause == "infer", -row.cause_s),
    "memory": lambda row: -(row.memory_bytes + row.gpu_bytes),
    "fill": lambda row: 1.0 if row.batch_fill is None else row.batch_fill,
}


@dataclass(frozen=True)
class Look:
    """All workers at one moment.

    seconds: of this session by cause. recent: of the last minute. rows: workers, all or the first in each of `ORDERS`.
    causes: how many workers do what. images_per_s: sum of theirs, recently. batch_fill: over all batches.
    memory_bytes, gpu_bytes: sums; max_memory_bytes: of the largest. gpu_share: mean of those that report one.
    tiles_done, tiles_total: of all images that are being cut into tiles.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    recent: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[WorkerRow, ...] = ()
    causes: Mapping[str, int] = field(default_factory=dict)
    images_per_s: float = 0.0
    batch_fill: float | None = None
    memory_bytes: int = 0
    max_memory_bytes: int = 0
    gpu_bytes: int = 0
    gpu_share: float | None = None
    tiles_done: int = 0
    tiles_total: int = 0


class LiveWorkers:
    """The workers of a session; called from one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._workers: dict[int, _Live] = {}
        # Of workers that are gone.
        self._gone: list[float] = [0.0] * len(CAUSES)
        self._tail_s = 0.0
        self._tail_since: float | None = None
        self._samples: deque[tuple[float, Seconds]] = deque([(clock(), NOTHING)])
        self._slowest: list[tuple[float, int, int, int]] = []

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def were_any(self) -> bool:
        """Whether a worker had its model, now or earlier."""
        return bool(self._workers) or any(self._gone)

    @property
    def look_every_s(self) -> float:
        """How long to wait between two looks, so that they take about a hundredth of the time."""
        return max(LOOK_EVERY_S, len(self._workers) / WORKERS_PER_LOOK_S)

    def started(self, worker: int, ready: WorkerReady, *, start_s: float) -> None:
        """Add a worker that has its model. `start_s`: seconds since it was requested; at least `load_s` counts."""
        now = self._clock()
        seconds = (max(start_s, ready.load_s), *NOTHING[1:])
        mark = (now, 0, seconds)
        self._workers[worker] = _Live(
            now - seconds[_START], ready.host, seconds, now, None, 0, now, self._tail_until(now), 0.0, mark, mark
        )

    def assigned(self, worker: int) -> None:
        """Record that a worker gets one more shard."""
        live = self._workers.get(worker)
        if live is not None:
            if not live.held:
                live.tail_s += self._tail_until(self._clock()) - live.tail_at
            live.held += 1

    def ended(self, worker: int) -> None:
        """Record that a worker holds one shard less."""
        live = self._workers.get(worker)
        if live is not None and live.held:
            live.held -= 1
            if not live.held:
                live.idle_at = self._clock()
                live.tail_at = self._tail_until(live.idle_at)

    def reported(self, worker: int, report: WorkerReport) -> None:
        """Take a worker's report."""
        live = self._workers.get(worker)
        if live is None:
            return
        now = self._clock()
        live.report, live.reported_at = report, now
        live.seconds = (max(live.seconds[_START], report.seconds[_START]), *report.seconds[1:])
        if now - live.recent[0] >= RECENT_S:
            live.before, live.recent = live.recent, (now, report.images, live.seconds)

    def left(self, worker: int) -> None:
        """Remove a worker that died or was ended; its seconds stay in the totals."""
        live = self._workers.pop(worker, None)
        if live is not None:
            now = self._clock()
            for place, value in enumerate(self._split(live, now)):
                self._gone[place] += value

    def done(self, worker: int, result: ShardResult) -> None:
        """Keep a committed shard if it is one of the slowest."""
        heapq.heappush(self._slowest, (result.seconds, result.index, worker, result.images))
        if len(self._slowest) > MAX_SHARDS:
            heapq.heappop(self._slowest)

    def slowest_shards(self) -> list[dict[str, object]]:
        """Return the slowest committed shards, the slowest first."""
        return [
            {"shard": index, "worker": worker, "seconds": round(seconds, 1), "images": images}
            for seconds, index, worker, images in sorted(self._slowest, reverse=True)
        ]

    def set_tail(self, is_tail: bool) -> None:
        """Record whether no shard is left for a worker that ends its own."""
        now = self._clock()
        if is_tail and self._tail_since is None:
            self._tail_since = now
        elif not is_tail and self._tail_since is not None:
            self._tail_s, self._tail_since = self._tail_until(now), None

    def _tail_until(self, now: float) -> float:
        return self._tail_s + (now - self._tail_since if self._tail_since is not None else 0.0)

    def _split(self, live: _Live, now: float) -> Seconds:
        """Return a worker's seconds until now; those without a shard are divided by whether any was left."""
        seconds = list(live.seconds)
        tail_s = live.tail_s
        if not live.held:
            # Idle workers are not asked.
            seconds[_NO_SHARD] += max(0.0, now - max(live.reported_at, live.idle_at))
            tail_s += self._tail_until(now) - live.tail_at
        seconds[_TAIL] = min(tail_s, seconds[_NO_SHARD])
        seconds[_NO_SHARD] -= seconds[_TAIL]
        return tuple(seconds)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all workers of the session by cause: they add up to the workers' wall time."""
        now = self._clock()
        sums = list(self._gone)
        for live in self._workers.values():
            for place, value in enumerate(self._split(live, now)):
                sums[place] += value
        return _by_cause(sums)

    def look(self, held: Mapping[int, tuple[int, ...]]) -> Look:
        """Look at all workers. `held`: the shards that each holds."""
        now = self._clock()
        total, by_cause = list(self._gone), Counter[str]()
        rows: list[WorkerRow] = []
        batch_images = batch_slots = 0
        for number, live in self._workers.items():
            split = self._split(live, now)
            for place, value in enumerate(split):
                total[place] += value
            row = self._row(number, live, split, held.get(number, ()), now)
            rows.append(row)
            by_cause[row.cause] += 1
            if live.report is not None:
                batch_images += live.report.batch_images
                batch_slots += live.report.batch_slots
        reports = [live.report for live in self._workers.values() if live.report is not None and live.held]
        gpu_shares = [row.gpu_share for row in rows if row.gpu_share is not None]
        return Look(
            seconds=_by_cause(total),
            recent=self._recent(now, tuple(total)),
            rows=_first_rows(rows),
            causes=dict(by_cause),
            images_per_s=round(sum(row.images_per_s for row in rows), 3),
            batch_fill=round(batch_images / batch_slots, 3) if batch_slots else None,
            memory_bytes=sum(row.memory_bytes for row in rows),
            max_memory_bytes=max((row.memory_bytes for row in rows), default=0),
            gpu_bytes=sum(row.gpu_bytes for row in rows),
            gpu_share=round(sum(gpu_shares) / len(gpu_shares), 3) if gpu_shares else None,
            tiles_done=sum(report.tiles_done for report in reports),
            tiles_total=sum(report.tiles_total for report in reports),
        )

    def _recent(self, now: float, total: Seconds) -> dict[str, float]:
        samples = self._samples
        samples.append((now, total))
        while len(samples) > 2 and samples[1][0] <= now - WINDOW_S:
            samples.popleft()
        return {
            cause: round(max(0.0, later - earlier), 3)
            for cause, earlier, later in zip(CAUSES, samples[0][1], total, strict=True)
        }

    def _row(self, number: int, live: _Live, split: Seconds, held: tuple[int, ...], now: float) -> WorkerRow:
        report = live.report
        cause, cause_s, images = "no_shard", now - live.idle_at, 0
        if report is not None:
            images = report.images
            if live.held:
                cause, cause_s = report.cause, report.cause_s
        if not live.held and self._tail_since is not None:
            cause, cause_s = "tail", now - max(live.idle_at, self._tail_since)
        then, images_then, seconds_then = live.before
        elapsed = (live.reported_at if live.held else now) - then
        spent = [max(0.0, later - earlier) for earlier, later in zip(seconds_then, split, strict=True)]
        spent[_START] = 0.0
        all_spent = sum(spent)
        return WorkerRow(
            worker=number,
            host=live.host,
            up_s=round(now - live.since, 1),
            cause=cause,
            cause_s=round(max(0.0, cause_s), 1),
            reported_s_ago=round(now - live.reported_at, 1),
            shards=held,
            images=images,
            images_per_s=round(max(0.0, (images - images_then) / elapsed), 3) if elapsed > 0 else 0.0,
            shares={
                name: round(value / all_spent, 3)
                for name, value in zip(CAUSES, spent, strict=True)
                if value >= 0.005 * all_spent > 0
            },
            batch_fill=round(report.batch_images / report.batch_slots, 3) if report and report.batch_slots else None,
            memory_bytes=report.memory_bytes if report else 0,
            gpu_bytes=report.gpu_bytes if report else 0,
            gpu_share=report.gpu_share if report else None,
        )


def _by_cause(seconds: Sequence[float]) -> dict[str, float]:
    return {cause: round(value, 3) for cause, value in zip(CAUSES, seconds, strict=True)}


def _first_rows(rows: list[WorkerRow]) -> tuple[WorkerRow, ...]:
    """Return all rows when they are few, else the first ones in each order; in the order of their numbers."""
    if len(rows) <= MAX_ROWS:
        return tuple(sorted(rows, key=ORDERS["worker"]))
    chosen: dict[int, WorkerRow] = {}
    for key in ORDERS.values():
        chosen.update((row.worker, row) for row in heapq.nsmallest(ROWS_BY_ORDER, rows, key=key))
    return tuple(chosen[number] for number in sorted(chosen)[:MAX_ROWS])
