"""Ctrl-C while foreign code computes."""

import atexit
import os
import sys
import threading
from collections.abc import Callable

from pipeline.runs.outcomes import EXIT_INTERRUPTED

# Most queries notice within milliseconds; some of DuckDB's operators do not look for minutes.
STOP_WAIT_S = 2.0


def run_interruptibly(action: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run an action in a thread of its own, so that this one is free to notice Ctrl-C.

    Args:
        action: what to run; its exception is raised here.
        stop: asks the action to end; it is given two seconds and left behind then, to die with the process.

    Raises:
        KeyboardInterrupt: Ctrl-C; Python notices it between two steps of its own only, never inside a library.
    """
    failures: list[BaseException] = []
    is_done = threading.Event()

    def work() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - carried over to the caller, whatever it is
            failures.append(error)
        finally:
            is_done.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        # Not Thread.join: in Python 3.11, one that Ctrl-C breaks off takes the thread for ended.
        is_done.wait()
    except KeyboardInterrupt:
        stop()
        if not is_done.wait(STOP_WAIT_S):
            atexit.register(_leave_at_once)
        raise
    if failures:
        raise failures[0]


def _leave_at_once() -> None:
    # A library thread that is still computing aborts the process when it finds the interpreter gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)
