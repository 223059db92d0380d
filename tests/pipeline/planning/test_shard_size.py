"""Images per shard where the spec leaves them open: every worker gets several shards, and a run keeps its size."""

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RunMismatchError
from pipeline.job_spec.job import ComputeSection, JobSpec, load_spec
from pipeline.planning import worker_plan
from pipeline.planning.node_shapes import ClusterNodes, NodeShape
from pipeline.planning.shard_size import choose_shard_images, look_ahead
from pipeline.planning.worker_plan import expected_workers, local_gpus
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from tests.support.builders.planned_runs import survey_of
from tests.support.fakes.models import write_images

FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "0" * 64, "config_sha256": "1" * 64, "trained": True}


def spec_for(folder: Path, **overrides: object) -> JobSpec:
    values: dict[str, object] = {"input.uri": str(folder / "in"), "output.uri": str(folder / "out")}
    values |= {"model.preset": "htc_lite0_fpn", "model.weights": "untrained", "compute.workers": 2}
    return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


def opened(spec: JobSpec, **options: object) -> RunHandle:
    return open_run(spec, FINGERPRINT, Storage(), **options)  # type: ignore[arg-type]


def listing(folder: Path, images: int) -> None:
    (folder / "in").mkdir(parents=True)
    table = pa.table({"uri": [f"/photos/{number:07d}.jpg" for number in range(images)]})
    pq.write_table(table, folder / "in.parquet")


@pytest.mark.parametrize(
    ("images", "workers", "size"),
    [
        (25, 2, 4),
        (200, 2, 25),
        (1, 2, 1),
        (0, 2, 1),
        (8, 8, 1),
        (2_047, 2, 256),
        (2_048, 2, 256),
        (65_536, 1000, 17),
        (65_537, 1000, 256),
        (10**7, 1, 256),
    ],
)
def test_size(images: int, workers: int, size: int) -> None:
    assert choose_shard_images(images, workers) == size


@pytest.mark.parametrize("images", [0, 1, 25, 200, 2_047, 2_048, 2_049, 5_000])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_size_is_that_for_the_complete_listing(images: int, workers: int) -> None:
    numbers = iter(range(images))
    size, listed = look_ahead(numbers, workers)  # type: ignore[arg-type]
    assert size == choose_shard_images(images, workers)
    assert list(listed) == list(range(images))  # type: ignore[comparison-overlap]


def test_no_more_is_listed_ahead_than_needed() -> None:
    numbers = iter(range(10**9))
    size, _ = look_ahead(numbers, 1)  # type: ignore[arg-type]
    assert (size, next(numbers)) == (256, 1025)


@pytest.mark.parametrize(("images", "shards"), [(25, 7), (3, 3), (8, 8), (9, 5)])
def test_a_small_input_has_several_shards_for_each_of_two_workers(tmp_path: Path, images: int, shards: int) -> None:
    write_images(tmp_path / "in", images)
    spec = spec_for(tmp_path)
    assert survey_of(spec, Storage()).manifest.shard_count == shards
    run = opened(spec)
    assert (run.image_count, run.shard_count) == (images, shards)
    planned = [ref.uri for index in range(shards) for ref in run.read_shard(index).images]
    assert sorted(planned) == sorted(str(path) for path in (tmp_path / "in").iterdir())


def test_a_listing_longer_than_a_part_keeps_one_size(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").parent.mkdir(exist_ok=True)
    listing(tmp_path, 3_000)
    spec = spec_for(tmp_path, input__uri=str(tmp_path / "in.parquet"), compute__workers=4)
    run = opened(spec)
    assert (run.image_count, run.shard_count, run.manifest.shard_images) == (3_000, 16, 188)
    planned = [ref.uri for index in range(16) for ref in run.read_shard(index).images]
    assert planned == [f"/photos/{number:07d}.jpg" for number in range(3_000)]


def test_the_members_of_a_container_are_sharded_in_the_same_way(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 25)
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "photos.tar", "w") as container:
        for photo in sorted((tmp_path / "photos").iterdir()):
            container.add(photo, photo.name)
    run = opened(spec_for(tmp_path))
    assert (run.image_count, run.shard_count) == (25, 7)


def test_an_explicit_number_is_kept(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 5)
    assert opened(spec_for(tmp_path, compute__shard_images=256)).shard_count == 1
    assert (
        load_spec(None, {"input.uri": "a", "output.uri": "b", "compute.shard_images": "64"}).compute.shard_images == 64
    )


def test_a_resumed_run_keeps_its_shards_on_a_larger_machine(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 25)
    first = opened(spec_for(tmp_path))
    again = opened(spec_for(tmp_path, compute__workers=16))
    assert (again.state, again.name, again.shard_count) == ("resumed", first.name, first.shard_count)


@pytest.mark.parametrize("size", [256, 10])
def test_a_run_of_an_older_release_is_resumed_with_the_default(tmp_path: Path, size: int) -> None:
    write_images(tmp_path / "in", 25)
    first = opened(spec_for(tmp_path, compute__shard_images=size))
    record = tmp_path / "out" / "runs" / first.name / "run.json"
    assert json.loads(record.read_text())["identity"]["compute.shard_images"] == size
    again = opened(spec_for(tmp_path))
    assert (again.state, again.shard_count) == ("resumed", -(-25 // size))


def test_another_explicit_number_is_refused_and_the_chosen_one_accepted(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 25)
    opened(spec_for(tmp_path))
    with pytest.raises(RunMismatchError, match=r"compute\.shard_images: 4 then, 256 now"):
        opened(spec_for(tmp_path, compute__shard_images=256))
    assert opened(spec_for(tmp_path, compute__shard_images=4)).state == "resumed"


def test_an_incremental_run_is_sharded_by_its_images_to_do(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 8)
    run = opened(spec_for(tmp_path, select__mode="incremental"))
    assert (run.image_count, run.shard_count) == (8, 8)


def test_the_expected_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_plan, "local_cpus", lambda: 6)
    monkeypatch.setattr(worker_plan, "local_gpus", lambda: 0)
    monkeypatch.setattr(worker_plan, "usable_memory", lambda: 64 * 2**30)
    assert expected_workers(ComputeSection()) == 6
    assert expected_workers(ComputeSection(cpus_per_worker=2.0)) == 3
    assert expected_workers(ComputeSection(workers=3)) == 3
    monkeypatch.setattr(worker_plan, "usable_memory", lambda: 5 * 2**30)
    assert expected_workers(ComputeSection()) == 2
    monkeypatch.setattr(worker_plan, "local_gpus", lambda: 1)
    assert expected_workers(ComputeSection()) == 1
    cluster = ClusterNodes((NodeShape(2, cpus=32.0, gpus=4.0),))
    assert expected_workers(ComputeSection(), cluster) == 8
    assert expected_workers(ComputeSection(gpus_per_worker=99.0), cluster) == 1


def test_gpus_are_counted_by_device_files_and_visibility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local_gpus(tmp_path) == 2
    for visible, count in (("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("GPU-3e0a", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_gpus(tmp_path) == count
