"""Ctrl-C and SIGTERM as a question that the driver's loop asks, instead of an exception in the middle of it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
