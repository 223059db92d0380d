"""Firings on the scheduler's own machine: each an `htc run` process of its own, which outlives the scheduler.

A firing has a folder with the resolved spec, the log and, at the end, what came of it. Its process holds a lock in it
that it got from the scheduler open, before it was born, and that the system frees when it dies: so that whoever looks
can tell a run that goes on from one that is gone, and nobody starts a second.
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

from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.launching import Sight
from jobs.scheduling.schedule import load_job
from pipeline.callers_code import worker_search_path
from pipeline.config import JobSpec
from pipeline.errors import RunError

log = logging.getLogger(__name__)

SPEC_FILE = "job.yaml"
LOG_FILE = "log.txt"
LOCK_FILE = "lock"
PROCESS_FILE = "process.txt"
ENDING_FILE = "ending.json"


def firing_folder(home: Path, firing: str) -> Path:
    """Return where a firing's log and spec are."""
    return home / "firings" / firing


# -P: the scheduler's folder is not searched for modules.
RUNNER = (sys.executable, "-P", "-m", "jobs.scheduling.runner")


class LocalRuns:
    """Starts, finds and stops runs on this machine; a `Launcher`.

    runner: the command of a run's process; see `jobs.scheduling.runner`.
    """

    def __init__(self, home: Path, runner: Sequence[str] = RUNNER) -> None:
        self._home = home
        self._runner = runner

    def start(self, firing: Firing) -> str:
        """Start the run, or find it going or ended."""
        job = load_job(firing.schedule)
        folder = firing_folder(self._home, firing.name)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (folder / LOCK_FILE).open("a+b") as lock:
                if (folder / ENDING_FILE).exists() or not _try_lock(lock):
                    return _handle(folder)
                return self._launch(firing, job, folder, lock)
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise RunError(f"The run {firing.name} cannot be started in {folder}: {reason}.") from error

    def look(self, firing: Firing) -> Sight:
        """Look for its ending, else for the lock of its process."""
        folder = firing_folder(self._home, firing.name)
        # The lock first: the ending is written while it is held.
        is_going = _is_locked(folder / LOCK_FILE)
        ending = read_ending(folder)
        if ending is not None:
            return Sight("ended", ending)
        return Sight("going" if is_going else "gone")

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        """Send SIGTERM, on which the run ends as interrupted, or SIGKILL."""
        folder = firing_folder(self._home, firing.name)
        if not _is_locked(folder / LOCK_FILE):
            return
        try:
            process = int((folder / PROCESS_FILE).read_text(encoding="ascii"))
            os.kill(process, signal.SIGKILL if is_forced else signal.SIGTERM)
        except (OSError, ValueError) as error:
            log.info("%s has no process to stop yet: %s", firing.name, error)

    def _launch(self, firing: Firing, job: JobSpec, folder: Path, lock: IO[bytes]) -> str:
        (folder / PROCESS_FILE).unlink(missing_ok=True)
        text = yaml.safe_dump(job.to_dict(), sort_keys=False, allow_unicode=True)
        (folder / SPEC_FILE).write_text(text, encoding="utf-8")
        command = [*self._runner, str(folder), str(lock.fileno()), firing.name]
        with (folder / LOG_FILE).open("ab") as output:
            # A session of its own: Ctrl-C at the scheduler's terminal is not meant for it.
            child = subprocess.Popen(  # noqa: S603 - this very interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        # Nobody else can bury it; how it ended is in its folder.
        threading.Thread(target=child.wait, daemon=True, name=firing.name).start()
        return str(child.pid)


def read_ending(folder: Path) -> Ending | None:
    """Read how a run ended; None while it has not said so."""
    try:
        tree = json.loads((folder / ENDING_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Ending(tree["outcome"], tree["reason"], tree["exit_code"], tree["counts"])


def _environment() -> dict[str, str]:
    """This process's environment; a program that is not installed is found by it as well."""
    paths = [*worker_search_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if paths else dict(os.environ)


def _handle(folder: Path) -> str:
    try:
        return (folder / PROCESS_FILE).read_text(encoding="ascii")
    except OSError:
        return ""


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:
        return False
