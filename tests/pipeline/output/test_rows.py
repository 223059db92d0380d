"""The tables: what other programs read from them, and which parts count."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from pycocotools import mask as coco_mask

from htc_model.config import load_preset
from htc_model.structures import Detections, Rle
from pipeline.errors import InputError, StorageError
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.output.commit import commit_shard
from pipeline.output.parts import committed_shards
from pipeline.output.results import open_results
from pipeline.output.rows import ImageRow, InstanceRow, build_image_row, build_instance_rows
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.storage import Storage

# pycocotools 2.0.11 passes NumPy 2 an array type without the `copy` keyword: every decode warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIG = load_preset("htc_r50_fpn")


def make_mask(seed: int) -> np.ndarray:
    return np.asfortranarray(np.random.default_rng(seed).random((40, 60)) < 0.3, dtype=np.uint8)


def make_detections(seeds: list[int]) -> Detections:
    masks: list[Rle] = [coco_mask.encode(make_mask(seed)) for seed in seeds]
    count = len(seeds)
    return Detections(
        boxes_xyxy=torch.tensor([[1.5, 2.0, 11.5, 22.0]] * count).reshape(count, 4),
        scores=torch.linspace(0.9, 0.5, count),
        labels=torch.tensor([79, 0, 11]).repeat(-(-count // 3))[:count],
        masks=masks,
    )


def make_rows(uri: str, shard: int, seeds: list[int]) -> tuple[ImageRow, list[InstanceRow]]:
    ref = ImageRef(uri, bytes=123, etag="v1")
    instances = build_instance_rows(ref, make_detections(seeds), CONFIG)
    return (
        build_image_row(ref, shard=shard, model=CONFIG.name, size=(40, 60), instances=len(instances)),
        instances,
    )


def commit(output: Path, run: str, shard: int, uris: list[str], seeds: list[int]) -> None:
    rows = [make_rows(uri, shard, seeds) for uri in uris]
    instances = [instance for _, each in rows for instance in each]
    commit_shard(Storage(), str(output), run, shard, [image for image, _ in rows], instances)


def record(output: Path, run: str, created: str = "2025-01-01T00:00:00+00:00") -> None:
    write_record(Storage(), str(output), RunRecord(run, created, {}, {}, {}, {}, {"image_count": 3, "shard_count": 2}))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two runs: `a` with two shards committed, `b` with one shard and one image that failed."""
    record(tmp_path, "a")
    commit(tmp_path, "a", 0, ["/x/ä b#%.jpg", "/x/2.jpg"], [1, 2, 3])
    commit(tmp_path, "a", 1, ["/x/3.jpg"], [])
    record(tmp_path, "b", "2025-01-02T00:00:00+00:00")
    failed = build_image_row(ImageRef("/x/4.jpg"), shard=0, model="m", status="unreadable", error="cut off")
    commit_shard(Storage(), str(tmp_path), "b", 0, [failed], [])
    return tmp_path


def test_labels_become_category_ids_and_boxes_xywh() -> None:
    _, rows = make_rows("/x/1.jpg", 0, [1, 2, 3])
    assert [(row.instance, row.category_id, row.category) for row in rows] == [
        (0, 90, "toothbrush"),
        (1, 1, "person"),
        (2, 13, "stop sign"),
    ]
    assert rows[0].bbox == {"x": 1.5, "y": 2.0, "width": 10.0, "height": 20.0}
    assert [row.area for row in rows] == [int(make_mask(seed).sum()) for seed in (1, 2, 3)]
    assert {row.image_id for row in rows} == {image_id("/x/1.jpg")}


def test_a_model_without_masks_has_null_masks(tmp_path: Path) -> None:
    found = make_detections([1])
    boxes = Detections(found.boxes_xyxy, found.scores, found.labels, None)
    rows = build_instance_rows(ImageRef("/x/1.jpg"), boxes, CONFIG)
    record(tmp_path, "a")
    commit_shard(Storage(), str(tmp_path), "a", 0, [make_rows("/x/1.jpg", 0, [])[0]], rows)
    table = open_results(str(tmp_path)).instances()
    assert table.select(["mask", "area"]).to_pylist() == [{"mask": None, "area": None}]


def test_an_image_may_have_more_instances_than_pycocotools_counts_at_once() -> None:
    found = make_detections(list(range(300)))
    rows = build_instance_rows(ImageRef("/x/1.jpg"), found, CONFIG)
    assert [row.area for row in rows] == [int(make_mask(seed).sum()) for seed in range(300)]


