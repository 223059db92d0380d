"""A run with detections near annotated objects: crowds, equal scores, duplicates, confused categories, misses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import FINGERPRINT, encoded

HEIGHT, WIDTH = 260, 320
CATEGORIES = ("person", "dog", "kite", "tie")
# Weights that are nowhere: the classes are those of the annotations then.
MODEL = {"model.preset": "htc_lite0_fpn", "model.weights": "gone.pth"}


@dataclass(frozen=True)
class JudgedRun:
    """The output's uri, the annotations and their content, the folder of the images."""

    uri: str
    truth: Path
    document: dict[str, Any]
    photos: Path

    def rewrite(self) -> Path:
        """Write the changed document, and return its path."""
        self.truth.write_text(json.dumps(self.document))
        return self.truth


def ellipse(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """[HEIGHT, WIDTH] bool."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 < 1


def box_of(rle: dict[str, Any]) -> list[float]:
    """x, y, width, height in pixels."""
    box: list[float] = coco_mask.toBbox(rle).tolist()
    return box


def judged_run(
    folder: Path, *, images: int = 40, seed: int = 0, shards: int | None = None, emptied: int = 0
) -> JudgedRun:
    """Write images, annotations and a run's tables.

    Args:
        shards: only so many are committed, as in a run in progress.
        emptied: so many shards, of 8 images, are committed by a later run too, without an instance.
    """
    random = np.random.default_rng(seed)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(images):
        pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number + 1:06d}.png", compress_level=0)
    overrides = {"input.uri": str(photos), "output.uri": str(folder / "out"), "compute.shard_images": 8}
    storage = Storage()
    run = open_run(load_spec(None, overrides | MODEL), FINGERPRINT, storage, run="night")
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        # Ids that are neither consecutive nor in the order of the names.
        "categories": [{"id": 3 * number + 2, "name": name} for number, name in enumerate(CATEGORIES)],
    }
    for shard in range(run.shard_count):
        image_rows, instance_rows = [], []
        for ref in run.read_shard(shard).images:
            number = int(Path(ref.uri).stem)
            # Ids in the reverse order of the names: equal scores are ordered by them.
            image_id = 1000 - number
            document["images"].append(
                {"id": image_id, "file_name": Path(ref.uri).name, "height": HEIGHT, "width": WIDTH}
            )
            found = [each for _ in range(random.integers(0, 6)) for each in _object(document, image_id, random)]
            # Equal scores are those of different images: no order of a file within an image is promised.
            found = list({score: (label, score, mask) for label, score, mask in found}.values())
            row = build_image_row(ref, shard=shard, model="m", size=(HEIGHT, WIDTH), instances=len(found))
            image_rows.append(row)
            for place, (label, score, mask) in enumerate(sorted(found, key=lambda each: -each[1])):
                rle = encoded(mask)
                instance_rows.append(
                    InstanceRow(
                        image_id=row.image_id,
                        uri=row.uri,
                        instance=place,
                        category_id=3 * label + 2,
                        category=CATEGORIES[label],
                        score=score,
                        bbox=dict(zip(("x", "y", "width", "height"), box_of(rle), strict=True)),
                        area=int(mask.sum()),
                        mask=rle,
                        model="m",
                    )
                )
        if shards is None or shard < shards:
            commit_shard(storage, run.output_uri, run.name, shard, image_rows, instance_rows)
    if emptied:
        later = open_run(load_spec(None, overrides | MODEL), FINGERPRINT, storage, run="later")
        for shard in range(emptied):
            refs = later.read_shard(shard).images
            rows = [build_image_row(ref, shard=shard, model="m", size=(HEIGHT, WIDTH), instances=0) for ref in refs]
            commit_shard(storage, later.output_uri, later.name, shard, rows, [])
    judged = JudgedRun(str(folder / "out"), folder / "truth.json", document, photos)
    judged.rewrite()
    return judged


def _object(
    document: dict[str, Any], image_id: int, random: np.random.Generator
) -> list[tuple[int, float, np.ndarray]]:
    """Annotate an object; return the label, score and mask of what was found there."""
    label = int(random.integers(0, len(CATEGORIES)))
    centre = random.uniform((0, 0), (WIDTH, HEIGHT))
    radii = np.exp(random.uniform(1.8, 4.9, 2))
    mask = ellipse(centre, radii)
    if not mask.any():
        return []
    rle = encoded(mask)
    document["annotations"].append(
        {
            "id": len(document["annotations"]) + 1,
            "image_id": image_id,
            "category_id": 3 * label + 2,
            "bbox": box_of(rle),
            "area": int(mask.sum()),
            "iscrowd": int(random.uniform() < 0.06),
            "segmentation": rle,
        }
    )
    found = []
    for _ in range(random.integers(0, 4)):
        moved = ellipse(centre + 0.25 * radii * random.standard_normal(2), radii * random.uniform(0.7, 1.3, 2))
        if moved.any():
            seen = label if random.uniform() < 0.75 else int(random.integers(0, len(CATEGORIES)))
            # Few digits, so that many scores are equal.
            found.append((seen, round(float(random.uniform(0.05, 1)) * 25) / 25, moved))
    return found
