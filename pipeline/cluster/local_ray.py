"""A Ray on this machine: its temporary folder, its processes and the thread that starts it, all removed at the end.

Ray makes its folders writable for all users, and keeps those of every session. Here they are in a folder that only its
owner can enter. It names the process that it belongs to, so that the next run removes it when that process was killed.
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
"""An environment variable: when set, the folder with Ray's logs is kept, for finding errors of a worker."""
_KEPT_FILE = "kept"
# sun_path of unix(7) without the closing zero; macOS has four less.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103
# /htc-123456, and below it Ray's longest: /ray/session_2026-11-25_23-59-59_123456_1234567/sockets/plasma_store
LONGEST_BELOW_BASE = 11 + 68
# A folder without an owner file is being created, or its process was killed while it created it.
MIN_AGE_WITHOUT_OWNER_S = 3600.0
# Ray's processes normally end within this time.
ENDING_PATIENCE_S = 1.0
# A normal start ends within this time, and can then be shut down normally.
START_PATIENCE_S = 0.5
GIVING_UP_S = 0.5
_POLL_S = 0.05
# What Ray's head node starts and waits for although nothing uses it here: the autoscaler, the process that passes the
# workers' logs on (`log_to_driver` is off), and the dashboard's server, which without the dashboard only collects usage
# statistics. They took 2.7 of the 7.1 CPU seconds of a start with two idle workers, two fifths of its time, and
# 160 MiB.
UNUSED_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{6}}")


def choose_base() -> Path:
    """Choose the parent of the temporary folder: Ray's own setting, the system's, or one with a shorter name.

    Raises:
        RunError: none of them is short enough for the addresses of Ray's sockets, and writable.
    """
    wanted = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108  # nosec B108
    folders = [Path(name).absolute() for name in wanted if name]
    for folder in folders:
        fits = len(os.fsencode(folder)) + LONGEST_BELOW_BASE <= MAX_SOCKET_PATH
        if fits and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    tried = ", ".join(map(str, dict.fromkeys(folders)))
    raise RunError(
        "Ray needs a writable folder for temporary files whose name has at most "
        f"{MAX_SOCKET_PATH - LONGEST_BELOW_BASE} characters. None of {tried} is one; set TMPDIR to such a folder."
    )


@contextmanager
def ray_folder() -> Iterator[Path]:
    """Create a folder for a Ray of this process that only this user can enter; remove it after the block.

    Raises:
        RunError: it cannot be created anywhere.
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
            log.warning("Ray's folder is kept: %s", folder)
        else:
            _remove(folder)


def remove_dead_folders(base: Path) -> None:
    """Remove the folders in `base` of this user's processes that were killed."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _NAME.fullmatch(folder.name) and _is_dead(folder) and not (folder / _KEPT_FILE).exists():
                log.info("removing %s of a process that was killed", folder)
                _remove(folder)


def end_processes(folder: Path, *, patience_s: float = ENDING_PATIENCE_S) -> None:
    """End the children of this process whose arguments name the folder, and their children.

    The processes of a Ray that was shut down end by themselves, within `patience_s`.
    """
    import psutil

    family = _family(folder)
    _, alive = psutil.wait_procs(family, timeout=patience_s)
    while alive:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=ENDING_PATIENCE_S)
        # A start that is in progress may have begun further ones.
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
            raise RunError(f"Ray's temporary folder cannot be created in {base}: {error.strerror}.") from error
        try:
            owner = {"host": socket.gethostname(), "process": identify_process()}
            (folder / OWNER_FILE).write_text(json.dumps(owner), encoding="utf-8")
        except OSError as error:
            _remove(folder)
            raise RunError(f"Ray's temporary folder cannot be created in {base}: {error.strerror}.") from error
        return folder


def _is_dead(folder: Path) -> bool:
    status = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.geteuid():
        return False
    try:
        owner = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return is_dead_here(str(owner["host"]), str(owner["process"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Other programs' folders may have such a name: only one that holds nothing but an owner file is one of these.
        names = {each.name for each in folder.iterdir()}
        return names <= {OWNER_FILE} and time.time() - status.st_mtime > MIN_AGE_WITHOUT_OWNER_S


def _remove(folder: Path) -> None:
    # A process that was killed may still be creating a file.
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_POLL_S)
    log.info("%s could not be removed", folder)


@contextmanager
def unused_services_left_out() -> Iterator[None]:
    """Have a Ray that is started in the block leave out UNUSED_SERVICES; joining a cluster is not affected.

    Ray has no setting for this. Where another release has no such method, it starts what it starts.
    """
    from ray._private.node import Node

    found = {name: getattr(Node, name) for name in UNUSED_SERVICES if hasattr(Node, name)}
    for name in found:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in found.items():
            setattr(Node, name, method)


def _start_nothing(node: object, **options: object) -> None:
    """Stand in for a method of Ray's node that starts a service."""


class RayThread:
    """Connects to Ray in its own thread, so that a request to stop takes effect meanwhile.

    The thread lives as long as the connection: Linux ends processes with the thread that started them when they request
    it (prctl(2), PR_SET_PDEATHSIG), as Ray's do.
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
        """Whether the attempt to connect has not ended yet."""
        return not self._connected.done()

    def give_up(self) -> None:
        """Wait up to GIVING_UP_S for the failure of a connection whose processes were ended."""
        with suppress(TimeoutError):
            self._connected.exception(GIVING_UP_S)

    def wait(self) -> None:
        """Wait until Ray is connected.

        Raises:
            RunError: this process was asked to stop, and connecting takes longer than START_PATIENCE_S after that.
            BaseException: the exception of the attempt to connect.
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
        """Let the thread end; call it when the connection is closed."""
        self._may_end.set()

    def _hold(self) -> None:
        try:
            with unused_services_left_out():
                self._connect()
        except BaseException as error:  # noqa: BLE001 - passed to the thread that waits
            self._connected.set_exception(error)
        else:
            self._connected.set_result(None)
            self._may_end.wait()