def test_duckdb_reads_the_tables_directly(output: Path) -> None:
    images = duckdb.sql(
        f"SELECT run, uri, width, height, instances FROM read_parquet('{output}/images/*/*.parquet', "
        "hive_partitioning = true) WHERE status = 'ok' ORDER BY uri"
    ).fetchall()
    assert images == [
        ("a", "/x/2.jpg", 60, 40, 3),
        ("a", "/x/3.jpg", 60, 40, 0),
        ("a", "/x/ä b#%.jpg", 60, 40, 3),
    ]
    rows = duckdb.sql(
        f"SELECT mask, area FROM read_parquet('{output}/instances/*/*.parquet') ORDER BY uri, instance LIMIT 3"
    ).fetchall()
    for (mask, area), seed in zip(rows, [1, 2, 3], strict=True):
        assert np.array_equal(coco_mask.decode(mask), make_mask(seed))
        assert area == make_mask(seed).sum()


def test_pycocotools_decodes_the_masks_also_after_json(output: Path) -> None:
    table = open_results(str(output)).instances("a", columns=["mask"])
    masks = [row["mask"] for row in table.to_pylist()[:3]]
    for mask, seed in zip(masks, [1, 2, 3], strict=True):
        assert np.array_equal(coco_mask.decode(mask), make_mask(seed))
        assert np.array_equal(coco_mask.decode(json.loads(json.dumps(mask))), make_mask(seed))


def test_arrow_datasets_read_partitions_and_types(output: Path) -> None:
    table = ds.dataset(output / "images", partitioning="hive").to_table()
    assert sorted(set(table.column("run").to_pylist())) == ["a", "b"]
    assert table.schema.field("image_id").type == pa.int64()
    assert table.schema.metadata[b"htc_schema_version"] == b"1"


def test_results_read_all_runs_or_one(output: Path) -> None:
    results = open_results(str(output) + "/")
    assert results.runs() == ["a", "b"]
    assert results.images().column("run").to_pylist() == ["a", "a", "a", "b"]
    assert results.images("b").select(["status", "error"]).to_pylist() == [{"status": "unreadable", "error": "cut off"}]
    assert (len(results.instances()), len(results.instances("b"))) == (6, 0)
    assert results.images("a").schema.names == [*IMAGES_SCHEMA.names, "run"]
    assert results.instances("b").schema.names == [*INSTANCES_SCHEMA.names, "run"]
    with pytest.raises(InputError, match=r"no run c .* its runs are a, b"):
        results.images("c")


def test_an_instances_part_without_its_images_part_does_not_count(output: Path) -> None:
    (output / "images/run=a/part-00000.parquet").unlink()
    results = open_results(str(output))
    assert committed_shards(Storage(), str(output), "a") == {1}
    assert len(results.instances()) == 0
    assert results.instance_parts("a") == [f"{output}/instances/run=a/part-00001.parquet"]
    assert results.image_parts("a") == [f"{output}/images/run=a/part-00001.parquet"]


def test_a_shard_that_fails_between_its_parts_is_not_committed(tmp_path: Path) -> None:
    class NoImages(Storage):
        def write(self, uri: str, payload: bytes) -> None:
            if "/images/" in uri:
                raise StorageError(f"No space left to write {uri}.")
            super().write(uri, payload)

    image, instances = make_rows("/x/1.jpg", 1, [1])
    with pytest.raises(StorageError):
        commit_shard(NoImages(), str(tmp_path), "a", 1, [image], instances)
    assert committed_shards(Storage(), str(tmp_path), "a") == set()
    commit_shard(Storage(), str(tmp_path), "a", 1, [image], instances)
    commit_shard(Storage(), str(tmp_path), "a", 1, [image], instances)
    assert committed_shards(Storage(), str(tmp_path), "a") == {1}
    record(tmp_path, "a")
    assert len(open_results(str(tmp_path)).images()) == 1


def test_unfinished_and_foreign_files_are_not_parts(output: Path) -> None:
    folder = output / "images/run=a"
    for name in (".part-00009.parquet.1-2.htc-tmp", "part-9.parquet", "part-00009.parquet.bak", "_SUCCESS"):
        (folder / name).touch()
    (folder / "part-123456.parquet").touch()
    assert committed_shards(Storage(), str(output), "a") == {0, 1, 123456}


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run of htc"):
        open_results(str(tmp_path))


def test_remote_tables_read_the_same(tmp_path: Path) -> None:
    root = "memory://tables-test"
    storage = Storage()
    image, instances = make_rows("s3://b/1.jpg", 0, [1, 2])
    commit_shard(storage, root, "a", 0, [image], instances)
    write_record(storage, root, RunRecord("a", "2025", {}, {}, {}, {}, {"image_count": 1, "shard_count": 1}))
    results = open_results(root, storage)
    assert results.images().column("uri").to_pylist() == ["s3://b/1.jpg"]
    assert len(results.instances("a")) == 2
