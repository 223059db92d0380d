"""A scheduler in a separate process, whose firings are read from its database."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from jobs.scheduling.firing import Firing
from jobs.scheduling.store import ScheduleStore
from tests.support.servers.real_cluster import wait_until

PATIENCE_S = 240.0


@contextmanager
def scheduler_process(home: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `htc scheduler` for the block, and kill it then; its log is home/scheduler.log."""
    command = [sys.executable, "-m", "jobs", "scheduler", "--home", str(home), *flags]
    with (home / "scheduler.log").open("ab") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def firings(home: Path) -> list[Firing]:
    """Return all firings, newest first."""
    with closing(ScheduleStore(home)) as store:
        return store.history(None, 100)


def kill_scheduler_while_a_run_goes_on(home: Path) -> None:
    """Wait for the first run to begin, and kill the scheduler; the run continues."""
    with scheduler_process(home):
        wait_until(lambda: [firing for firing in firings(home) if firing.state == "running"], PATIENCE_S)


def finish_with_another_scheduler(home: Path) -> str:
    """Let a second scheduler find the run, and wait for its end; returns the log of both."""
    with scheduler_process(home, "--once") as process:
        code = process.wait(PATIENCE_S)
    said = (home / "scheduler.log").read_text()
    if code:
        raise AssertionError(said)
    return said
