"""Ctrl-C, SIGTERM and SIGHUP: as a flag that the driver's loop polls, or as an exception before the run begins."""

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

# Signal handlers belong to the process, so this list does too; the newest request is the last.
_installed: list["StopRequest"] = []
_was_stopped = threading.Event()


def is_stop_requested() -> bool:
    """Return whether an active `StopRequest` has received a signal."""
    return any(request.is_set for request in _installed)


def was_stopped() -> bool:
    """Return whether any `StopRequest` of this process has ever received a signal."""
    return _was_stopped.is_set()


class StopRequest:
    """Records that the run was asked to stop; a second Ctrl-C raises KeyboardInterrupt at once.

    Use as a context manager; leaving restores the former handlers. Outside the main thread, where Python allows no
    handlers, it records nothing. If SIGHUP is ignored when the block begins, as under `nohup`, it stays ignored.
    """

    # Called when a signal interrupts a step; `htc` sets it to end the process if the interruption takes too long.
    on_interrupt: ClassVar[Callable[[], object]] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._is_interrupting = False
        self.signal_name: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether a signal was received."""
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
        """Set the signal handlers; call again after other code (Ray, when it starts) has replaced them."""
        for number in self._former:
            signal.signal(number, self._note)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise KeyboardInterrupt in the block for each signal, also for one that came before.

        For long steps whose interruption loses nothing.
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
        """Only record signals in the block; for use inside `interrupting`."""
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
            redirect_lost_terminal()
        if self._is_interrupting:
            type(self).on_interrupt()
        if is_second or self._is_interrupting:
            raise KeyboardInterrupt


@contextmanager
def interruptible(stop: StopRequest) -> Iterator[StopRequest]:
    """End the block with a StoppedError when `stop` receives a signal.

    Raises:
        StoppedError: a signal came.
    """
    try:
        with stop.interrupting():
            yield stop
    except KeyboardInterrupt:
        if not stop.is_set:
            raise
        raise StoppedError(
            f"Stopped by {stop.signal_name} before the run could begin; run the same command again to start or resume "
            "it."
        ) from None


def redirect_lost_terminal() -> None:
    """Redirect stdout and stderr to os.devnull where their terminal is gone, so that writing to them raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
            poll = select.poll()
            poll.register(number, select.POLLOUT)
            is_gone = any(found & (select.POLLHUP | select.POLLERR) for _, found in poll.poll(0))
        except (OSError, ValueError, AttributeError):
            # No file descriptor: the buffer of a test or a notebook.
            continue
        if is_gone:
            void = os.open(os.devnull, os.O_WRONLY)
            os.dup2(void, number)
            os.close(void)
