"""runs/<run>/progress.json: the progress of a run, for programs that do not see the driver's terminal.

Written every few seconds while a driver works, replaced as a whole, and removed when the session ends, with success or
not: then summary.json has the numbers. A progress.json without a lease is from a driver that died. Without `version`
it is of the first one, which had neither `bottleneck` nor `live`; programs that know only that one read later ones too.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipeline.driver.progress import ProgressDisplay, RunProgress
from pipeline.errors import StorageError
from pipeline.output.json_files import read_derived_json, write_json
from pipeline.output.layout import run_folder
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

log = logging.getLogger(__name__)

# Soon enough for the user who has just started it; then often enough for `htc top`. A store that takes money for
# requests takes ten cents a day for these.
FIRST_AFTER_S = 3.0
EVERY_S = 5.0
VERSION = 2
# What every version has.
_REQUIRED = frozenset(
    {
        *("written", "images_total", "images_done", "images_failed", "images_per_s", "eta_s", "workers"),
        *("is_listing", "statuses", "failure_reasons"),
    }
)
# Storage that hangs must not delay the end of a run.
JOIN_S = 5.0
# Set for the jobs that `htc submit` starts, so that the output names the job that works on it.
JOB_VARIABLE = "HTC_JOB"


class ProgressFile:
    """A `ProgressDisplay` that also writes progress.json, from its own thread, because storage may be slow."""

    def __init__(
        self,
        storage: Storage,
        output_uri: str,
        run: str,
        display: ProgressDisplay,
        *,
        every_s: float = EVERY_S,
        first_after_s: float = FIRST_AFTER_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._storage = storage
        self._uri = progress_uri(output_uri, run)
        self._display = display
        self._every_s = every_s
        self._first_after_s = first_after_s
        self._clock = clock
        self._since = clock()
        self._progress: RunProgress | None = None
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="progress file", daemon=True)
        self._thread.start()

    def note(self, sentence: str) -> None:
        """Pass the sentence to the display."""
        self._display.note(sentence)

    def update(self, progress: RunProgress) -> None:
        """Keep it for the next write, and pass it to the display."""
        self._progress = progress
        self._display.update(progress)

    def close(self) -> None:
        """Stop writing and remove the file; the display stays open."""
        self._is_ended.set()
        self._thread.join(JOIN_S)
        with suppress(StorageError):
            self._storage.delete(self._uri)

    def _keep_writing(self) -> None:
        wait_s = self._first_after_s
        while not self._is_ended.wait(wait_s):
            wait_s = self._every_s
            if self._progress is not None:
                self._write(self._progress)

    def _write(self, progress: RunProgress) -> None:
        content = {
            "version": VERSION,
            "written": self._clock().isoformat(),
            "since": self._since.isoformat(),
            "job": os.environ.get(JOB_VARIABLE),
            **asdict(progress),
        }
        try:
            write_json(self._storage, self._uri, content, is_redacted=True, is_compact=True)
        except StorageError as error:
            # The run does not need it.
            log.info("progress.json was not written: %s", error)


def progress_uri(output_uri: str, run: str) -> str:
    """Return the URI of a run's progress.json."""
    return join(run_folder(output_uri, run), "progress.json")


def load_progress(storage: Storage, output_uri: str, run: str) -> Mapping[str, Any] | None:
    """Read a run's progress.json; None when there is none, or when it is damaged, which is logged.

    Returns:
        written, since (UTC, ISO 8601), job (the id, or None), and the fields of `RunProgress`; those of a first
        version lack `bottleneck` and `live`.

    Raises:
        StorageError: storage failed.
    """
    content = read_derived_json(storage, progress_uri(output_uri, run))
    if content is None or not _is_valid(content):
        return None
    return content


def _is_valid(content: Mapping[str, Any]) -> bool:
    if not content.keys() >= _REQUIRED:
        return False
    try:
        datetime.fromisoformat(content["written"])
    except (TypeError, ValueError):
        return False
    return True


def remove_progress(storage: Storage, output_uri: str, run: str) -> None:
    """Remove the progress.json of a driver that died when all rows were committed."""
    with suppress(StorageError):
        storage.delete(progress_uri(output_uri, run))
