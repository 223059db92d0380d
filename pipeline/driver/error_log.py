"""Tracebacks of unforeseen exceptions, kept in the run's folder."""

import logging

from pipeline.errors import StorageError
from pipeline.output.layout import run_folder
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

log = logging.getLogger(__name__)

MAX_TRACEBACKS = 20


class ErrorLog:
    """Writes the first MAX_TRACEBACKS tracebacks of a session to runs/<run>/errors; all of them are logged."""

    def __init__(self, storage: Storage, output_uri: str, run: str) -> None:
        self._storage = storage
        self._folder = join(run_folder(output_uri, run), "errors")
        self._count = 0

    @property
    def uri(self) -> str | None:
        """The folder of the tracebacks; None without any."""
        return self._folder if self._count else None

    def add(self, where: str, traceback: str | None) -> None:
        """Keep one traceback; nothing happens for None.

        Args:
            where: an image's URI, or the shard.
        """
        if traceback is None:
            return
        log.error("%s:\n%s", where, traceback)
        self._count += 1
        if self._count > MAX_TRACEBACKS:
            return
        uri = join(self._folder, f"error-{self._count:02d}.txt")
        try:
            self._storage.write(uri, f"{where}\n\n{traceback}".encode("utf-8", "backslashreplace"))
        except StorageError:
            log.exception("the traceback could not be written to %s", uri)
