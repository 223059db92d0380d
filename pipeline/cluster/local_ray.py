"""What a Ray that is started here leaves on this machine: a folder and processes, both gone when it ends.

Ray makes its folders writable for all users, and keeps every session's. Ours are in a folder that only its owner can
enter. It says which process it belongs to, so that the next run removes it when that process was killed.
"""

import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RunError
from pipeline.runs.process_id import identify_process, is_dead_here
from pipeline.signals import is_stop_requested

if TYPE_CHECKING:
    import psutil

log = logging.getLogger(__name__)

PREFIX = "htc-"
OWNER_FILE = "owner.json"
KEEP_VARIABLE = "HTC_KEEP_RAY_FOLDER"
"""Of the environment: when set, the folder with Ray's logs stays, for those who look for a fault of a worker."""
_KEPT_FILE = "kept"
# sun_path of unix(7) without the closing zero; macOS has four less.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103
# /htc-123456, and below it Ray's longest: /ray/session_2026-11-25_23-59-59_123456_1234567/sockets/plasma_store
_BELOW_BASE = 11 + 68
# A folder without an owner's file is being made, or was when its process was killed.
MIN_AGE_WITHOUT_OWNER_S = 3600.0
# Sound processes of Ray are gone by then.
ENDING_PATIENCE_S = 1.0
# An ordinary start is through by then, and can be undone in the ordinary way.
START_PATIENCE_S = 0.5
GIVING_UP_S = 0.5
_POLL_S = 0.05
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{6}}")


def choose_base() -> Path:
    """Choose the folder for temporary folders: Ray's own setting, the system's, or one with a shorter name.

    Raises:
        RunError: none of them is short enough for the addresses of Ray's sockets, and writable.
    """
    wanted = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108  # nosec B108
    folders = [Path(name).absolute() for name in wanted if name]
    for folder in folders:
        fits = len(os.fsencode(folder)) + _BELOW_BASE <= MAX_SOCKET_PATH
        if fits and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise RunError(
        f"Ray needs a folder for temporary files that is writable and whose name has at most "
        f"{MAX_SOCKET_PATH - _BELOW_BASE} characters, and none of {', '.join(map(str, dict.fromkeys(folders)))} is; "
        "set TMPDIR to one."
    )


@contextmanager
def ray_folder() -> Iterator[Path]:
    """Make a folder for a Ray of this process, which only this user can enter; it is removed after the block.

    Raises:
        RunError: there is no place for it.
    """
    base = choose_base()
    remove_dead_folders(base)
    folder = _make_folder(base)
    try:
        yield folder
    finally:
        end_processes(folder)
        if os.environ.get(KEEP_VARIABLE):
            (folder / _KEPT_FILE).touch()
            log.warning("Ray's folder stays: %s", folder)
        else:
            _remove(folder)


def remove_dead_folders(base: Path) -> None:
    """Remove what killed processes of this user left in `base`."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _NAME.fullmatch(folder.name) and _is_dead(folder) and not (folder / _KEPT_FILE).exists():
                log.info("removing %s, which a killed process left", folder)
                _remove(folder)


def end_processes(folder: Path, *, patience_s: float = ENDING_PATIENCE_S) -> None:
    """End the children of this process whose arguments name the folder, and their children.

    Those of a Ray that was shut down end by themselves, within `patience_s`.
    """
    import psutil

    family = _family(folder)
    _, alive = psutil.wait_procs(family, timeout=patience_s)
    while alive:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=ENDING_PATIENCE_S)
        # A start that is under way may have begun further ones.
        alive = _family(folder)


def _family(folder: Path) -> "list[psutil.Process]":
    import psutil

    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _make_folder(base: Path) -> Path:
    while True:
        folder = base / f"{PREFIX}{secrets.token_hex(3)}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"Ray's temporary folder cannot be made in {base}: {error.strerror}.") from error
        try:
            owner = {"host": socket.gethostname(), "process": identify_process()}
            (folder / OWNER_FILE).write_text(json.dumps(owner), encoding="utf-8")
        except OSError as error:
            _remove(folder)
            raise RunError(f"Ray's temporary folder cannot be made in {base}: {error.strerror}.") from error
        return folder


def _is_dead(folder: Path) -> bool:
    status = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.geteuid():
        return False
    try:
        owner = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return is_dead_here(str(owner["host"]), str(owner["process"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Other programs' folders may have such a name: only one that holds nothing but what we make is ours.
        names = {each.name for each in folder.iterdir()}
        return names <= {OWNER_FILE} and time.time() - status.st_mtime > MIN_AGE_WITHOUT_OWNER_S


def _remove(folder: Path) -> None:
    # A process that was killed may still be in the middle of making a file.
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_POLL_S)
    log.info("%s could not be removed", folder)


class RayThread:
    """Connects to Ray in a thread of its own, so that a request to stop is heard meanwhile.

    The thread lives as long as the connection: Linux ends processes with the thread that started them, where that was
    asked for (prctl(2), PR_SET_PDEATHSIG), as Ray does.
    """

    def __init__(self, connect: Callable[[], object]) -> None:
        self._connect = connect
        self._connected: Future[None] = Future()
        self._may_end = threading.Event()
        threading.Thread(target=self._hold, daemon=True, name="ray").start()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to close."""
        return self._connected.done() and self._connected.exception() is None

    @property
    def is_connecting(self) -> bool:
        """Whether it is still open what comes of it."""
        return not self._connected.done()

    def give_up(self) -> None:
        """Wait a moment for the failure of a connection whose processes were ended."""
        with suppress(TimeoutError):
            self._connected.exception(GIVING_UP_S)

    def wait(self) -> None:
        """Wait until Ray is there.

        Raises:
            RunError: this process was asked to stop, and it takes longer than that may take.
            BaseException: what connecting raised.
        """
        give_up: float | None = None
        while not self._connected.done():
            if is_stop_requested():
                give_up = give_up or time.monotonic() + START_PATIENCE_S
                if time.monotonic() > give_up:
                    raise RunError("Stopped while Ray was starting.")
            with suppress(TimeoutError):
                self._connected.exception(_POLL_S)
        self._connected.result()

    def end(self) -> None:
        """Let the thread end; to be called when the connection is closed."""
        self._may_end.set()

    def _hold(self) -> None:
        try:
            self._connect()
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            self._connected.set_exception(error)
        else:
            self._connected.set_result(None)
            self._may_end.wait()
