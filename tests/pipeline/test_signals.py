"""Signals as a flag, as an exception, and ignored."""

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.signals import SIGNALS, StopRequest, is_stop_requested, redirect_lost_terminal

ALL = pytest.mark.parametrize("number", SIGNALS)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@ALL
def test_the_first_signal_is_recorded_and_the_former_handlers_are_restored(number: signal.Signals) -> None:
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
def test_each_signal_interrupts_an_interrupting_block(number: signal.Signals) -> None:
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt), stop.interrupting():
            send(number)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.interrupting():
            raise AssertionError("the block must not begin")


def test_an_interruption_calls_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(StopRequest, "on_interrupt", staticmethod(lambda: calls.append("interrupted")))
    with StopRequest() as stop:
        send(signal.SIGTERM)
        assert calls == []
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt), stop.interrupting():
        send(signal.SIGTERM)
    assert calls == ["interrupted"]


@ALL
def test_a_deferring_block_only_records(number: signal.Signals) -> None:
    with StopRequest() as stop, stop.interrupting():
        with stop.deferring():
            send(number)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_sighup_stays_ignored_under_nohup() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.interrupting():
            stop.install()
            send(signal.SIGHUP)
            assert not stop.is_set
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_outside_the_main_thread_no_handler_is_set() -> None:
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


def test_writing_to_a_lost_terminal_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = pty.openpty()
    with os.fdopen(there, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        redirect_lost_terminal()
        terminal.write("seen")
        terminal.flush()
        assert os.read(here, 10) == b"seen"
        os.close(here)
        redirect_lost_terminal()
        terminal.write("written to nothing")
        terminal.flush()


HANGING = """
import sys
import threading
from pathlib import Path
import pipeline.driver.run_job
from jobs.cli.program import main

def hang(section, storage):
    sys.stderr.write("listing")
    sys.stderr.flush()
    try:
        threading.Event().wait(60)
    finally:
        # The clean-up does not return either, as a pool of reads from a store that does not answer.
        threading.Event().wait(60)

pipeline.driver.run_job.identify_model = hang
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_that_hangs_in_storage(tmp_path: Path, number: signal.Signals) -> None:
    words = ["run", str(tmp_path / "in"), str(tmp_path / "out"), "--weights", "untrained"]
    command = [sys.executable, "-c", HANGING, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.read(7) == "listing"
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(30) == 1
    assert "Stopped" in said
    assert "Traceback" not in said
