"""A model of transformers through the whole job: killed half-way and resumed, with the fingerprint of its files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.output.results import open_results
from tests.support.builders.tiny_transformers import CLASSES, save_checkpoint
from tests.support.paths import ROOT
from tests.support.processes import is_any_alive

# Each photo under two names, in shards of two.
COPIES, SHARD = 2, 2
PATIENCE_S = 240.0


def committed(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("out/images/run=*/part-*.parquet")}


def wait_until(is_so: object, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():  # type: ignore[operator]
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {PATIENCE_S} s; the log says:\n{log.read_text()}")
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_with_a_model_of_transformers_is_killed_and_resumed(tmp_path: Path) -> None:
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))
    (tmp_path / "in").mkdir()
    for photo in photos:
        for number in range(COPIES):
            shutil.copy(photo, tmp_path / "in" / f"{number}-{photo.name}")
    images = COPIES * len(photos)
    # At this size a photo takes tenths of a second, so that the run can be killed before its end.
    checkpoint = save_checkpoint("mask2former", tmp_path / "tiny", size={"height": 384, "width": 384})
    command = [sys.executable, "-m", "jobs", "run", "in", "out", "--model", "transformers:./tiny"]
    command += ["--workers", "1", "--shard-images", str(SHARD)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            wait_until(lambda: len(committed(tmp_path)) >= 2 or process.poll() is not None, log)
            family = psutil.Process(process.pid).children(recursive=True)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wait_until(lambda: not is_any_alive(family), log)
    before = committed(tmp_path)
    assert 2 <= len(before) < images // SHARD, log.read_text()

    # Another processor is another model: refused, and the message names what differs.
    settings = checkpoint / "preprocessor_config.json"
    original = settings.read_text()
    settings.write_text(json.dumps({**json.loads(original), "image_mean": [0.5, 0.5, 0.5]}))
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "weights" in refused.stderr
    assert committed(tmp_path) == before

    settings.write_text(original)
    resumed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = committed(tmp_path)
    assert {path: after[path] for path in before} == before
    assert len(after) == images // SHARD
    results = open_results(str(tmp_path / "out"))
    rows = results.images().to_pylist()
    assert sorted(Path(row["uri"]).name for row in rows) == sorted(path.name for path in (tmp_path / "in").iterdir())
    assert {row["status"] for row in rows} == {"ok"}
    instances = results.instances().to_pylist()
    assert len({(row["image_id"], row["instance"]) for row in instances}) == len(instances)
    assert sum(row["instances"] for row in rows) == len(instances) > images
    assert {row["category"] for row in instances} <= set(CLASSES.values())
    # The copies of a photo have the same instances, whichever session did them.
    found: dict[str, set[tuple[tuple[object, ...], ...]]] = {}
    for row in rows:
        own = [each for each in instances if each["image_id"] == row["image_id"]]
        values = tuple((each["instance"], each["category"], each["mask"]["counts"]) for each in own)
        found.setdefault(Path(row["uri"]).name.partition("-")[2], set()).add(values)
    assert len(found) == len(photos)
    assert {len(each) for each in found.values()} == {1}
