"""Progress of commands that read every image: a bar on a terminal, a plain line every ten seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jobs.terminal.console import say
from pipeline import logs

LINE_EVERY_S = 10.0


class ImageProgress:
    """Shows how many images have been read; called from one thread."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._row: TaskID | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._row is not None:
            self._bar.stop()

    def show(self, done: int, count: int) -> None:
        """Show that `done` of `count` images have been read."""
        if logs.is_json() or not self._console.is_terminal:
            if time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                say(f"{done:,}/{count:,} images")
            return
        if self._row is None:
            self._bar.start()
            self._row = self._bar.add_task("", total=count)
        self._bar.update(self._row, completed=done)
