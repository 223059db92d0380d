"""`htc top`: a run's workers and shards while it goes on, from its progress.json alone."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from jobs.results.live_run import LiveRun, choose_workers, read_live
from jobs.results.live_text import Page, as_text, render
from jobs.results.status import read_status, refresh_status
from jobs.terminal.console import say, write_json
from pipeline.errors import StorageError
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_INTERRUPTED
from pipeline.storage.storage import Storage

# Less than half of the time between two writes of progress.json.
EVERY_S = 2.0
# How often the lease is read, which shows whether the driver is alive; sooner when it has stopped writing.
CHECK_EVERY_S = 60.0
# What the table of workers takes with all of its columns.
WIDE_COLUMNS = 130


def report_top(
    output_uri: str, storage: Storage, *, run: str | None, page: Page, is_once: bool = False, is_json: bool = False
) -> int:
    """Show a run until it ends: redrawn on a terminal, one block for each change elsewhere.

    Args:
        run: its name; by default the newest.
        is_once: show it as it is now, and return. is_json: the same as JSON.

    Returns:
        The exit code: 0, also of a run that failed; 130 after Ctrl-C.

    Raises:
        InputError: the output holds no run, or none of this name.
        StorageError: it cannot be read.
    """
    watch = Watch(output_uri, storage, run)
    is_interrupted = False
    try:
        seen = watch.look()
        if is_json:
            write_json(to_json(seen, page, datetime.now(UTC)))
        elif is_once or seen.status.state != "running":
            sys.stdout.write(as_text(render(seen, page, datetime.now(UTC))))
        elif sys.stdout.isatty():
            _redraw(watch, seen, page)
        else:
            _write_changes(watch, seen, page)
    except KeyboardInterrupt:
        is_interrupted = True
    # Not in the handler: the program would say "Stopped." for Ctrl-C, which is how this view is left.
    return EXIT_INTERRUPTED if is_interrupted else EXIT_COMPLETE


@dataclass
class Watch:
    """Reads a run again and again, and its lease only now and then.

    sleep: waits while a lease is watched, see `read_status`. checked: when that was read last, by `clock`.
    """

    output_uri: str
    storage: Storage
    run: str | None
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    checked: float | None = None
    seen: LiveRun | None = field(default=None, repr=False)

    def look(self) -> LiveRun:
        """Return the run as it is now.

        Raises:
            InputError: there is no such run.
            StorageError: it cannot be read.
        """
        if self.seen is not None and self.checked is not None and self.clock() - self.checked < CHECK_EVERY_S:
            known = refresh_status(self.seen.status, self.storage, self.output_uri)
            if known is not None:
                fresh = read_live(self.storage, self.output_uri, known)
                if not fresh.is_stale(self.now()):
                    self.seen = fresh
                    return fresh
        status = read_status(self.output_uri, self.storage, run=self.run, sleep=self.sleep, report=say)
        # Later looks are at the same run, also when a newer one begins.
        self.run = status.run
        self.seen = read_live(self.storage, self.output_uri, status)
        self.checked = self.clock()
        return self.seen


def _redraw(watch: Watch, seen: LiveRun, page: Page) -> None:
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while seen.status.state == "running":
            fitting = replace(page, is_wide=console.width >= WIDE_COLUMNS)
            live.update(render(seen, fitting, datetime.now(UTC)), refresh=True)
            time.sleep(EVERY_S)
            seen = _look_again(watch, seen)
    # The screen of before is back: how the run ended stays on it.
    sys.stdout.write(as_text(render(seen, page, datetime.now(UTC))))


def _write_changes(watch: Watch, seen: LiveRun, page: Page) -> None:
    while True:
        sys.stdout.write(as_text(render(seen, page, datetime.now(UTC))) + "\n")
        sys.stdout.flush()
        before = seen
        while seen.status.state == "running" and (seen.written, seen.status.state) == (before.written, "running"):
            time.sleep(EVERY_S)
            seen = _look_again(watch, seen)
        if seen.status.state != "running":
            sys.stdout.write(as_text(render(seen, page, datetime.now(UTC))))
            return


def _look_again(watch: Watch, seen: LiveRun) -> LiveRun:
    try:
        return watch.look()
    except StorageError as error:
        # The run goes on; the store may answer the next time, and the view shows how old it is.
        say(str(error))
        return seen


def to_json(run: LiveRun, page: Page, now: datetime) -> dict[str, object]:
    """Return the view as JSON values; the workers in the page's order, only that page of them."""
    live = None
    if run.live is not None:
        rows, number, pages = choose_workers(run.live.workers.rows, sort=page.sort, most=page.workers, page=page.page)
        workers = run.live.workers.model_copy(update={"rows": rows})
        live = run.live.model_copy(update={"workers": workers}).model_dump(mode="json")
        live |= {"sort": page.sort, "page": number, "pages": pages}
    return {
        "run": run.status.to_dict(),
        "written": run.written and run.written.isoformat(),
        "age_s": run.age_s(now),
        "is_stale": run.is_stale(now),
        "live": live,
    }
