"""Runs to compare, written by hand: for each image its status, version and instances, whose masks are rectangles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.output.commit import commit_shard
from pipeline.output.deletions import DELETIONS_SCHEMA, write_deletions
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.output.run_record import RunRecord, write_record
from pipeline.storage.storage import Storage

WIDTH, HEIGHT = 60, 40
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Found:
    """An instance; box: x, y, width, height in pixels. counts: of the mask, in the place of the box's own."""

    category: str
    score: float
    box: Box
    counts: str | None = None
    has_mask: bool = True


@dataclass(frozen=True)
class Pictured:
    """An image of a run."""

    instances: Sequence[Found] = ()
    status: ImageStatus = "ok"
    etag: str | None = "v1"
    size: tuple[int, int] = (HEIGHT, WIDTH)


@dataclass(frozen=True)
class ComparedRun:
    """A run: its images by uri, and what its record holds."""

    name: str
    images: Mapping[str, Pictured]
    mode: str = "full"
    deleted: Sequence[str] = ()
    input_uri: str = "photos"
    weights_sha256: str = "a" * 64
    planned_shards: int = 1
    record: Mapping[str, Any] = field(default_factory=dict)


def rectangle(box: Box, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    """A mask that fills a box."""
    bitmap = np.zeros(size, np.uint8, order="F")
    x, y, width, height = box
    bitmap[y : y + height, x : x + width] = 1
    rle = coco_mask.encode(bitmap)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def write_compared_runs(output: Path | str, runs: Sequence[ComparedRun], storage: Storage | None = None) -> None:
    """Write runs, each a day after the one before."""
    storage = storage or Storage()
    for day, run in enumerate(runs, 1):
        rows = [
            build_image_row(
                ImageRef(uri, etag=each.etag, bytes=None),
                shard=0,
                model="m",
                status=each.status,
                size=each.size if each.status == "ok" else None,
                instances=len(each.instances),
            )
            for uri, each in run.images.items()
        ]
        found = [
            _row(uri, number, instance, each.size)
            for uri, each in run.images.items()
            for number, instance in enumerate(each.instances)
        ]
        commit_shard(storage, str(output), run.name, 0, rows, found)
        deleted = [{"image_id": image_id(uri), "uri": uri, "last_run": "0", "last_ok_run": None} for uri in run.deleted]
        table = DELETIONS_SCHEMA.empty_table().from_pylist(deleted, schema=DELETIONS_SCHEMA)
        write_deletions(storage, str(output), run.name, iter([table]))
        spec = {"input": {"uri": run.input_uri}, "select": {"mode": run.mode}, "model": {"weights": "own.pt"}}
        fingerprint = {"preset": "htc_r50_fpn", "weights_sha256": run.weights_sha256, "trained": True}
        counts = {"image_count": len(rows), "shard_count": run.planned_shards, "selection": {"deleted": len(deleted)}}
        content = {"spec": spec, "identity": {}, "fingerprint": fingerprint, "manifest": counts, **run.record}
        record = RunRecord(run=run.name, created=f"2026-01-{day:02d}T02:00:00+00:00", versions={}, **content)
        write_record(storage, str(output), record)


def _row(uri: str, number: int, found: Found, size: tuple[int, int]) -> InstanceRow:
    x, y, width, height = found.box
    mask = rectangle(found.box, size)
    if found.counts is not None:
        mask["counts"] = found.counts
    return InstanceRow(
        image_id=image_id(uri),
        uri=uri,
        instance=number,
        category_id=1,
        category=found.category,
        score=found.score,
        bbox={"x": float(x), "y": float(y), "width": float(width), "height": float(height)},
        area=width * height if found.has_mask else None,
        mask=mask if found.has_mask else None,
        model="m",
    )
