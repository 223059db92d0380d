"""Workers that die, models that do not load, disks that refuse writes: the tables and the exit code stay correct."""

import json
from pathlib import Path

import pytest

from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import RunError
from pipeline.models.load_function import identify_function
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.e2e_specs import image_rows, instance_rows, spec_with, stable, statuses
from tests.support.fakes.models import LoadFake, write_image, write_images

pytestmark = pytest.mark.usefixtures("ray_session")
POISON = (32, 47)


def test_a_killed_worker_is_replaced_and_the_tables_are_the_same(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 15)
    write_image(tmp_path / "in" / "image-007b.png", POISON)
    calm = spec_with(tmp_path, output__uri=str(tmp_path / "calm"))
    run(calm, progress=SilentProgress(), load_model=LoadFake())
    spec = spec_with(tmp_path)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake({POISON: "kill_once"}, marks=str(tmp_path)))
    assert (tmp_path / "killed").exists()
    assert (summary.status, summary.exit_code, summary.workers_lost) == ("complete", 0, 1)
    assert stable(image_rows(spec)) == stable(image_rows(calm))
    assert stable(instance_rows(spec)) == stable(instance_rows(calm))
    assert {row["attempts"] for row in image_rows(spec)} == {1, 2}


def test_a_lost_device_costs_workers_and_one_image(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 4)
    write_image(paths[1], POISON)
    spec = spec_with(tmp_path, retry__max_attempts=1, compute__workers=1)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake({POISON: "device_lost"}))
    assert summary.workers_lost >= 3
    assert statuses(spec) == {path.name: "failed" if path == paths[1] else "ok" for path in paths}


def test_a_bug_in_a_shard_is_kept_and_ends_the_run_non_zero(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 8)
    write_image(paths[0], POISON)
    spec = spec_with(tmp_path, retry__max_attempts=2, retry__max_error_rate=1.0)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake({POISON: "miscount"}))
    assert (summary.status, summary.exit_code, summary.retries) == ("incomplete", 1, 2)
    assert statuses(spec) == {path.name: "failed" if path in paths[:4] else "ok" for path in paths}
    texts = [path.read_text() for path in Path(str(summary.error_log)).iterdir()]
    assert any("Traceback" in text and "shard 0" in text for text in texts)
    again = run(spec, progress=SilentProgress(), load_model=LoadFake())
    assert (again.status, again.exit_code) == ("incomplete", 1)


def test_an_image_on_which_the_model_raises_fails_alone(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 8)
    write_image(paths[3], POISON)
    spec = spec_with(tmp_path, retry__max_error_rate=0.2)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake({POISON: "raise"}))
    assert summary.exit_code == 0
    assert statuses(spec) == {path.name: "failed" if path == paths[3] else "ok" for path in paths}
    (failure,) = summary.failure_examples
    assert failure.reason == "ZeroDivisionError: on purpose"


@pytest.mark.parametrize(
    ("deed", "sentence", "exit_code"),
    [
        (
            "value_error",
            r"^load_model \(.*:LoadFake\) raised ValueError: These weights are of another network, in ",
            2,
        ),
        ("runtime_error", "the card is taken", 1),
        ("exit", "Workers keep dying while they load the model", 1),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_run_at_once(
    tmp_path: Path, deed: str, sentence: str, exit_code: int
) -> None:
    write_images(tmp_path / "in", 8)
    with pytest.raises(RunError, match=sentence) as caught:
        run(spec_with(tmp_path), progress=SilentProgress(), load_model=LoadFake(start_deed=deed))  # type: ignore[arg-type]
    assert caught.value.exit_code == exit_code


def test_a_worker_whose_start_hangs_is_replaced(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 8)
    # Loading imports torch, which takes a busy machine some seconds.
    spec = spec_with(tmp_path, retry__start_timeout_s=25.0, compute__workers=1)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake(start_deed="hang_once", marks=str(tmp_path)))
    assert (summary.status, summary.exit_code, summary.workers_lost) == ("complete", 0, 1)
    assert set(statuses(spec).values()) == {"ok"}


def test_a_speculative_copy_commits_first_and_each_image_has_one_row(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 12)
    write_image(paths[1], POISON)
    spec = spec_with(tmp_path)
    # The first worker that gets the image never ends; only the speculative copy of an idle worker can.
    summary = run(
        spec, progress=SilentProgress(), load_model=LoadFake({POISON: "hang_once"}, marks=str(tmp_path), delay_s=0.05)
    )
    assert (summary.status, summary.exit_code, summary.workers_lost) == ("complete", 0, 0)
    rows = image_rows(spec)
    assert sorted(str(row["uri"]) for row in rows) == sorted(map(str, paths))
    assert [row["attempts"] for row in rows if row["shard"] == 0] == [2] * 4
    assert len({(row["image_id"], row["instance"]) for row in instance_rows(spec)}) == len(instance_rows(spec)) == 12


def test_tables_that_cannot_be_written_stop_the_run_and_the_same_command_resumes(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 8)
    spec = spec_with(tmp_path, retry__max_attempts=1)
    open_run(spec, identify_function(LoadFake(), spec.model)[1].to_dict(), Storage(spec.storage))
    # A file in place of the table's folder refuses every user, root included.
    obstacle = tmp_path / "out" / "instances"
    obstacle.touch()
    with pytest.raises(RunError, match=r"The tables cannot be written: .*instances"):
        run(spec, progress=SilentProgress(), load_model=LoadFake())
    (summary,) = (tmp_path / "out" / "runs").glob("*/summary.json")
    assert "cannot be written" in json.loads(summary.read_text())["reason"]
    obstacle.unlink()
    assert run(spec, progress=SilentProgress(), load_model=LoadFake()).exit_code == 0
    assert len(image_rows(spec)) == 8
