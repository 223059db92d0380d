"""Ctrl-C, SIGTERM and SIGHUP: a question that the driver's loop asks, or an exception while nothing is at stake yet."""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from pipeline.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Handlers belong to the process, and so do the requests whose handlers they are; the newest is the last.
_installed: list["StopRequest"] = []
_was_stopped = threading.Event()


def is_stop_requested() -> bool:
    """Whether one of the signals has come for the code that runs now."""
    return any(request.is_set for request in _installed)


def was_stopped() -> bool:
    """Whether one of the signals has come for any part of this process's work so far."""
    return _was_stopped.is_set()


class StopRequest:
    """Remembers that the run was asked to stop; a second Ctrl-C interrupts at once.

    Use as a context manager; the former handlers come back on leaving. Outside the main thread, where Python takes no
    handlers, nothing is caught. SIGHUP stays ignored where it is when the block begins: so does `nohup`.
    """

    # Called when a signal breaks a step off; the process that is `htc` ends itself if that takes too long.
    when_breaking_off: ClassVar[Callable[[], object]] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._is_interrupting = False
        self.signal_name: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self.signal_name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
            if handlers[signal.SIGHUP] == signal.SIG_IGN:
                del handlers[signal.SIGHUP]
            self._former = handlers
            self.install()
        _installed.append(self)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _installed.remove(self)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, again after other code (Ray, when it starts) has taken them."""
        for number in self._former:
            signal.signal(number, self._note)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Have each of the signals raise KeyboardInterrupt in the block, also one that came before.

        For long steps that nothing is lost by breaking off.
        """
        self._is_interrupting = True
        try:
            if self.is_set:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_interrupting = False

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Have the signals only be remembered in the block, within one that interrupts."""
        former, self._is_interrupting = self._is_interrupting, False
        try:
            yield
        finally:
            self._is_interrupting = former

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_second = self.is_set and number == signal.SIGINT
        self.signal_name = self.signal_name or signal.Signals(number).name
        _was_stopped.set()
        if number == signal.SIGHUP:
            _let_go_of_terminal()
        if self._is_interrupting:
            type(self).when_breaking_off()
        if is_second or self._is_interrupting:
            raise KeyboardInterrupt


@contextmanager
def breaking_off(stop: StopRequest) -> Iterator[StopRequest]:
    """Have the signals that `stop` takes end the block, with one sentence.

    Raises:
        StoppedError: one of them came.
    """
    try:
        with stop.interrupting():
            yield stop
    except KeyboardInterrupt:
        if not stop.is_set:
            raise
        raise StoppedError(
            f"Stopped by {stop.signal_name} before the run could begin; the same command begins it again, or goes on."
        ) from None


def _let_go_of_terminal() -> None:
    """Send what is still written to a terminal that is gone into the void, where writing raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
            poll = select.poll()
            poll.register(number, select.POLLOUT)
            is_gone = any(found & (select.POLLHUP | select.POLLERR) for _, found in poll.poll(0))
        except (OSError, ValueError, AttributeError):
            # No file of the system's: a test's buffer, or a notebook's.
            continue
        if is_gone:
            void = os.open(os.devnull, os.O_WRONLY)
            os.dup2(void, number)
            os.close(void)
