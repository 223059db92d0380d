"""Incremental runs over a bucket on a real S3 server: exactly what changed is done, and `current` is correct."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from pipeline.runs.summary import RunSummary
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.paths import PROGRAMS, ROOT
from tests.support.programs.local_run import Notes, run_locally
from tests.support.servers.s3_server import S3Server

pytestmark = pytest.mark.xdist_group("s3")
NAMES = [f"{number:03d}.png" for number in range(100)]
BAD = (31, 47)


def image(seed: int, size: tuple[int, int] = (32, 48)) -> bytes:
    """Return a small PNG whose bytes depend on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


class Bucket:
    """The input and the tables of a bucket, and the runs over it."""

    def __init__(self, server: S3Server, uri: str, folder: Path) -> None:
        self.uri = uri
        self.files = server.files()
        self.storage = Storage(StorageSection(endpoint_url=server.endpoint_url))
        self.folder = folder
        self.overrides: dict[str, object] = {
            "input.uri": f"{uri}/in/",
            "output.uri": f"{uri}/out",
            "storage.endpoint_url": server.endpoint_url,
            "model.preset": "htc_lite0_fpn",
            "model.weights": self.weights("first"),
            "compute.shard_images": 8,
            "select.mode": "incremental",
            "retry.max_error_rate": 1.0,
        }

    def weights(self, name: str) -> str:
        """Write another weights file; the fake model does not read it."""
        path = self.folder / f"{name}.safetensors"
        path.write_text(name)
        return str(path)

    def put(self, images: Mapping[str, bytes]) -> None:
        for name, payload in images.items():
            self.files.pipe_file(f"{self.uri}/in/{name}", payload)

    def remove(self, *names: str) -> None:
        for name in names:
            self.files.rm_file(f"{self.uri}/in/{name}")

    def run(self, deeds: Mapping[Any, Any] | None = None, **overrides: object) -> tuple[RunSummary, Notes]:
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        return run_locally(self.overrides | given, deeds)

    def done(self, run: str) -> list[str]:
        """Return the images of which a run has rows."""
        rows = open_results(f"{self.uri}/out", self.storage).images(run, ["uri"]).to_pylist()
        return sorted(row["uri"].rpartition("/")[2] for row in rows)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with open_database(open_results(f"{self.uri}/out", self.storage)) as database:
            return database.execute(sql).fetchall()

    def current(self) -> dict[str, str]:
        """Return the run of each image in the view `current`, whose instances must be those of `current_instances`."""
        rows = self.ask("SELECT uri, run, instances FROM current ORDER BY uri")
        counted = "SELECT uri, run, count(*) FROM current_instances GROUP BY uri, run ORDER BY uri"
        assert self.ask(counted) == rows
        return {uri.rpartition("/")[2]: run for uri, run, _ in rows}


