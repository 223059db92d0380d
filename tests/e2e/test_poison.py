"""Images that kill or hang workers: they fail alone, and cost few workers."""

import math
from pathlib import Path

import pytest

import pipeline.driver.worker_pool
from pipeline.driver.bisection import CONFIRMING_DEATHS
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.driver.shard_queue import DEATHS_BEFORE_BISECTION
from tests.support.builders.e2e_specs import image_rows, instance_rows, spec_with, stable, statuses
from tests.support.fakes.models import Deed, LoadFake, write_image, write_images

pytestmark = pytest.mark.usefixtures("ray_session")
POISON = (32, 47)
SHARD_IMAGES = 4


def failing(paths: list[Path], poison: int) -> dict[str, str]:
    return {path.name: "failed" if number == poison else "ok" for number, path in enumerate(paths)}


def test_an_image_that_crashes_the_process_fails_alone(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 8)
    calm = spec_with(tmp_path, output__uri=str(tmp_path / "calm"))
    run(calm, progress=SilentProgress(), load_model=LoadFake())
    write_image(paths[2], POISON)
    spec = spec_with(tmp_path, retry__max_error_rate=0.2)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake({POISON: "segfault"}))
    assert statuses(spec) == failing(paths, 2)
    (row,) = (row for row in image_rows(spec) if row["status"] == "failed")
    assert "worker died" in str(row["error"])
    assert (summary.status, summary.statuses) == ("complete", {"ok": 7, "failed": 1})
    assert summary.workers_lost <= DEATHS_BEFORE_BISECTION + math.log2(SHARD_IMAGES) + CONFIRMING_DEATHS
    # All other rows are those of a run without the image.
    sound = [row for row in instance_rows(calm) if row["uri"] != str(paths[2])]
    assert stable(instance_rows(spec)) == stable(sound)


@pytest.mark.parametrize("deed", ["hang", "hang_mute"])
def test_an_image_that_hangs_is_stopped_and_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: Deed
) -> None:
    monkeypatch.setattr(pipeline.driver.worker_pool, "MIN_SILENCE_S", 3.0)
    paths = write_images(tmp_path / "in", 8)
    write_image(paths[2], POISON)
    spec = spec_with(tmp_path, retry__image_timeout_s=1.0, retry__max_error_rate=0.2, compute__workers=1)
    summary = run(spec, progress=SilentProgress(), load_model=LoadFake({POISON: deed}))
    assert statuses(spec) == failing(paths, 2)
    (row,) = (row for row in image_rows(spec) if row["status"] == "failed")
    assert ("the model hung for" if deed == "hang" else "answered nothing") in str(row["error"])
    assert summary.exit_code == 0
    if deed == "hang":
        # The watchdog found it.
        assert summary.workers_lost == 1
