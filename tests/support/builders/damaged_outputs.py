"""Outputs that a driver wrote, ways to damage each kind of their files, and `htc` commands in this process."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import pipeline.driver.session
import pipeline.driver.shard_queue
import pipeline.driver.worker_pool
from jobs.cli import program as cli
from pipeline.cluster.connection import RayStarter
from pipeline.job_spec.job import ComputeSection
from pipeline.output.results import open_results
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
from pipeline.worker.worker import WorkerSettings
from tests.support.fakes.in_process_pool import InProcessPool
from tests.support.fakes.models import LoadFake, write_images

Htc = Callable[..., tuple[int, str]]
MODEL = ("--model", "htc_lite0_fpn", "--weights", "untrained", "--shard-images", "2")
FILES = {
    "images": "images/run=second/part-00001.parquet",
    "instances": "instances/run=second/part-00001.parquet",
    "deletions": "deletions/run=second/part-00000.parquet",
    "manifest": "runs/second/manifest/part-00000.parquet",
    "record": "runs/second/run.json",
    "summary": "runs/second/summary.json",
    "progress": "runs/second/progress.json",
    "lease": "runs/second/lease.json",
}


def _put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xffPAR1 {" * 40),
    "deleted": lambda path: path.unlink(),
    "folder": _put_folder,
    "other": lambda path: path.write_bytes(b"[]"),
}


class FakeWorkerPool(InProcessPool):
    """Workers in this process, with a fake model."""

    def __init__(self, settings: WorkerSettings, plan: WorkerPlan, **limits: object) -> None:
        super().__init__(replace(settings, load_model=LoadFake()), plan, **limits)


@contextmanager
def _one_worker(compute: ComputeSection, *, shards: int | None) -> Iterator[WorkerPlan]:
    yield WorkerPlan(1, 1.0, 0.0)


_program = cache(cli.load_program)


@contextmanager
def without_ray() -> Iterator[None]:
    """Make `htc run` work in this process inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.driver.worker_pool, "WorkerPool", FakeWorkerPool)
        patch.setattr(pipeline.driver.session, "ray_cluster", _one_worker)
        patch.setattr(RayStarter, "begin", lambda starter: None)
        patch.setattr(pipeline.driver.shard_queue, "FIRST_BACKOFF_S", 0.0)
        # Building it again takes as long as a command.
        patch.setattr(cli, "load_program", _program)
        yield


def typed(*arguments: str) -> int:
    """Type a command; return its exit code."""
    with without_ray(), pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    return int(leaving.value.code or 0)


def htc_of(capsys: pytest.CaptureFixture[str]) -> Htc:
    """Return a function that types a command, and returns its exit code and its output."""

    def type_it(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = typed(*arguments)
        reported = capsys.readouterr()
        return code, reported.out + reported.err

    return type_it


def write_sound_output(root: Path) -> None:
    """Write root/in and root/out: a full run, and an incremental one with new images and one that is gone."""
    images = write_images(root / "in", 6)
    where = (str(root / "in"), str(root / "out"))
    assert typed("run", *where, *MODEL, "--run", "first") == 0
    images[0].unlink()
    for path in write_images(root / "more", 4):
        path.rename(root / "in" / f"more-{path.name}")
    assert typed("run", *where, *MODEL, "--run", "second", "--incremental") == 0


def damaged_copy(sound: Path, folder: Path, kind: str, harm: str) -> Path:
    """Copy an output and damage one file of it."""
    output = folder / "out"
    shutil.copytree(sound / "out", output)
    if kind == "progress":
        (output / FILES[kind]).write_text("{}")
    if kind == "lease":
        lease = take_lease(Storage(), str(output), "second")
        content = Path(output, FILES["lease"]).read_bytes()
        lease.release()
        Path(output, FILES["lease"]).write_bytes(content)
    HARMS[harm](output / FILES[kind])
    return output


def rows_of(output: Path) -> list[tuple[str, str, int]]:
    """Every row of `images`, as its uri, run and shard."""
    table = open_results(str(output)).images(columns=["uri", "shard"])
    return sorted((row["uri"], row["run"], row["shard"]) for row in table.to_pylist())


def contents_of(output: str, storage: Storage | None = None) -> dict[str, list[str]]:
    """All rows as text, without the number of attempts."""
    results = open_results(output, storage)
    rows = {"images": results.images().to_pylist(), "instances": results.instances().to_pylist()}
    return {table: sorted(str(row | {"attempts": 0}) for row in found) for table, found in rows.items()}
