"""A complete run on one machine: images in, tables out, and the same command again."""

from pathlib import Path
from shutil import copy

import pytest

from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import RunMismatchError
from pipeline.models.load_function import identify_function
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.e2e_specs import image_rows, instance_rows, spec_with, stable, statuses
from tests.support.fakes.models import LoadFake, write_image, write_images
from tests.support.paths import DATA

PHOTOS = DATA / "images"

pytestmark = pytest.mark.usefixtures("ray_session")


class Notes(SilentProgress):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.mark.slow
def test_real_photos_through_the_real_network(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("p0_397133.jpg", "e3_cmyk.jpg", "e4_exif6.jpg", "e1_gray.jpg", "e0_tiny_47x33.png"):
        copy(PHOTOS / name, tmp_path / "in")
    spec = spec_with(tmp_path, model__score_threshold=0.0, model__max_detections=5, compute__workers=1)
    notes = Notes()
    summary = run(spec, progress=notes)
    images, instances = image_rows(spec), instance_rows(spec)
    assert (summary.status, summary.exit_code, summary.statuses) == ("complete", 0, {"ok": 5})
    assert [row["status"] for row in images] == ["ok"] * 5
    assert sum(int(str(row["instances"])) for row in images) == len(instances) == summary.instances > 0
    assert "The model's weights are untrained: its detections mean nothing." in notes.sentences
    for image in images:
        own = [row for row in instances if row["image_id"] == image["image_id"]]
        assert [row["instance"] for row in own] == list(range(len(own)))
        assert [row["score"] for row in own] == sorted((row["score"] for row in own), reverse=True)
        assert all(row["mask"]["size"] == [image["height"], image["width"]] for row in own)  # type: ignore[index]


def test_the_same_command_again_redoes_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 10)
    spec = spec_with(tmp_path)
    first = run(spec, progress=SilentProgress(), load_model=LoadFake())
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    notes = Notes()
    again = run(spec, progress=notes, load_model=LoadFake(start_deed="value_error"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == parts
    assert (again.run, again.exit_code, again.statuses) == (first.run, 0, {"ok": 10})
    assert again.session_images == 0
    assert any("complete already" in sentence for sentence in notes.sentences)


def test_fresh_starts_a_second_run_with_the_same_rows(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 6)
    spec = spec_with(tmp_path)
    first = run(spec, progress=SilentProgress(), load_model=LoadFake())
    second = run(spec, fresh=True, progress=SilentProgress(), load_model=LoadFake())
    assert second.run != first.run
    assert stable(image_rows(spec, second.run)) == stable(image_rows(spec, first.run))
    assert stable(instance_rows(spec, second.run)) == stable(instance_rows(spec, first.run))


def test_another_model_or_threshold_is_refused_by_name(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    run(spec_with(tmp_path), progress=SilentProgress(), load_model=LoadFake())
    other = spec_with(tmp_path, model__score_threshold=0.5)
    with pytest.raises(RunMismatchError, match=r"score_threshold: 0\.05 then, 0\.5 now"):
        run(other, progress=SilentProgress(), load_model=LoadFake())


@pytest.mark.parametrize(("budget", "status", "exit_code"), [(0.4, "complete", 0), (0.3, "over_error_budget", 1)])
def test_bad_images_are_rows_and_the_budget_decides(tmp_path: Path, budget: float, status: str, exit_code: int) -> None:
    write_images(tmp_path / "in", 6)
    (tmp_path / "in" / "empty.jpg").touch()
    (tmp_path / "in" / "text.png").write_text("these are words")
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "image-000.png").read_bytes()[:700])
    write_image(tmp_path / "in" / "large.png", (300, 400))
    spec = spec_with(tmp_path, images__max_pixels=100_000, retry__max_error_rate=budget, retry__max_errors=0)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake())
    assert (summary.status, summary.exit_code) == (status, exit_code)
    assert summary.statuses == {"ok": 6, "unreadable": 3, "too_large": 1}
    assert {Path(failure.uri).name for failure in summary.failure_examples} == {
        "empty.jpg",
        "text.png",
        "cut.png",
        "large.png",
    }
    assert sum(summary.failure_reasons.values()) == 4
    assert statuses(spec)["large.png"] == "too_large"
    assert all(row["error"] for row in image_rows(spec) if row["status"] != "ok")


def test_a_file_that_disappears_after_listing_is_missing(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 6)
    spec = spec_with(tmp_path, retry__max_error_rate=1.0)
    open_run(spec, identify_function(LoadFake(), spec.model)[1].to_dict(), Storage(spec.storage))
    paths[2].unlink()
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake())
    assert summary.exit_code == 0
    assert statuses(spec) == {path.name: "missing" if path == paths[2] else "ok" for path in paths}
