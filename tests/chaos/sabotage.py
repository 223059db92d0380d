"""Sabotage from inside the processes of a run: kills at writes, a full disk. The program itself contains none of it."""

import errno
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

from pipeline.storage import local as local_files
from pipeline.storage.storage import Storage
from tests.chaos.plan import Plan, Strike


def sabotage(plan: Plan, driver_pid: int) -> None:
    """Prepare this process, the driver's or a worker's."""
    if plan.strike is not None:
        _strike_at_writes(plan.strike, driver_pid)
    if plan.full_disk:
        _fill_disk(Path(plan.full_disk))


def _strike_at_writes(strike: Strike, driver_pid: int) -> None:
    write = Storage.write

    def write_or_die(storage: Storage, uri: str, *arguments: Any, **keywords: Any) -> Any:
        is_match = re.search(strike.keys, uri) is not None
        if is_match and strike.moment == "before":
            _kill_once(strike, driver_pid)
        written = write(storage, uri, *arguments, **keywords)
        if is_match and strike.moment == "after":
            _kill_once(strike, driver_pid)
        return written

    setattr(Storage, "write", write_or_die)  # noqa: B010 - a plain assignment is one that mypy refuses


def _kill_once(strike: Strike, driver_pid: int) -> None:
    try:
        Path(strike.mark).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(driver_pid if strike.victim == "driver" else os.getpid(), signal.SIGKILL)
    # A worker whose driver was killed stops here as well: the raylet, and with it the worker, ends in a moment.
    threading.Event().wait()


def _fill_disk(mark: Path) -> None:
    write_file = local_files.write_file

    def write_unless_full(path: str, *arguments: Any, **keywords: Any) -> Any:
        if mark.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return write_file(path, *arguments, **keywords)

    local_files.write_file = write_unless_full