@pytest.fixture
def bucket(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> Bucket:
    bucket = Bucket(s3_server, s3_bucket, tmp_path)
    bucket.put({name: image(number) for number, name in enumerate(NAMES)})
    return bucket


@pytest.mark.slow
def test_a_week_of_incremental_runs(bucket: Bucket) -> None:
    first, _ = bucket.run()
    assert (first.status, first.statuses) == ("complete", {"ok": 100})
    changed, gone, new = NAMES[3::20], NAMES[50:51], ["0000.png", "sub/new.png"]
    bucket.put({name: image(1000 + number) for number, name in enumerate(changed)})
    bucket.put({name: image(2000 + number) for number, name in enumerate(new)})
    bucket.remove(*gone)

    # 5 % changed, 1 % deleted, 2 % new: those and no others.
    second, notes = bucket.run()
    assert (second.status, second.exit_code, second.statuses) == ("complete", 0, {"ok": 7})
    assert bucket.done(second.run) == sorted([*changed, "0000.png", "new.png"])
    assert "101 images listed, 7 of them to be done (2 new, 5 changed); 94 unchanged." in notes.sentences
    assert bucket.ask("SELECT parse_filename(uri), last_ok_run, run FROM deletions") == [
        (gone[0], first.run, second.run)
    ]
    expected = {name: first.run for name in NAMES if name not in gone} | dict.fromkeys(changed, second.run)
    expected |= {"0000.png": second.run, "new.png": second.run}
    assert bucket.current() == expected
    record = json.loads(bucket.storage.read(f"{bucket.uri}/out/runs/{second.run}/run.json"))
    assert record["manifest"]["selection"]["changed"] == 5

    # A run with nothing to do is a run as well.
    third, notes = bucket.run()
    assert (third.status, third.exit_code, third.images) == ("complete", 0, 0)
    assert f"Run {third.run}: 0 images in 0 shards." in notes.sentences
    assert bucket.current() == expected

    # Another model, and only what SQL selects: here, images for whose instances the old model had low scores.
    better = {"model__weights": bucket.weights("better")}
    where = "SELECT uri FROM current_instances WHERE score > 0.5 AND parse_filename(uri) < '005'"
    fourth, _ = bucket.run(**better, select__where=where)
    assert bucket.done(fourth.run) == ["000.png", "0000.png", "001.png", "002.png", "003.png", "004.png"]
    expected |= dict.fromkeys(bucket.done(fourth.run), fourth.run)
    assert bucket.current() == expected

    # Then everything that the old model did.
    fifth, _ = bucket.run(**better)
    assert fifth.images == 101 - 6
    assert bucket.current() == {name: fourth.run if run == fourth.run else fifth.run for name, run in expected.items()}


def test_failures_are_done_again_and_what_is_broken_is_not(bucket: Bucket) -> None:
    bucket.remove(*NAMES[10:])
    bucket.put({"bad.png": b"no image", "sad.png": image(7, BAD)})
    strict = {"retry__max_attempts": 1, "retry__max_error_rate": 0.1, "retry__max_errors": 0}
    first, _ = bucket.run({BAD: "raise"}, **strict)
    assert (first.status, first.statuses) == ("over_error_budget", {"ok": 10, "unreadable": 1, "failed": 1})
    # That it fails again is no new failure, and no reason for an alert.
    again, _ = bucket.run({BAD: "raise"}, **strict)
    assert (again.status, again.exit_code, again.statuses) == ("complete", 0, {"failed": 1})
    bucket.put({"worse.png": b"nor this"})
    worse, _ = bucket.run({BAD: "raise"}, **strict)
    assert (worse.status, worse.statuses) == ("over_error_budget", {"failed": 1, "unreadable": 1})
    bucket.remove("worse.png")
    second, _ = bucket.run()
    assert (bucket.done(second.run), second.statuses) == (["sad.png"], {"ok": 1})
    bucket.put({"new.png": image(8)})
    third, _ = bucket.run(select__retry="failed")
    assert (bucket.done(third.run), third.statuses) == (["bad.png"], {"unreadable": 1})
    assert sorted(bucket.current()) == sorted([*NAMES[:10], "sad.png"])


def test_an_interrupted_run_of_another_model_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / NAMES[number]).write_bytes(image(number))
    overrides: dict[str, object] = {
        "input.uri": str(tmp_path / "in"),
        "output.uri": str(tmp_path / "out"),
        "model.weights": "untrained",
        "compute.shard_images": 2,
        "select.mode": "incremental",
    }
    first, _ = run_locally(overrides)
    (tmp_path / f"out/images/run={first.run}/part-00001.parquet").unlink()
    second, notes = run_locally(overrides | {"model.score_threshold": 0.2})
    assert any(sentence.startswith(f"Run {first.run} is not complete and was") for sentence in notes.sentences)
    assert (second.run != first.run, second.images) == (True, 6)


def test_a_bucket_that_seems_half_empty_is_refused(bucket: Bucket) -> None:
    bucket.run(input__glob="*.png")
    bucket.remove(*NAMES[:60])
    with pytest.raises(InputError, match=r"60 of the 100 images .*max-deleted-share"):
        bucket.run(input__glob="*.png")
    assert len(bucket.current()) == 100


@pytest.mark.slow
def test_a_killed_incremental_run_is_resumed(bucket: Bucket) -> None:
    bucket.remove(*NAMES[40:])
    first, _ = bucket.run()
    bucket.put({name: image(1000 + number) for number, name in enumerate(NAMES[:32])})
    bucket.remove(NAMES[39])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(PROGRAMS / "local_run.py"), json.dumps(bucket.overrides), "0.5"]
    with subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        deadline = time.monotonic() + 120
        while len(bucket.files.glob(f"{bucket.uri}/out/images/*/*.parquet")) < 7:
            assert driver.poll() is None, driver.stdout.read().decode() if driver.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    second, notes = bucket.run()
    assert (second.status, second.statuses) == ("complete", {"ok": 32})
    assert 0 < second.session_images < 32
    assert any(sentence.startswith(f"Resuming run {second.run}") for sentence in notes.sentences)
    assert bucket.done(second.run) == NAMES[:32]
    assert bucket.current() == {name: second.run if name < "032" else first.run for name in NAMES[:39]}
    third, _ = bucket.run()
    assert third.images == 0
