"""Runs whose input is still being listed while they work, and a second driver that is refused."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver import run_job as driver
from pipeline.driver.progress import LineProgress, RunProgress, SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import InputError, RunError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.output.results import open_results
from pipeline.planning import manifest as manifests
from pipeline.runs.lease import RunHeldError
from pipeline.storage import local as local_files
from tests.support.fakes.in_process_pool import in_process
from tests.support.fakes.models import LoadFake, write_images

PATIENCE_S = 60.0


class Screen(SilentProgress):
    """Keeps what was shown."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.totals: list[tuple[bool, int]] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def update(self, progress: RunProgress) -> None:
        self.totals.append((progress.is_listing, progress.images_total))


class SlowListing:
    """A folder whose listing stops behind some files until the first shard is committed, and may fail then."""

    def __init__(self, folder: Path, first: int, error: OSError | None = None) -> None:
        self._folder = folder
        self._first = first
        self._error = error
        self._walk = local_files.walk_files
        self.was_overtaken = False
        self.reached = threading.Event()

    def walk(self, folder: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
        for number, found in enumerate(self._walk(folder, *arguments)):
            if number == self._first and folder == str(self._folder / "in"):
                self.reached.set()
                self._wait_for_a_commit()
                if self._error is not None:
                    raise self._error
            yield found

    def _wait_for_a_commit(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.was_overtaken and time.monotonic() < deadline:
            self.was_overtaken = any((self._folder / "out/images").glob("run=*/*.parquet"))
            time.sleep(0.05)


@pytest.fixture(autouse=True)
def _without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run does not wait for the listing, and the manifest's first part holds two shards."""
    monkeypatch.setattr(manifests, "FIRST_PART_IMAGES", 8)
    monkeypatch.setattr(driver, "LISTING_PATIENCE_S", 0.0)


def spec_with(folder: Path) -> JobSpec:
    values = {"input.uri": str(folder / "in"), "output.uri": str(folder / "out"), "model.preset": "htc_lite0_fpn"}
    return load_spec(None, {**values, "model.weights": "untrained", "compute.shard_images": 4})


def image_names(spec: JobSpec) -> list[str]:
    return [Path(uri).name for uri in open_results(spec.output.uri).images().column("uri").to_pylist()]


def test_shards_are_committed_before_the_input_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path / "in", 30)
    (tmp_path / "in/zzz.txt").touch()
    listing = SlowListing(tmp_path, first=21)
    monkeypatch.setattr(local_files, "walk_files", listing.walk)
    screen, spec = Screen(), spec_with(tmp_path)
    summary = run(spec, progress=screen, load_model=LoadFake(), open_pool=in_process())
    assert listing.was_overtaken
    assert (summary.status, summary.exit_code, summary.images) == ("complete", 0, 30)
    assert image_names(spec) == [path.name for path in paths]
    (begun,) = (sentence for sentence in screen.sentences if "work begins while" in sentence)
    assert begun.endswith("the input is still being listed.")
    assert " 0 images" not in begun
    assert f"Run {summary.run}: 30 images in 8 shards." in screen.sentences
    assert "Of the input, files that are not images, left out: 1 .txt." in screen.sentences
    assert all(total < 30 for is_listing, total in screen.totals if is_listing)
    assert screen.totals[-1] == (False, 30)
    assert not [path for path in (tmp_path / "out/runs" / summary.run).iterdir() if path.name == "lease.json"]


def test_a_listing_that_fails_ends_the_run_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "in", 30)
    spec = spec_with(tmp_path)
    with monkeypatch.context() as patch:
        listing = SlowListing(tmp_path, first=21, error=PermissionError(13, "Permission denied"))
        patch.setattr(local_files, "walk_files", listing.walk)
        with pytest.raises(InputError, match="cannot be listed: No permission"):
            run(spec, progress=Screen(), load_model=LoadFake(), open_pool=in_process())
    assert listing.was_overtaken
    (summary_file,) = (tmp_path / "out/runs").glob("*/summary.json")
    assert json.loads(summary_file.read_text())["status"] == "incomplete"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.parquet")}
    summary = run(spec, progress=Screen(), load_model=LoadFake(), open_pool=in_process())
    assert (summary.status, summary.images) == ("complete", 30)
    assert image_names(spec) == [path.name for path in paths]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_second_driver_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", 30)
    listing = SlowListing(tmp_path, first=21)
    monkeypatch.setattr(local_files, "walk_files", listing.walk)
    spec, refusals = spec_with(tmp_path), []

    def start_another() -> None:
        listing.reached.wait(PATIENCE_S)
        try:
            run(spec, progress=Screen(), load_model=LoadFake(), open_pool=in_process())
        except RunHeldError as error:
            refusals.append(str(error))

    second = threading.Thread(target=start_another)
    second.start()
    summary = run(spec, progress=Screen(), load_model=LoadFake(delay_s=0.1), open_pool=in_process())
    second.join()
    assert (summary.status, summary.exit_code) == ("complete", 0)
    assert len(image_names(spec)) == 30
    assert len(refusals) == 1
    assert "working on the run" in refusals[0]


def test_a_driver_that_lost_its_lease_ends_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 8)
    spec = spec_with(tmp_path)

    class TakesOver(Screen):
        """Another driver comes as soon as the first note is shown."""

        def note(self, sentence: str) -> None:
            super().note(sentence)
            for held in (tmp_path / "out/runs").glob("*/lease.json"):
                held.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runs.lease.STALE_AFTER_S", -1.0)
        with pytest.raises(RunError, match=r"The lease .* was removed\. This driver stops"):
            run(spec, progress=TakesOver(), load_model=LoadFake(), open_pool=in_process())
    assert not list((tmp_path / "out/images").rglob("*.parquet"))
    assert not list((tmp_path / "out/runs").glob("*/summary.json"))


def test_the_line_shows_listing_until_the_total_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    line = LineProgress(every_s=0.0)
    line.update(RunProgress(1024, 1024, 0, 8.0, 3.0, 2, is_listing=True))
    line.update(RunProgress(4096, 1024, 0, 8.0, 384.0, 2))
    assert capsys.readouterr().err.splitlines() == [
        "1024/1024+ images, 8.00 images/s, listing, 0 failed",
        "1024/4096 images, 8.00 images/s, ETA 6 min 24 s, 0 failed",
    ]


def test_no_line_is_written_before_anything_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    line = LineProgress(every_s=0.0)
    line.update(RunProgress(0, 0, 0, 0.0, None, 0, is_listing=True))
    assert capsys.readouterr().err == ""
    line.update(RunProgress(256, 0, 0, 0.0, None, 0, is_listing=True))
    assert capsys.readouterr().err == "0/256+ images, starting workers\n"
