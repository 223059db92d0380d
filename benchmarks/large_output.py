"""A large output, written for benchmarks with the project's own writers: many shards of eight instances an image."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from pipeline.maintenance.compaction import compact_run
from pipeline.output.commit import encode_table, images_part, instances_part
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import BBOX_TYPE, IMAGES_SCHEMA, INSTANCES_SCHEMA, MASK_TYPE
from pipeline.planning.manifest import Manifest
from pipeline.storage.storage import Storage

RUN = "benchmark"
INPUT = "s3://images/2026/"
INSTANCES_PER_IMAGE = 8
CATEGORIES = 80
HEIGHT, WIDTH = 768, 1024
# So many different masks: the masks of one page are all different, so that they compress like real ones.
SHAPES = 20_000
TARGET_BYTES = 256 << 20


def write_run(output: Path, images: int, parts: int, *, is_placed: bool = False) -> None:
    """Write a complete run as workers would; `is_placed`: the images say where they lie, in one of ten UTM zones."""
    per_part = -(-images // parts)
    parts = -(-images // per_part)
    rng = np.random.default_rng(0)
    shapes = Shapes(rng)
    storage = Storage()
    for shard in range(parts):
        numbers = np.arange(shard * per_part, min(images, (shard + 1) * per_part))
        payload = encode_table(instance_rows(numbers, shapes, rng), RUN)
        storage.write(instances_part(str(output), RUN, shard), payload)
        storage.write(images_part(str(output), RUN, shard), encode_table(images_of(numbers, shard, is_placed), RUN))
    manifest = Manifest(images, parts, per_part, parts, 0, 0).to_dict()
    spec = {"input": {"uri": INPUT}}
    write_record(storage, str(output), RunRecord(RUN, "2026-01-01T00:00:00+00:00", spec, {}, {}, {}, manifest))


def compact(output: Path) -> None:
    """Compact the run, as `htc compact` does."""
    compact_run(Storage(), str(output), RUN, target_bytes=TARGET_BYTES, check=lambda: None)


def compact_copy(output: Path, copy: Path) -> None:
    """Compact a copy of an output; both are kept."""
    shutil.copytree(output, copy, copy_function=lambda source, target: Path(target).hardlink_to(source))
    compact(copy)


class Shapes:
    """Masks of polygons with 12 corners around random centres, as columns to take rows from."""

    def __init__(self, rng: np.random.Generator) -> None:
        angles = np.sort(rng.random((SHAPES, 12)), axis=1) * 2 * np.pi
        radii = rng.uniform(0.4, 1, (SHAPES, 12)) * rng.lognormal(4, 0.8, (SHAPES, 1)).clip(4, 380)
        centres = rng.uniform((100, 100), (WIDTH - 100, HEIGHT - 100), (SHAPES, 2))
        corners = centres[:, None] + np.stack([np.cos(angles), np.sin(angles)], axis=2) * radii[:, :, None]
        corners = corners.clip(0, (WIDTH - 1, HEIGHT - 1))
        masks = coco_mask.frPyObjects([each.ravel().tolist() for each in corners], HEIGHT, WIDTH)
        self.counts = pa.array([each["counts"].decode() for each in masks])
        # One by one: of 256 and more pycocotools 2.0.11 fails with NumPy 2.
        self.areas = pa.array([int(coco_mask.area(each)) for each in masks])
        # Rows of x, y, width and height.
        self.boxes = np.array([coco_mask.toBbox(each) for each in masks], np.float32)


def uris_of(numbers: np.ndarray) -> pa.Array:
    """Return the images' URIs; a folder has a thousand images."""
    folders = pc.utf8_lpad(pa.array(numbers // 1000).cast(pa.string()), 6, "0")
    names = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0")
    return pc.binary_join_element_wise(INPUT, folders, "/", names, ".jpg", "")


def ids_of(numbers: np.ndarray) -> np.ndarray:
    """Return numbers that are spread like hashes, [N] int64: splitmix64 (Steele and others, OOPSLA 2014)."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64)


def images_of(numbers: np.ndarray, shard: int, is_placed: bool) -> pa.Table:
    """Generate rows of `images`, with their places or without."""
    rows = image_rows(numbers, shard)
    if not is_placed:
        return rows
    systems = [f"EPSG:{32631 + number % 10}" for number in numbers]
    transforms = [[0.5, 0.0, 400_000.0 + number % 1000 * 10, 0.0, -0.5, 5e6 - number // 1000] for number in numbers]
    for name, values in (("crs", systems), ("transform", transforms)):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    return rows


def image_rows(numbers: np.ndarray, shard: int) -> pa.Table:
    """Generate rows of `images`."""
    rows = len(numbers)
    columns = {
        "image_id": ids_of(numbers),
        "uri": uris_of(numbers),
        "etag": pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 32, "0"),
        "bytes": numbers % 100_000 + 100_000,
        "width": np.full(rows, WIDTH, np.int32),
        "height": np.full(rows, HEIGHT, np.int32),
        "shard": np.full(rows, shard, np.int32),
        "status": ["ok"] * rows,
        "error": [None] * rows,
        "attempts": np.ones(rows, np.int32),
        "instances": np.full(rows, INSTANCES_PER_IMAGE, np.int32),
        "model": ["htc_r50_fpn"] * rows,
        "changed": [False] * rows,
        "crs": pa.nulls(rows, pa.string()),
        "transform": pa.nulls(rows, pa.list_(pa.float64())),
    }
    return pa.table(columns, schema=IMAGES_SCHEMA)


def instance_rows(numbers: np.ndarray, shapes: Shapes, rng: np.random.Generator) -> pa.Table:
    """Generate rows of `instances`, an image's most confident first."""
    scores = -np.sort(-rng.random((len(numbers), INSTANCES_PER_IMAGE), dtype=np.float32), axis=1)
    numbers = np.repeat(numbers, INSTANCES_PER_IMAGE)
    rows = len(numbers)
    chosen = rng.integers(0, SHAPES, rows)
    taken = pa.array(chosen)
    sizes = pa.ListArray.from_arrays(
        np.arange(0, 2 * rows + 1, 2, np.int32), np.tile(np.array([HEIGHT, WIDTH], np.int32), rows)
    )
    boxes = [pa.array(shapes.boxes[chosen, side]) for side in range(4)]
    categories = rng.integers(1, CATEGORIES + 1, rows, dtype=np.int32)
    names = pa.array([f"category {number}" for number in range(CATEGORIES + 1)])
    columns = {
        "image_id": ids_of(numbers),
        "uri": uris_of(numbers),
        "instance": np.tile(np.arange(INSTANCES_PER_IMAGE, dtype=np.int32), rows // INSTANCES_PER_IMAGE),
        "category_id": categories,
        "category": names.take(pa.array(categories)),
        "score": scores.ravel(),
        "bbox": pa.StructArray.from_arrays(boxes, fields=list(BBOX_TYPE)),
        "area": shapes.areas.take(taken),
        "mask": pa.StructArray.from_arrays([sizes, shapes.counts.take(taken)], fields=list(MASK_TYPE)),
        "model": ["htc_r50_fpn"] * rows,
    }
    return pa.table(columns, schema=INSTANCES_SCHEMA)
