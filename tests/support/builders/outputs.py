"""An output folder as a run leaves it, written with the pipeline's own functions, without a model."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.commit import commit_shard, encode_part, instances_part
from pipeline.output.map_rows import MapRows, PanopticRow, SemanticRow, joined
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.output.schema import INSTANCES_SCHEMA
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from tests.support.paths import PHOTOS

FINGERPRINT = {"preset": "htc_r50_fpn", "weights_sha256": "a" * 64, "config_sha256": "0" * 64, "trained": True}


@dataclass(frozen=True)
class Output:
    """The output's folder, the input's folder, the spec and the run."""

    folder: Path
    photos: Path
    spec: JobSpec
    run: RunHandle

    @property
    def uri(self) -> str:
        return str(self.folder)


def ellipse_mask(height: int, width: int) -> np.ndarray:
    """An ellipse that touches no border."""
    rows, columns = np.mgrid[0:height, 0:width]
    return ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2) < 0.09


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """A mask in the tables' format."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def instance_row(ref: Any, number: int, score: float, size: tuple[int, int], category: str) -> InstanceRow:
    """One instance: an ellipse in the middle of the image."""
    mask = ellipse_mask(*size)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = {
        "x": float(columns[0]),
        "y": float(rows[0]),
        "width": float(columns[-1] - columns[0] + 1),
        "height": float(rows[-1] - rows[0] + 1),
    }
    image_row = build_image_row(ref, shard=0, model="htc_r50_fpn")
    return InstanceRow(
        image_id=image_row.image_id,
        uri=image_row.uri,
        instance=number,
        category_id=1,
        category=category,
        score=score,
        bbox=box,
        area=int(mask.sum()),
        mask=encoded(mask),
        model="htc_r50_fpn",
    )


def map_rows_of(instance: InstanceRow, size: tuple[int, int]) -> MapRows:
    """The instance is a person on grass below the sky, each of which has half of the other pixels."""
    height, width = size
    person = ellipse_mask(height, width)
    is_above = np.arange(height)[:, None] < height // 2
    regions = ((1, "person", person), (124, "grass", ~person & ~is_above), (157, "sky-other", ~person & is_above))
    image, model = (instance.image_id, instance.uri), instance.model
    segments = [PanopticRow(*image, 0, 1, "person", True, 0, instance.score, *_measured(person), model)]
    segments += [
        PanopticRow(*image, segment, number, name, False, None, None, *_measured(mask), model)
        for segment, (number, name, mask) in enumerate(regions[1:], 1)
    ]
    return {
        "semantic": [
            SemanticRow(*image, number, name, int(mask.sum()), encoded(mask), model) for number, name, mask in regions
        ],
        "panoptic": segments,
    }


def _measured(mask: np.ndarray) -> tuple[int, dict[str, float], dict[str, Any]]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    sides = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    box = dict(zip(("x", "y", "width", "height"), map(float, sides), strict=True))
    return int(mask.sum()), box, encoded(mask)


def commit(
    run: RunHandle, shard: int, storage: Storage, scores: tuple[float, ...], maps: Sequence[MapTable] = ()
) -> None:
    """Commit one shard: a broken image is unreadable, every other has an instance per score."""
    image_rows, instance_rows, map_rows = [], [], []
    for ref in run.read_shard(shard).images:
        if Path(ref.uri).stat().st_size == 0:
            image_rows.append(
                build_image_row(ref, shard=shard, model="htc_r50_fpn", status="unreadable", error="the file is empty")
            )
            continue
        with Image.open(ref.uri) as image:
            width, height = image.size
        image_rows.append(
            build_image_row(ref, shard=shard, model="htc_r50_fpn", size=(height, width), instances=len(scores))
        )
        for number, score in enumerate(scores):
            category = "person" if number % 2 == 0 else "dog"
            instance_rows.append(instance_row(ref, number, score, (height, width), category))
        if maps:
            map_rows.append(map_rows_of(instance_row(ref, 0, scores[0], (height, width), "person"), (height, width)))
    found = joined(map_rows, maps)
    commit_shard(storage, run.output_uri, run.name, shard, image_rows, instance_rows, maps=found)


def make_output_folder(
    tmp_path: Path,
    scores: tuple[float, ...] = (0.9, 0.25),
    output: str = "out",
    *,
    trained: bool = True,
    maps: Sequence[MapTable] = (),
) -> Output:
    """Build an output of two committed shards and one half-written one over seven files.

    Args:
        maps: the tables of maps that the run is asked for, see `map_rows_of`.
    """
    photos = tmp_path / "in put[1]"
    photos.mkdir(exist_ok=True)
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:5]):
        shutil.copy(photo, photos / f"{number} a#b%20 ü.jpg")
    Image.new("RGB", (47, 33), (90, 120, 200)).save(photos / "tiny.png")
    (photos / "broken.jpg").write_bytes(b"")
    overrides = {"input.uri": str(photos), "output.uri": str(tmp_path / output), "compute.shard_images": 3}
    spec = load_spec(None, {**overrides, **{f"model.{table}": True for table in maps}})
    storage = Storage()
    run = open_run(spec, {**FINGERPRINT, "trained": trained}, storage, run="night")
    for shard in (0, 1):
        commit(run, shard, storage, scores, maps)
    # A shard interrupted between its two parts: without the part of images it is not committed.
    orphan = instance_row(run.read_shard(2).images[0], 0, 0.99, (33, 47), "orphan")
    part = encode_part([orphan], INSTANCES_SCHEMA, InstanceRow, run=run.name)
    storage.write(instances_part(run.output_uri, run.name, 2), part)
    return Output(tmp_path / output, photos, spec, run)
