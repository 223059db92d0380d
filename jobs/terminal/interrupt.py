"""Ctrl-C while library code computes."""

import atexit
import os
import sys
import threading
from collections.abc import Callable

from pipeline.runs.outcomes import EXIT_INTERRUPTED

# Most queries stop within milliseconds; some of DuckDB's operators do not check for minutes.
STOP_WAIT_S = 2.0


def run_interruptibly(action: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run an action in its own thread, so that the calling thread can receive Ctrl-C.

    Args:
        action: what to run; its exception is raised here.
        stop: asks the action to end; after `STOP_WAIT_S` the action is abandoned and ends with the process.

    Raises:
        KeyboardInterrupt: Ctrl-C. Python raises it between two bytecodes only, never inside library code.
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
        # Not Thread.join: in Python 3.11, a join that Ctrl-C interrupts marks the thread as ended.
        is_done.wait()
    except KeyboardInterrupt:
        stop()
        if not is_done.wait(STOP_WAIT_S):
            atexit.register(_leave_at_once)
        raise
    if failures:
        raise failures[0]


def _leave_at_once() -> None:
    # A library thread that is still computing would abort the process after the interpreter has shut down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)
