"""A worker's log: to the stderr of its process, and as lines of JSON to the driver, with the answers about progress."""

import logging
import os
import threading
from collections import deque

from pipeline import logs

# Lines kept between two questions; the driver asks about once a second, and ten thousand workers may have a bad day.
MAX_LINES = 100


class LogRelay(logging.Handler):
    """Keeps the newest lines for the driver, where the driver's log is JSON."""

    def __init__(self, log_format: str, log_level: str) -> None:
        """Take the driver's format and level; nothing is logged yet."""
        super().__init__()
        self.setFormatter(logs.JsonFormatter())
        self._format, self._level = log_format, log_level
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._guard = threading.Lock()

    def begin(self, run: str, worker: int) -> None:
        """Log to this process's stderr from now on, and keep lines for the driver."""
        # Absent on the nodes of a cluster, and inherited from the driver on this machine.
        if self._format == "json":
            os.environ[logs.FORMAT_VARIABLE] = self._format
        if self._level:
            os.environ[logs.LEVEL_VARIABLE] = self._level
        logs.set_place(run=run, worker=worker)
        logs.configure(is_service=True)
        if self._format == "json":
            logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's line."""
        line = self.format(record)
        with self._guard:
            if len(self._lines) >= MAX_LINES:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(line)

    def take(self) -> tuple[str, ...]:
        """Return the lines that were kept since the last call, oldest first, and forget them."""
        with self._guard:
            dropped, self._dropped = self._dropped, 0
            lines = tuple(self._lines)
            self._lines.clear()
        if dropped:
            # Kept for the next question; it names the worker.
            logging.getLogger(__name__).warning("%d lines of this worker's log were not passed on", dropped)
        return lines
