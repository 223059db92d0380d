"""progress.json: written while a driver works, removed when it has ended, and never a reason to fail."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.progress import RunProgress, SilentProgress
from pipeline.driver.progress_file import JOB_VARIABLE, VERSION, ProgressFile, load_progress
from pipeline.errors import StorageError
from pipeline.runs.bottleneck import find_bottleneck
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


FIRST_VERSION = """{
  "written": "2026-03-01T12:00:00+00:00", "since": "2026-03-01T11:00:00+00:00", "job": null,
  "images_total": 7, "images_done": 5, "images_failed": 1, "images_per_s": 2.0, "eta_s": 90.0, "workers": 3,
  "is_listing": false, "statuses": {"ok": 4, "unreadable": 1}, "failure_reasons": {"it is torn": 1}
}"""


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    """As drivers wrote it before there was a bottleneck in it."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "progress.json").write_text(FIRST_VERSION)
    content = load_progress(Storage(), str(tmp_path), "a")
    assert content is not None
    assert content["images_done"] == 5
    assert "live" not in content


def test_the_bottleneck_and_the_workers_are_in_the_file(tmp_path: Path) -> None:
    storage = Storage()
    recorded = ProgressFile(storage, str(tmp_path), "a", SilentProgress(), every_s=0.01, first_after_s=0.0)
    bottleneck = find_bottleneck({"infer": 1.0, "read": 1.0})
    recorded.update(replace(PROGRESS, bottleneck=bottleneck, live={"workers": {"alive": 2}}))
    wait_until(lambda: load_progress(storage, str(tmp_path), "a"))
    content = load_progress(storage, str(tmp_path), "a") or {}
    recorded.close()
    assert content["version"] == VERSION
    assert content["bottleneck"]["name"] == "read"
    assert "50%" in content["bottleneck"]["sentence"]
    assert content["live"] == {"workers": {"alive": 2}}
