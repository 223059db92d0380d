"""progress.json: written while a driver works, removed when it has ended, and never a reason to fail."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.progress import RunProgress, SilentProgress
from pipeline.driver.progress_file import JOB_VARIABLE, ProgressFile, load_progress
from pipeline.errors import StorageError
from pipeline.storage.storage import Storage

PROGRESS = RunProgress(10, 4, 1, 2.5, 3.0, 2, statuses={"ok": 3, "missing": 1}, failure_reasons={"it is gone": 1})


class Noted(SilentProgress):
    """Keeps its calls."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[RunProgress] = []
        self.is_closed = False

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def update(self, progress: RunProgress) -> None:
        self.updates.append(progress)

    def close(self) -> None:
        self.is_closed = True


def wait_until(is_true: Callable[[], Any]) -> None:
    for _ in range(500):
        if is_true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def test_the_file_has_the_displayed_progress_and_is_removed_with_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "photos-1")
    display, storage = Noted(), Storage()
    recorded = ProgressFile(storage, str(tmp_path), "a", display, every_s=0.01, first_after_s=0.0)
    recorded.note("hello")
    recorded.update(PROGRESS)
    wait_until(lambda: load_progress(storage, str(tmp_path), "a"))
    content = load_progress(storage, str(tmp_path), "a") or {}
    assert content["images_done"] == 4
    assert content["statuses"] == {"ok": 3, "missing": 1}
    assert content["failure_reasons"] == {"it is gone": 1}
    assert content["job"] == "photos-1"
    recorded.close()
    assert load_progress(storage, str(tmp_path), "a") is None
    assert (display.notes, display.updates) == (["hello"], [PROGRESS])
    # The driver closes its display itself, after its last note.
    assert not display.is_closed


def test_secrets_in_reasons_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretvalue")
    recorded = ProgressFile(Storage(), str(tmp_path), "a", SilentProgress(), every_s=0.01, first_after_s=0.0)
    recorded.update(RunProgress(1, 1, 1, 1.0, None, 1, failure_reasons={"no key verysecretvalue": 1}))
    wait_until(lambda: load_progress(Storage(), str(tmp_path), "a"))
    text = json.dumps(load_progress(Storage(), str(tmp_path), "a"))
    recorded.close()
    assert "verysecretvalue" not in text
    assert "no key" in text


def test_a_store_that_refuses_it_does_not_end_the_run(tmp_path: Path) -> None:
    class Refusing(Storage):
        attempts = 0

        def write(self, uri: str, payload: bytes) -> None:
            Refusing.attempts += 1
            raise StorageError("no")

        def delete(self, uri: str) -> None:
            raise StorageError("no")

    recorded = ProgressFile(Refusing(), str(tmp_path), "a", SilentProgress(), every_s=0.01, first_after_s=0.0)
    recorded.update(PROGRESS)
    wait_until(lambda: Refusing.attempts > 2)
    recorded.close()
