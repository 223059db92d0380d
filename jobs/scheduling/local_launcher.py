"""Firings on the scheduler's own machine: each an `htc run` process of its own, which outlives the scheduler.

A firing has a folder with the resolved spec, the log and, at the end, the ending. Its process inherits an open, locked
file from the scheduler; the system frees the lock when the process dies. So any scheduler can distinguish a live run
from a dead one, and no run is started twice.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import yaml

from jobs.scheduling.deadlines import with_deadline
from jobs.scheduling.firing import Ending, Firing, ending_from
from jobs.scheduling.launcher import LaunchStatus
from jobs.scheduling.schedule import load_job
from jobs.terminal.output_file import atomic_output, set_aside
from pipeline.cluster.search_path import worker_search_path
from pipeline.errors import RunError
from pipeline.job_spec.job import JobSpec

log = logging.getLogger(__name__)

SPEC_FILE = "job.yaml"
LOG_FILE = "log.txt"
LOCK_FILE = "lock"
PROCESS_FILE = "process.txt"
ENDING_FILE = "ending.json"


def firing_folder(home: Path, firing: str) -> Path:
    """Return the folder of a firing's log and spec."""
    return home / "firings" / firing


# -P: the scheduler's folder is not searched for modules.
RUNNER = (sys.executable, "-P", "-m", "jobs.entrypoints.scheduled_run")


class LocalLauncher:
    """Starts, finds and stops runs on this machine; a `Launcher`.

    runner: the command of a run's process; see `jobs.entrypoints.scheduled_run`.
    """

    def __init__(self, home: Path, runner: Sequence[str] = RUNNER) -> None:
        self._home = home
        self._runner = runner

    def start(self, firing: Firing) -> str:
        """Start the run, or find that it is running or has ended."""
        job = with_deadline(load_job(firing.schedule), firing)
        folder = firing_folder(self._home, firing.name)
        try:
            if not folder.is_dir() and folder.exists():
                _set_aside(folder)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_odd(folder / LOCK_FILE):
                _set_aside(folder / LOCK_FILE)
            with (folder / LOCK_FILE).open("a+b") as lock:
                if read_ending(folder) is not None or not _try_lock(lock):
                    return _handle(folder)
                return self._launch(firing, job, folder, lock)
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise RunError(f"The run {firing.name} cannot be started in {folder}: {reason}.") from error

    def check(self, firing: Firing) -> LaunchStatus:
        """Read its ending, or check the lock of its process."""
        folder = firing_folder(self._home, firing.name)
        # The lock first: the ending is written while the process holds it.
        try:
            is_active = _is_locked(folder / LOCK_FILE)
        except OSError as error:
            return LaunchStatus("unseen", problem=f"{folder / LOCK_FILE} cannot be read: {error.strerror or error}")
        ending = read_ending(folder)
        if ending is not None:
            return LaunchStatus("ended", ending)
        return LaunchStatus("going" if is_active else "gone")

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        """Send SIGTERM, which ends the run as interrupted, or SIGKILL."""
        folder = firing_folder(self._home, firing.name)
        try:
            if not _is_locked(folder / LOCK_FILE):
                return
            process = int((folder / PROCESS_FILE).read_text(encoding="ascii"))
            # A damaged file may hold any number: 0 and -1 would signal this process group, or every process.
            if process <= 1 or not _is_run(process, folder):
                raise ValueError(f"{process} is not its process")
            os.kill(process, signal.SIGKILL if is_forced else signal.SIGTERM)
        except (OSError, ValueError, OverflowError) as error:
            log.info("%s has no process to stop yet: %s", firing.name, error)

    def _launch(self, firing: Firing, job: JobSpec, folder: Path, lock: IO[bytes]) -> str:
        for name in (ENDING_FILE, PROCESS_FILE, SPEC_FILE, LOG_FILE):
            path = folder / name
            # An ending that exists here could not be read.
            if _is_odd(path) or (name == ENDING_FILE and path.exists()):
                _set_aside(path)
        (folder / PROCESS_FILE).unlink(missing_ok=True)
        text = yaml.safe_dump(job.to_dict(), sort_keys=False, allow_unicode=True)
        with atomic_output(folder / SPEC_FILE) as file:
            file.write(text.encode())
        command = [*self._runner, str(folder), str(lock.fileno()), firing.name]
        with (folder / LOG_FILE).open("ab") as output:
            # A session of its own, so that Ctrl-C at the scheduler's terminal does not reach it.
            child = subprocess.Popen(  # noqa: S603 - this very interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        # Reaps the child, which would stay a zombie; how it ended is in its folder.
        threading.Thread(target=child.wait, daemon=True, name=firing.name).start()
        return str(child.pid)


def read_ending(folder: Path) -> Ending | None:
    """Read how a run ended; None while there is no ending, or if it cannot be read.

    A run whose ending is lost is started again, finds that all rows are committed, and ends as it did.
    """
    path = folder / ENDING_FILE
    if _is_odd(path):
        log.error("%s is not a file, and is treated as missing", path)
        return None
    try:
        return ending_from(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.error("%s is damaged, and is treated as missing: %s", path, error)
        return None


def _is_odd(path: Path) -> bool:
    """Return whether something other than a file has the name: a folder, a dangling link, a pipe."""
    return os.path.lexists(path) and not path.is_file()


def _set_aside(path: Path) -> None:
    log.error("%s is damaged; it is now %s", path, set_aside(path).name)


def _environment() -> dict[str, str]:
    """Return this process's environment, with a search path that also finds a program that is not installed."""
    paths = [*worker_search_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if paths else dict(os.environ)


def _handle(folder: Path) -> str:
    try:
        return (folder / PROCESS_FILE).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _is_run(process: int, folder: Path) -> bool:
    """Return whether a process was started with this folder; True where the system does not show command lines."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self/cmdline").exists()
    return os.fsencode(str(folder)) in command.split(b"\0")


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    if _is_odd(path):
        return False
    try:
        with path.open("rb") as lock:
            return not _try_lock(lock)
    except (FileNotFoundError, NotADirectoryError):
        return False
