"""Signals as a question, as an exception, and ignored."""

import os
import pty
import signal
import sys
import threading

import pytest

from pipeline.signals import SIGNALS, StopRequest, _let_go_of_terminal, is_stop_requested

ALL = pytest.mark.parametrize("number", SIGNALS)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@ALL
def test_the_first_signal_is_remembered_and_the_former_handlers_come_back(number: signal.Signals) -> None:
    former = {each: signal.getsignal(each) for each in SIGNALS}
    with StopRequest() as stop:
        assert not is_stop_requested()
        send(number)
        assert stop.signal_name == number.name
        assert is_stop_requested()
        send(signal.SIGTERM)
        assert stop.signal_name == number.name
    assert not is_stop_requested()
    assert {each: signal.getsignal(each) for each in SIGNALS} == former


@ALL
def test_a_second_ctrl_c_interrupts(number: signal.Signals) -> None:
    with StopRequest():
        send(number)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@ALL
def test_in_a_block_that_interrupts_each_signal_does(number: signal.Signals) -> None:
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt), stop.interrupting():
            send(number)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.interrupting():
            raise AssertionError("the block must not begin")


@ALL
def test_a_block_that_defers_only_remembers(number: signal.Signals) -> None:
    with StopRequest() as stop, stop.interrupting():
        with stop.deferring():
            send(number)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_sighup_stays_ignored_where_nohup_has_ignored_it() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.interrupting():
            stop.install()
            send(signal.SIGHUP)
            assert not stop.is_set
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_outside_of_the_main_thread_nothing_is_caught() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.is_set)

    former = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_terminal_that_is_gone_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = pty.openpty()
    with os.fdopen(there, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        _let_go_of_terminal()
        terminal.write("seen")
        terminal.flush()
        assert os.read(here, 10) == b"seen"
        os.close(here)
        _let_go_of_terminal()
        terminal.write("written to nothing")
        terminal.flush()
