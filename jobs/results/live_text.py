"""The live view of a run as text: headlines, then tables by stage, by worker, of shards and of failures."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.results.live_run import LivePart, LiveRun, choose_workers
from jobs.results.status import RunStatus
from jobs.terminal.console import UNLIMITED_WIDTH, Alignment, size_of
from pipeline.driver.live_workers import WorkerRow
from pipeline.messages import CAUSES
from pipeline.runs.bottleneck import shares_in_words, shares_of
from pipeline.runs.outcomes import in_words
from pipeline.text import count_of, format_duration, printable

STAGES = {
    "start_up": "start-up",
    "read": "read",
    "decode": "decode",
    "upload": "upload",
    "infer": "model",
    "encode": "encode",
    "write": "write",
    "no_shard": "no shard",
    "tail": "tail",
}
MAX_REASONS = 8
# Busy workers are asked once a second; of thousands, each every 40 s at most.
STALE_REPORT_S = 45.0
Row = Sequence[str]


@dataclass(frozen=True)
class Page:
    """Which workers are shown: their order (`live_workers.ORDERS`), how many, and which page of them, from 1.

    is_wide: whether there is room for the columns that matter least.
    """

    sort: str = "wait"
    workers: int = 20
    page: int = 1
    is_wide: bool = True


def render(run: LiveRun, page: Page, now: datetime) -> RenderableType:
    """Return the view of a run at one moment."""
    parts: list[RenderableType] = [_table(["", ""], list(_headlines(run, now)), has_header=False)]
    live = run.live if run.status.state == "running" else None
    if live is not None:
        parts.append(_stages(live))
    if run.status.failure_reasons:
        parts.append(_failures(run.status))
    if live is not None:
        parts += _live_tables(live, page)
    return Group(*parts)


def as_text(view: RenderableType) -> str:
    """Return a view as plain text, without folded or padded lines."""
    console = Console(file=io.StringIO(), width=UNLIMITED_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(view)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _headlines(run: LiveRun, now: datetime) -> Iterator[Row]:
    status, live = run.status, run.live
    yield "run", f"{status.run} ({in_words(status.state)}), {status.model}"
    yield "images", _images(status)
    if status.state != "running":
        yield "ended", _ended(run, now)
    elif run.written is None:
        yield "driver", f"{_driver(status)}, has just begun: it has written no progress yet"
    else:
        yield "driver", _as_of(run, now)
    if times := ", ".join(shares_in_words(shares_of(status.worker_time_s or {}))):
        yield "workers' time", times
    if status.bottleneck:
        yield "bottleneck", str(status.bottleneck.get("sentence", ""))
    if status.state != "running":
        return
    if run.written is not None and live is None:
        yield "workers", f"{status.workers or 0} ready; a driver of an earlier version reports no more about them"
    if live is not None:
        yield "workers", _workers(live)
        yield "shards", _shards(live)
        if live.failed_attempts or live.workers.lost:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(live.failed_attempts.items()))
            attempts = count_of(sum(live.failed_attempts.values()), "failed attempt")
            lost = count_of(live.workers.lost, "worker")
            yield "retries", f"{attempts}{f' ({kinds})' if kinds else ''}, {lost} lost"


def _images(status: RunStatus) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(status.statuses.items()) if count)
    text = f"{status.images_done:,} of {status.images:,}"
    if status.is_listing:
        text += " listed so far"
    elif status.images:
        text += f" ({status.images_done / status.images:.0%})"
    if counts:
        text += f": {counts} committed" if status.state == "running" else f": {counts}"
    if status.images_per_s:
        text += f"; {status.images_per_s:.2f} images/s"
    if status.state == "running" and not status.is_listing and status.eta_s is not None:
        text += f", ETA {format_duration(status.eta_s)}"
    return text


def _driver(status: RunStatus) -> str:
    driver = status.driver
    if driver is None or not driver.host:
        return "the driver"
    return f"process {driver.pid} on {driver.host}"


def _as_of(run: LiveRun, now: datetime) -> str:
    age = format_duration(run.age_s(now))
    if run.is_stale(now):
        return f"{_driver(run.status)}, has written nothing for {age}: what follows is as old as that"
    return f"{_driver(run.status)}, wrote this {age} ago"


def _ended(run: LiveRun, now: datetime) -> str:
    status = run.status
    if run.written is not None and status.driver is not None and not status.driver.is_alive:
        age = format_duration(run.age_s(now))
        return f"{_driver(status)} is dead; it last wrote {age} ago. Run the same command again to resume."
    return status.reason or "no driver works on it"


def _workers(live: LivePart) -> str:
    workers = live.workers
    parts = [f"{workers.alive:,} alive"]
    if workers.starting:
        parts.append(f"{workers.starting:,} of them starting")
    if ready := workers.alive - workers.starting:
        parts.append(f"{workers.images_per_s / ready:.2f} images/s each")
    if workers.batch_fill is not None:
        parts.append(f"batches {workers.batch_fill:.0%} full")
    if workers.tiles_total:
        parts.append(f"{workers.tiles_done:,} of {workers.tiles_total:,} tiles of the images in work")
    if workers.gpu_share is not None:
        parts.append(f"GPUs {workers.gpu_share:.0%} busy")
    if workers.memory_bytes:
        parts.append(f"{size_of(workers.memory_bytes)} memory, the largest {size_of(workers.max_memory_bytes)}")
    return ", ".join(parts)


def _shards(live: LivePart) -> str:
    shards = live.shards
    text = f"{shards.left:,} left: {shards.in_flight:,} in flight, {shards.waiting:,} waiting"
    if shards.retrying:
        text += f", {shards.retrying:,} of them for their next attempt"
    return text if shards.usual_s is None else f"{text}; usually {_seconds(shards.usual_s)} each"


def _live_tables(live: LivePart, page: Page) -> Iterator[RenderableType]:
    if live.workers.rows:
        yield _worker_table(live, page)
    if live.shards.oldest:
        usual_s = live.shards.usual_s
        rows = [
            (
                f"{each.shard:,}",
                str(each.worker) + (f", copy at {each.copy_worker}" if each.copy_worker is not None else ""),
                str(each.attempt) + (f" ({count_of(each.images, 'image')} of it)" if each.images is not None else ""),
                _seconds(each.seconds),
                f"{each.seconds / usual_s:.1f} x" if usual_s else "",
            )
            for each in live.shards.oldest
        ]
        yield _table(["in flight: shard", "worker", "attempt", "for", "of usual"], rows, "rllrr")
    if live.shards.slowest:
        slow = [
            (f"{each.shard:,}", str(each.worker), _seconds(each.seconds), f"{each.images:,}")
            for each in live.shards.slowest
        ]
        yield _table(["slowest done: shard", "worker", "took", "images"], slow, "rlrr")


def _stages(live: LivePart) -> Table:
    """What the models do or wait for; and how the busy time of the stages, which overlap, is divided."""
    recent, total = sum(live.recent_s.values()), sum(live.time_s.values())
    rows = []
    for cause in CAUSES:
        now = live.workers.causes.get(cause, 0) + (live.workers.starting if cause == "start_up" else 0)
        cells = (
            f"{now:,}" if now else "",
            _share(live.recent_s.get(cause, 0.0), recent),
            _share(live.time_s.get(cause, 0.0), total),
            _share(live.busy_shares.get(cause, 0.0), 1.0),
        )
        if any(cells):
            rows.append((STAGES[cause], *cells))
    return _table(["the model's time", "workers now", "last minute", "session", "busy threads"], rows, "lrrrr")


def _worker_table(live: LivePart, page: Page) -> RenderableType:
    rows, number, pages = choose_workers(live.workers.rows, sort=page.sort, most=page.workers, page=page.page)
    has_gpu = any(row.gpu_share is not None or row.gpu_bytes for row in live.workers.rows)
    columns = [
        column
        for column in _COLUMNS
        if (has_gpu or not column.name.startswith("GPU")) and (page.is_wide or not column.is_wide)
    ]
    table = _table(
        [column.name for column in columns],
        [[column.cell(row) for column in columns] for row in rows],
        "".join(column.alignment for column in columns),
    )
    notes = []
    if pages > 1:
        notes.append(f"page {number} of {pages}")
    ready = live.workers.alive - live.workers.starting
    if ready > len(live.workers.rows):
        notes.append(f"of {ready:,} workers the {len(live.workers.rows)} that come first in one of the orders")
    return Group(table, Text(f"Workers by {page.sort}, {', '.join(notes)}")) if notes else table


@dataclass(frozen=True)
class _Column:
    """A column of the table of workers. is_wide: left out on a narrow terminal."""

    name: str
    alignment: str
    cell: Callable[[WorkerRow], str]
    is_wide: bool = False


def _now(row: WorkerRow) -> str:
    late = f" (heard {_seconds(row.reported_s_ago)} ago)" if row.shards and row.reported_s_ago >= STALE_REPORT_S else ""
    return f"{STAGES.get(row.cause, row.cause)}{late}"


def _recent(row: WorkerRow) -> str:
    shares = sorted(row.shares.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{STAGES.get(cause, cause)} {share:.0%}" for cause, share in shares[:2] if share >= 0.005)


_COLUMNS = (
    _Column("worker", "l", lambda row: str(row.worker)),
    _Column("host", "l", lambda row: row.host, is_wide=True),
    _Column("now", "l", _now),
    _Column("for", "r", lambda row: _seconds(row.cause_s)),
    _Column("images/s", "r", lambda row: f"{row.images_per_s:.2f}"),
    _Column("recently", "l", _recent),
    _Column("fill", "r", lambda row: _percent(row.batch_fill)),
    _Column("GPU", "r", lambda row: _percent(row.gpu_share)),
    _Column("GPU memory", "r", lambda row: size_of(row.gpu_bytes), is_wide=True),
    _Column("memory", "r", lambda row: size_of(row.memory_bytes) if row.memory_bytes else ""),
    _Column("images", "r", lambda row: f"{row.images:,}", is_wide=True),
    _Column("shards", "l", lambda row: ", ".join(map(str, row.shards)), is_wide=True),
)


def _failures(status: RunStatus) -> RenderableType:
    reasons = list(status.failure_reasons.items())
    table = _table(["failed", "reason"], [(f"{count:,}", reason) for reason, count in reasons[:MAX_REASONS]], "rl")
    if len(reasons) <= MAX_REASONS:
        return table
    return Group(table, Text(f"... and {count_of(len(reasons) - MAX_REASONS, 'more reason')}"))


def _table(columns: Sequence[str], rows: Sequence[Row], alignments: str = "", *, has_header: bool = True) -> Table:
    """Return a table; `alignments`: l or r for each column."""
    table = Table(box=box.SIMPLE_HEAD if has_header else None, show_header=has_header, pad_edge=False)
    sides: dict[str, Alignment] = {"l": "left", "r": "right"}
    for name, side in zip(columns, alignments or "l" * len(columns), strict=True):
        table.add_column(Text(name), justify=sides[side], overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _share(value: float, total: float) -> str:
    return f"{value / total:.0%}" if total > 0 and value / total >= 0.005 else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)
