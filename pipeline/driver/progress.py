"""The display of a run's progress: a bar on a terminal, a line every ten seconds elsewhere, plain or JSON."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from pipeline.logs import configure, is_json, log_event, log_note
from pipeline.messages import Cause
from pipeline.redaction import redact
from pipeline.runs.bottleneck import IN_WORDS, Bottleneck
from pipeline.text import format_duration, printable

log = logging.getLogger(__name__)

# Often enough to show that the run is alive, rarely enough that the log of a long run stays readable.
LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run.

    images_total, images_done: of the whole run, earlier sessions included.
    images_failed: rows whose status is not ok.
    images_per_s: over the last minute.
    eta_s: seconds to go; None while unknown.
    workers: workers whose model is loaded.
    is_listing: whether the input is still being listed, so that images_total grows and the end is unknown.
    statuses: committed rows by status. failure_reasons: those not ok by reason, the most frequent first, capped.
    bottleneck: what held the workers up in the last minute; None before a worker has its model.
    live: workers and shards in detail, see `live_view.LiveView`; a second old or more with many workers.
    tiles: done, and all, of the images that are being cut into tiles.
    """

    images_total: int
    images_done: int
    images_failed: int
    images_per_s: float
    eta_s: float | None
    workers: int
    is_listing: bool = False
    statuses: Mapping[str, int] = field(default_factory=dict)
    failure_reasons: Mapping[str, int] = field(default_factory=dict)
    bottleneck: Bottleneck | None = None
    live: Mapping[str, object] = field(default_factory=dict)
    tiles: tuple[int, int] = (0, 0)


class ProgressDisplay(Protocol):
    """Shows a run's progress; the driver calls it from one thread."""

    def note(self, sentence: str) -> None:
        """Show one sentence."""

    def update(self, progress: RunProgress) -> None:
        """Show the progress; called several times a second."""

    def close(self) -> None:
        """Restore the terminal."""


class SilentProgress:
    """Shows nothing."""

    def note(self, sentence: str) -> None:
        """Drop the sentence."""

    def update(self, progress: RunProgress) -> None:
        """Drop the progress."""

    def close(self) -> None:
        """Do nothing."""


class LineProgress:
    """Plain lines for logs and pipes."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """`now`: the time that begins each line, in UTC; None for lines without a time."""
        self._now = now
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._clock = clock
        self._last: float | None = None
        self._shown: int | None = None

    def note(self, sentence: str) -> None:
        """Write the sentence on a line of its own."""
        stamp = f"{self._now():%Y-%m-%dT%H:%M:%SZ} " if self._now else ""
        self._stream.write(f"{stamp}{printable(redact(sentence))}\n")
        self._stream.flush()

    def update(self, progress: RunProgress) -> None:
        """Write a line when the last one is long enough ago, and when the last image is done."""
        if progress.is_listing and progress.images_total == 0:
            # Nothing is listed yet: "0/0+ images" would say nothing.
            return
        now = self._clock()
        is_end = _is_end(progress)
        if not is_end and self._last is not None and now - self._last < self._every_s:
            return
        more = "+" if progress.is_listing else ""
        line = f"{progress.images_done}/{progress.images_total}{more} images, {describe(progress)}"
        # The end is reported many times while the last parts are written.
        if is_end and self._shown == progress.images_done:
            return
        self._last = now
        self._shown = progress.images_done
        self.note(line)

    def close(self) -> None:
        """Do nothing."""


class BarProgress:
    """A bar with images, images/s, time left and failures, on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console or Console(stderr=True),
        )
        self._row: TaskID | None = None

    def note(self, sentence: str) -> None:
        """Print the sentence above the bar."""
        self._bar.console.print(printable(redact(sentence)), markup=False, highlight=False)

    def update(self, progress: RunProgress) -> None:
        """Move the bar."""
        if self._row is None:
            self._bar.start()
            self._row = self._bar.add_task("", total=None)
        # None leaves the total as it is: unknown until everything is listed.
        total = None if progress.is_listing else progress.images_total
        self._bar.update(self._row, total=total, completed=progress.images_done, description=describe(progress))

    def close(self) -> None:
        """Stop drawing; the bar's last state stays on the screen."""
        self._bar.stop()


class JsonProgress:
    """Lines of the JSON log: sentences as their events, the progress as a `heartbeat` every ten seconds."""

    def __init__(self, *, every_s: float = LINE_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last: float | None = None
        self._shown: int | None = None

    def note(self, sentence: str) -> None:
        """Log the sentence."""
        log_note(log, sentence)

    def update(self, progress: RunProgress) -> None:
        """Log the progress when the last time is long enough ago, and when the last image is done."""
        now, is_end = self._clock(), _is_end(progress)
        if not is_end and self._last is not None and now - self._last < self._every_s:
            return
        if is_end and self._shown == progress.images_done:
            return
        self._last, self._shown = now, progress.images_done
        more = "+" if progress.is_listing else ""
        line = f"{progress.images_done}/{progress.images_total}{more} images, {describe(progress)}"
        log_event(log, "heartbeat", line, **asdict(progress))

    def close(self) -> None:
        """Do nothing."""


def describe(progress: RunProgress) -> str:
    """Return speed, time left, failures and workers in a few words."""
    if not progress.workers and not _is_end(progress):
        return "starting workers"
    parts = [f"{progress.images_per_s:.2f} images/s"]
    if progress.is_listing:
        parts.append("listing")
    elif not _is_end(progress):
        parts.append(f"ETA {format_duration(progress.eta_s)}")
    if progress.tiles[1] and not _is_end(progress):
        parts.append(f"{progress.tiles[0]}/{progress.tiles[1]} tiles of images in work")
    parts.append(f"{progress.images_failed} failed")
    if progress.bottleneck is not None and not _is_end(progress):
        parts.append(_in_short(progress.bottleneck))
    return ", ".join(parts)


def _in_short(bottleneck: Bottleneck) -> str:
    cause: Cause = "infer" if bottleneck.name == "model" else bottleneck.name
    return f"{IN_WORDS[cause]} {bottleneck.share:.0%}"


def _is_end(progress: RunProgress) -> bool:
    return progress.images_done >= progress.images_total and not progress.is_listing


def choose_progress() -> ProgressDisplay:
    """Return the bar when standard error is a terminal, lines with their time otherwise; lines of JSON if asked for."""
    if is_json():
        if not log.hasHandlers():
            # Run from a program of the caller's, which has not begun a log.
            configure()
        return JsonProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress(now=lambda: datetime.now(UTC))
