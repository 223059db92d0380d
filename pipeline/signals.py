"""Ctrl-C and SIGTERM as a question that the driver's loop asks, instead of an exception in the middle of it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM unwind the block as Ctrl-C does, so that what is held is let go.

    For the time before and after the loop that asks: by itself SIGTERM ends a process on the spot, and Ray's handler
    does the same. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class StopRequest:
    """Remembers that somebody asked the run to stop; a second Ctrl-C interrupts at once.

    Use as a context manager; the former handlers come back on leaving. Outside the main thread, where Python
    takes no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self.signal_name: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self.signal_name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, again after somebody else (Ray, when it starts) has taken them."""
        if self._former:
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
