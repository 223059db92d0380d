"""Planning in the background, and interrupted planning: every image is planned once in any case."""

import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, StorageError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.planning import manifest as manifests
from pipeline.planning.manifest import PartLayout
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage
from tests.support.fakes.dying_storage import CutOff

FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "c" * 64, "trained": True}
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two; parts of 2, 4, 8, 8, ... images."""
    monkeypatch.setattr(manifests, "FIRST_PART_IMAGES", 2)
    monkeypatch.setattr(manifests, "PART_IMAGES", 8)


def spec_of(tmp_path: Path, source: str = "in", **overrides: object) -> JobSpec:
    values = {"input.uri": str(tmp_path / source), "output.uri": str(tmp_path / "out"), "compute.shard_images": 2}
    return load_spec(None, {**values, **overrides})


def begin(spec: JobSpec, storage: Storage | None = None, patience_s: float | None = None) -> RunHandle:
    return open_run(spec, FINGERPRINT, storage or Storage(), run="night", patience_s=patience_s)


def uris_of(run: RunHandle) -> list[str]:
    return [ref.uri for index in range(run.shard_count) for ref in run.read_shard(index).images]


def make_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


class Gated(Storage):
    """A listing that waits at a gate after some images, and may fail after it."""

    def __init__(self, first: int, error: Exception | None = None) -> None:
        super().__init__()
        self.first = first
        self.error = error
        self.gate = threading.Event()

    def list(self, uri: str, glob: str | None = None, **options: Any) -> Iterator[ObjectInfo]:
        for number, listed in enumerate(super().list(uri, glob, **options)):
            if number == self.first and uri.endswith("/in"):
                self.gate.wait(PATIENCE_S)
                if self.error is not None:
                    raise self.error
            yield listed


def collect(run: RunHandle, is_enough: Callable[[list[int]], bool]) -> list[int]:
    """Take new shards as the driver's loop does."""
    planned: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while not is_enough(planned):
        assert time.monotonic() < deadline, f"only {planned} were planned"
        planned += run.take_new_shards()
        time.sleep(0.005)
    return planned


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 40))
def test_the_place_of_a_shard_is_computed(shard_images: int, first: int, most: int) -> None:
    layout = PartLayout(shard_images, min(first, most), most)
    expected = [(number, within) for number in range(9) for within in range(layout.images(number) // shard_images)]
    assert [layout.find(shard) for shard in range(len(expected))] == expected
    assert max(layout.images(number) for number in range(9)) <= most * shard_images


def test_work_begins_before_the_listing_ends(tmp_path: Path) -> None:
    names = [f"{index:02d}.jpg" for index in range(21)]
    make_images(tmp_path / "in", [*names, "readme.txt"])
    storage = Gated(first=15)
    run = begin(spec_of(tmp_path), storage, patience_s=0.0)
    try:
        planned = collect(run, lambda planned: len(planned) >= 7)
        assert (planned, run.is_planned, run.image_count) == ([0, 1, 2, 3, 4, 5, 6], False, 14)
        assert [ref.uri for ref in run.read_shard(6).images] == [f"{tmp_path}/in/{name}" for name in names[12:14]]
        record = json.loads((tmp_path / "out/runs/night/run.json").read_text())["manifest"]
        assert (record["is_planned"], record["image_count"]) == (False, 14)
        storage.gate.set()
        collect(run, lambda _: run.is_planned)
    finally:
        run.close()
    assert uris_of(run) == [f"{tmp_path}/in/{name}" for name in names]
    assert run.manifest.left_out() == ["files that are not images, left out: 1 .txt"]
    assert json.loads((tmp_path / "out/runs/night/run.json").read_text())["manifest"]["shard_count"] == 11


def test_each_shard_is_returned_once_and_the_end_reported_once(tmp_path: Path) -> None:
    make_images(tmp_path / "in", [f"{index:02d}.jpg" for index in range(21)])
    storage = Gated(first=15)
    run = begin(spec_of(tmp_path), storage, patience_s=0.0)
    ends: list[int] = []
    run.when_planned = lambda: ends.append(run.shard_count)
    storage.gate.set()
    planned = collect(run, lambda _: run.is_planned)
    assert planned == list(range(11))
    assert run.take_new_shards() == []
    assert ends == [11]
    run.close()


def test_a_listing_that_fails_midway_ends_the_run_and_keeps_what_is_planned(tmp_path: Path) -> None:
    make_images(tmp_path / "in", [f"{index:02d}.jpg" for index in range(21)])
    storage = Gated(first=15, error=StorageError("the network is gone"))
    run = begin(spec_of(tmp_path), storage, patience_s=0.0)
    collect(run, lambda planned: len(planned) >= 7)
    storage.gate.set()
    with pytest.raises(StorageError, match="network is gone"):
        collect(run, lambda _: run.is_planned)
    run.close()
    again = begin(spec_of(tmp_path))
    assert (again.state, len(uris_of(again)), len(set(uris_of(again)))) == ("resumed", 21, 21)


def test_closing_a_run_stops_its_planning(tmp_path: Path) -> None:
    make_images(tmp_path / "in", [f"{index:02d}.jpg" for index in range(40)])
    storage = Gated(first=3)
    run = begin(spec_of(tmp_path), storage, patience_s=0.0)
    collect(run, lambda planned: planned == [0])
    threading.Timer(0.2, storage.gate.set).start()
    run.close()
    parts = [path.name for path in (tmp_path / "out/runs/night/manifest").iterdir()]
    assert parts == ["part-00000.parquet"]


def test_an_input_that_cannot_be_listed_to_its_end_leaves_no_run(tmp_path: Path) -> None:
    make_images(tmp_path / "in", [f"{index:02d}.jpg" for index in range(31)])
    storage = Gated(first=30, error=InputError("the listing broke off"))
    storage.gate.set()
    with pytest.raises(InputError, match="broke off"):
        begin(spec_of(tmp_path), storage)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert begin(spec_of(tmp_path, **{"input.limit": 3})).image_count == 3


def make_tar(path: Path, names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))


def folder_input(tmp_path: Path) -> str:
    make_images(tmp_path / "in", [f"{index:02d}.jpg" for index in range(0, 60, 3)] + ["00.txt", "31.txt", "99.txt"])
    return "in"


def nested_input(tmp_path: Path) -> str:
    for folder in ("a", "a b", "b"):
        make_images(tmp_path / "in" / folder, [f"{index}.png" for index in range(9)] + ["x.xml"])
    return "in"


def tars_input(tmp_path: Path) -> str:
    for number in range(4):
        make_tar(tmp_path / "in" / f"{number}.tar", [f"{6 - index}.jpg" for index in range(6)] + ["6.txt"])
    make_images(tmp_path / "in", ["2-between.jpg", "x.txt"])
    return "in"


def one_tar_input(tmp_path: Path) -> str:
    make_tar(tmp_path / "in.tar", [f"{index % 7}/{index}.jpg" for index in range(25)] + ["6.txt"])
    return "in.tar"


def listing_input(tmp_path: Path) -> str:
    make_tar(tmp_path / "m.tar", [f"{index}.jpg" for index in range(7)] + ["6.txt"])
    names = [f"{index * 7 % 19}.jpg" for index in range(30)]
    (tmp_path / "in.txt").write_text("\n".join([*names[:10], "m.tar", *names[10:]]))
    return "in.txt"


def rows_input(tmp_path: Path) -> str:
    pq.write_table(pa.table({"image": [b"x"] * 25}), tmp_path / "in.parquet")
    return "in.parquet"


INPUTS = [folder_input, nested_input, tars_input, one_tar_input, listing_input, rows_input]


@pytest.mark.parametrize("make_input", INPUTS)
def test_planning_interrupted_at_any_write_gives_the_same_manifest(
    tmp_path: Path, make_input: Callable[[Path], str]
) -> None:
    source = make_input(tmp_path)
    complete = open_run(spec_of(tmp_path, source, **{"output.uri": str(tmp_path / "complete")}), FINGERPRINT, Storage())
    at = 0
    while True:
        spec = spec_of(tmp_path, source, **{"output.uri": str(tmp_path / f"out{at}")})
        try:
            begin(spec, CutOff(at))
            break
        except StorageError:
            pass
        # And once more later.
        with pytest.raises(StorageError):
            begin(spec, CutOff(1 if at < 3 else 0))
        run = begin(spec)
        assert uris_of(run) == uris_of(complete)
        assert run.manifest == complete.manifest
        at += 1
    assert at >= 8


@pytest.mark.parametrize("at", range(1, 9))
def test_files_that_change_before_planning_resumes_lose_no_image_and_repeat_none(tmp_path: Path, at: int) -> None:
    spec = spec_of(tmp_path, folder_input(tmp_path))
    with pytest.raises(StorageError):
        begin(spec, CutOff(at))
    planned = {path.name for path in (tmp_path / "in").glob("*.jpg")}
    (tmp_path / "in/00.jpg").unlink()
    make_images(tmp_path / "in", [f"{index:02d}.jpg" for index in range(1, 60, 3)])
    names = [Path(uri).name for uri in uris_of(begin(spec))]
    assert names == sorted(set(names))
    assert planned - {"00.jpg"} <= set(names)
    assert "58.jpg" in names or at >= 8


def test_a_limit_includes_what_was_planned_before(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, folder_input(tmp_path), **{"input.limit": 13})
    with pytest.raises(StorageError):
        begin(spec, CutOff(4))
    run = begin(spec)
    assert [Path(uri).name for uri in uris_of(run)] == [f"{index:02d}.jpg" for index in range(0, 39, 3)]


def test_a_complete_listing_is_not_listed_again(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, folder_input(tmp_path), **{"input.limit": 5})
    # run.json; part 0, run.json; part 1, but not the last run.json.
    with pytest.raises(StorageError):
        begin(spec, CutOff(4))
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    run = begin(spec)
    assert (run.image_count, run.is_planned, run.todo()) == (5, True, [0, 1, 2])


def test_a_manifest_of_the_first_release_is_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "FIRST_PART_IMAGES", 8)
    spec = spec_of(tmp_path, folder_input(tmp_path))
    begin(spec)
    path = tmp_path / "out/runs/night/run.json"
    record = json.loads(path.read_text())
    for key in ("first_part_shards", "is_planned"):
        del record["manifest"][key]
    path.write_text(json.dumps(record))
    assert [Path(uri).name for uri in uris_of(begin(spec))] == [f"{index:02d}.jpg" for index in range(0, 60, 3)]
