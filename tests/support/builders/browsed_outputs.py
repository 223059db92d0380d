"""Outputs to look at: photos with names that would be code, several categories, two runs, many rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard, encode_table, instances_part
from pipeline.output.parts import Part, part_uri
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import BBOX_TYPE, IMAGES_SCHEMA, INSTANCES_SCHEMA, MASK_TYPE
from pipeline.planning.manifest import Manifest
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name
from tests.support.builders.outputs import FINGERPRINT, encoded

SCRIPT_NAME = "<script>alert(1)<\\script>\"'&.png"
IMAGE_NAME = "<img src=x onerror=alert(2)>.png"
NAMES = (IMAGE_NAME, SCRIPT_NAME, "a plain one.png", "broken.png", "z last.png")
SCRIPT_CATEGORY = "<script>alert(3)</script>"
SIZE = (60, 80)
"""Height and width of the photos, in pixels."""


@dataclass(frozen=True)
class Found:
    """One instance: its category, its score and its box (x, y, width, height), which its mask fills."""

    category: str
    score: float
    box: tuple[int, int, int, int] = (10, 10, 30, 20)
    is_damaged: bool = False


PLAIN: Sequence[Found] = (Found("person", 0.9), Found(SCRIPT_CATEGORY, 0.6, (40, 30, 30, 20)), Found("dog", 0.2))


def write_photos(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """Write small photos; one whose name begins with "broken" is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.full((*SIZE, 3), 40 + 30 * (number % 7), np.uint8)
        pixels[10:30, 10:40] = (200, 90, 40)
        Image.fromarray(pixels).save(folder / name)
        if name.startswith("broken"):
            (folder / name).write_bytes(b"")
    return folder


def write_run(
    photos: Path | str,
    output: Path | str,
    run: str,
    found: Mapping[str, Sequence[Found]] | None = None,
    *,
    only_shards: int | None = None,
    shard_images: int = 2,
    storage: Storage | None = None,
    mode: str = "full",
) -> RunHandle:
    """Write a run over photos as workers would.

    Args:
        found: instances by the photo's name; others have PLAIN.
        only_shards: the number of shards to commit; None commits all.
        mode: "full" or "incremental".
    """
    storage = storage or Storage()
    overrides: dict[str, object] = {"input.uri": str(photos), "output.uri": str(output)}
    overrides |= {"compute.shard_images": shard_images, "select.mode": mode, "select.max_deleted_share": 1.0}
    spec = load_spec(None, overrides)
    handle = open_run(spec, FINGERPRINT, storage, run=run, fresh=True)
    for shard in range(handle.shard_count if only_shards is None else only_shards):
        rows = [_rows_of(ref, shard, found or {}, storage) for ref in handle.read_shard(shard).images]
        instances = [instance for _, found_here in rows for instance in found_here]
        commit_shard(storage, str(output), run, shard, [image for image, _ in rows], instances)
    handle.close()
    return handle


def _rows_of(
    ref: Any, shard: int, found: Mapping[str, Sequence[Found]], storage: Storage
) -> tuple[Any, list[InstanceRow]]:
    if storage.stat(ref.uri).bytes == 0:
        words = "the file is <b>empty</b>"
        return build_image_row(ref, shard=shard, model="htc_r50_fpn", status="unreadable", error=words), []
    here = found.get(base_name(ref.uri), PLAIN)
    image = build_image_row(ref, shard=shard, model="htc_r50_fpn", size=SIZE, instances=len(here))
    return image, [_instance(image, number, each) for number, each in enumerate(here)]


def _instance(image: Any, number: int, found: Found) -> InstanceRow:
    x, y, width, height = found.box
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    code = encoded(mask)
    if found.is_damaged:
        code["counts"] = "~" + code["counts"]
    return InstanceRow(
        image_id=image.image_id,
        uri=image.uri,
        instance=number,
        category_id=1 + number,
        category=found.category,
        score=found.score,
        bbox={"x": float(x), "y": float(y), "width": float(width), "height": float(height)},
        area=width * height,
        mask=code,
        model="htc_r50_fpn",
    )


def write_many(output: Path, images: int, *, run: str = "many", parts: int = 10, instances: int = 1) -> None:
    """Write a complete run of synthetic rows, without photos: names in order, a category in a hundred images "rare"."""
    per_part = -(-images // parts)
    for shard in range(parts):
        numbers = np.arange(shard * per_part, min(images, (shard + 1) * per_part))
        storage = Storage()
        of_instances = encode_table(_many_instances(np.repeat(numbers, instances)), run)
        storage.write(instances_part(str(output), run, shard), of_instances)
        storage.write(
            part_uri(str(output), "images", run, Part(shard, shard)), encode_table(_many_images(numbers, shard), run)
        )
    manifest = Manifest(images, parts, per_part, parts, 0, 0)
    record = RunRecord(run, "2026-01-01T00:00:00+00:00", {}, {}, {"trained": True}, {}, manifest.to_dict())
    write_record(Storage(), str(output), record)


def _names(numbers: np.ndarray) -> list[str]:
    return [f"s3://bucket/{number:09d}.jpg" for number in numbers.tolist()]


def _many_images(numbers: np.ndarray, shard: int) -> pa.Table:
    rows = len(numbers)
    columns = {
        "image_id": numbers,
        "uri": _names(numbers),
        "etag": ["v"] * rows,
        "bytes": np.full(rows, 1000),
        "width": np.full(rows, 80, np.int32),
        "height": np.full(rows, 60, np.int32),
        "shard": np.full(rows, shard, np.int32),
        "status": np.where(numbers % 1000 == 999, "failed", "ok"),
        "error": np.where(numbers % 1000 == 999, "it took too long", None),
        "attempts": np.ones(rows, np.int32),
        "instances": np.ones(rows, np.int32),
        "model": ["m"] * rows,
        "changed": [False] * rows,
        "crs": pa.nulls(rows, pa.string()),
        "transform": pa.nulls(rows, pa.list_(pa.float64())),
    }
    return pa.table(columns, schema=IMAGES_SCHEMA)


def _many_instances(numbers: np.ndarray) -> pa.Table:
    rows = len(numbers)
    boxes = pa.array([{"x": 1.0, "y": 1.0, "width": 2.0, "height": 2.0}], BBOX_TYPE)
    masks = pa.array([{"size": [60, 80], "counts": "o0"}], MASK_TYPE)
    columns = {
        "image_id": numbers,
        "uri": _names(numbers),
        "instance": np.zeros(rows, np.int32),
        "category_id": np.ones(rows, np.int32),
        "category": np.where(numbers % 100 == 50, "rare", "frequent"),
        "score": (numbers % 997 / 997).astype(np.float32),
        "bbox": boxes.take(pa.array(np.zeros(rows, np.int8))),
        "area": np.full(rows, 4),
        "mask": masks.take(pa.array(np.zeros(rows, np.int8))),
        "model": ["m"] * rows,
    }
    return pa.table(columns, schema=INSTANCES_SCHEMA)
