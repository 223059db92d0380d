"""A run with everything that a page must cope with: names with HTML, images gone and changed, a damaged mask."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import ImageRow, InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import FINGERPRINT, encoded
from tests.support.paths import PHOTOS

# Where any of these is taken as HTML or JavaScript, `window.hacked` is set, or a request is made.
HOSTILE_NAME = "\"><img src=x onerror='window.hacked=1'> & `${window.hacked=1}`.jpg"
HOSTILE_CATEGORY = "</script><script>window.hacked=1</script>"
HOSTILE_ERROR = "<img src=x onerror=window.hacked=1> \u2028 {{ 7 * 7 }} </textarea><!--"
OK, GONE, CHANGED, BROKEN = HOSTILE_NAME, "gone.jpg", "changed.jpg", "broken.jpg"


@dataclass(frozen=True)
class ReportedRun:
    """The output's folder, and the folder of its six images."""

    folder: Path
    photos: Path

    @property
    def uri(self) -> str:
        return str(self.folder)


def square(size: tuple[int, int], left: int, top: int, side: int) -> np.ndarray:
    """A mask [H, W] with a square."""
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def instance(row: ImageRow, number: int, category: str, score: float, mask: np.ndarray) -> InstanceRow:
    """An instance with its mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = {
        "x": float(columns[0]),
        "y": float(rows[0]),
        "width": float(columns[-1] + 1 - columns[0]),
        "height": float(rows[-1] + 1 - rows[0]),
    }
    return InstanceRow(
        image_id=row.image_id,
        uri=row.uri,
        instance=number,
        category_id=number,
        category=category,
        score=score,
        bbox=box,
        area=int(mask.sum()),
        mask=encoded(mask),
        model=row.model,
    )


def make_reported_run(
    folder: Path, *, run: str = "night", with_summary: bool = True, has_damage: bool = True
) -> ReportedRun:
    """Build the output of one run over six images: three ok, one broken, one gone since, one changed since.

    Args:
        has_damage: whether a mask of second.jpg is damaged.
    """
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    bundled = sorted(PHOTOS.glob("*.jpg"))
    for name, photo in zip([OK, GONE, CHANGED, "second.jpg", "third.jpg"], bundled, strict=False):
        shutil.copy(photo, photos / name)
    (photos / BROKEN).write_bytes(b"no image")
    overrides: dict[str, Any] = {"input.uri": str(photos), "output.uri": str(folder / "out"), "compute.shard_images": 4}
    # COCO's 80 classes.
    overrides |= {"model.preset": "htc_r50_fpn", "model.weights": "untrained"}
    storage = Storage()
    opened = open_run(load_spec(None, overrides), FINGERPRINT, storage, run=run)
    model = "htc_r50_fpn"
    for shard in range(opened.shard_count):
        rows: list[ImageRow] = []
        found: list[InstanceRow] = []
        for ref in opened.read_shard(shard).images:
            name = Path(ref.uri).name
            if name == BROKEN:
                failed = build_image_row(ref, shard=shard, model=model, status="unreadable", error=HOSTILE_ERROR)
                rows.append(failed)
                continue
            with Image.open(ref.uri) as image:
                width, height = image.size
            row = build_image_row(ref, shard=shard, model=model, size=(height, width), instances=3)
            rows.append(row)
            middle = square((height, width), width // 2 - 40, height // 2 - 40, 80)
            corner = square((height, width), 5, 5, 30)
            people = [
                instance(row, 0, "person", 0.95, middle),
                instance(row, 1, HOSTILE_CATEGORY if name == OK else "dog", 0.6, corner),
                instance(row, 2, "dog", 0.1, square((height, width), width - 60, 5, 50)),
            ]
            if name == "second.jpg" and has_damage:
                people[1] = replace(people[1], mask={"size": [height, width], "counts": "damaged"})
            found += people
        commit_shard(storage, opened.output_uri, opened.name, shard, rows, found)
    if with_summary:
        opened.write_summary(SUMMARY | {"run": run, "model": model})
    opened.close()
    (photos / GONE).unlink()
    Image.new("RGB", (33, 22), (200, 30, 30)).save(photos / CHANGED)
    return ReportedRun(folder / "out", photos)


SUMMARY: dict[str, Any] = {
    "status": "complete",
    "exit_code": 0,
    "reason": "",
    "images": 6,
    "images_done": 6,
    "statuses": {"ok": 5, "unreadable": 1},
    "instances": 15,
    "session_images": 6,
    "seconds": 12.0,
    "images_per_s": 0.5,
    "worker_time_s": {"start_up": 2.0, "read": 6.0, "infer": 4.0},
    "bottleneck": {"name": "read", "share": 0.5, "sentence": "The model waited 50% of the time for reads: move."},
    "start_up_s": {"imports": 0.5, "shard": 2.5},
    "cost": {"worker_hours": 2.5, "amount": 2.25, "currency": "EUR"},
    "notifications": {"webhook": "delivered", "e-mail": "refused <b>by</b> the server"},
    "machine": "a machine",
    "workers_started": 2,
    "retries": 1,
}
