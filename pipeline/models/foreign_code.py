"""What code that is not ours raises: a model of one's own, its factory, and the modules that they are in.

Such code may raise more than an Exception: `sys.exit` raises SystemExit, and a panic of a library in Rust and a
cancelled task of asyncio are BaseExceptions as well. None of them is a reason to end the process that called it.
"""

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.text import message_of


def is_ctrl_c(error: BaseException) -> bool:
    """Return whether an exception may be the user's Ctrl-C, which ends the program that called the code.

    Python raises KeyboardInterrupt for it on the main thread only; elsewhere the code that was called raised it.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


@contextmanager
def exits_as(error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Raise another error for what the block raises that is no Exception, and so would end the process.

    Args:
        error_of: makes the error; takes the phrase "raised SystemExit: 3 (which ends a program), in m.py, line 12".
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise error_of(f"raised {raised(error)}, in {place_of(error)}") from error


def raised(error: BaseException) -> str:
    """Return an exception of another's code as a phrase: its type and message."""
    name = type(error).__name__
    text = message_of(error, max_chars=400)
    phrase = name if text == name else f"{name}: {text}"
    return f"{phrase} (which ends a program)" if isinstance(error, SystemExit) else phrase


def place_of(error: BaseException) -> str:
    """Return where an exception was raised, "my_models.py, line 12"."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "an unknown place"
