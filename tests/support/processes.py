"""Whether processes that a test has started have ended."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Return whether a process, or that of a pid, runs; one that ends between two questions has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(process) if isinstance(process, int) else process
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def is_any_alive(processes: Iterable[psutil.Process]) -> bool:
    """Return whether one of the processes runs."""
    return any(is_alive(process) for process in processes)


def command_of(process: psutil.Process) -> str:
    """Return a process's command line, empty when it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
