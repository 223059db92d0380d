"""The state folder of schedules, and the lock that admits one scheduler."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from jobs.terminal.output_file import set_aside
from pipeline.errors import SpecError
from pipeline.storage.uris import home_path

log = logging.getLogger(__name__)


class SchedulerRunningError(SpecError):
    """Another scheduler is running in this folder."""


def resolve_home(home: Path | None) -> Path:
    """Return the folder of schedules, created if missing: --home, $HTC_HOME or ~/.local/state/htc.

    Raises:
        SpecError: it cannot be created.
    """
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = home_path(home or os.environ.get("HTC_HOME") or f"{state}/htc").absolute()
    try:
        # Job specs, logs and the database show what this organisation works on; no other user needs to read them.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"The folder of schedules {folder} cannot be created: {error.strerror}; choose another with --home or "
            "HTC_HOME."
        ) from None
    return folder


@contextlib.contextmanager
def scheduler_lock(home: Path) -> Iterator[None]:
    """Hold the folder's scheduler lock for the block; the system frees it when the process ends, however it ends.

    Raises:
        SchedulerRunningError: another scheduler holds it; the message names the process.
    """
    path = home / "scheduler.lock"
    if path.is_dir():
        try:
            log.error("%s is a folder instead of a file; it was renamed to %s", path, set_aside(path).name)
        except OSError as error:
            raise SpecError(f"{path} is a folder and cannot be renamed: {error.strerror or error}.") from None
    try:
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"{path} cannot be opened: {error.strerror or error}; choose another folder with --home."
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SchedulerRunningError(
                f"A scheduler is already running in {home} ({lock_holder(home) or 'it has just started'}); stop it "
                "first, or give this one its own folder with --home."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock_holder(home: Path) -> str:
    """Return the process that holds the lock, as text; empty if the file is."""
    with contextlib.suppress(OSError):
        return (home / "scheduler.lock").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def is_scheduler_running(home: Path) -> bool:
    """Return whether a scheduler is running in the folder."""
    try:
        with (home / "scheduler.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
