"""An output with difficult masks: holes, parts, overlaps, a full one, an empty one, one missing; odd names."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import FINGERPRINT, encoded

Bitmap = NDArray[np.bool_]
SIZES = {"a/one.jpg": (40, 60), "a/one.png": (31, 17), 'b/<script> & "two" ü.jpg': (24, 24), "b/none.jpg": (10, 12)}
CATEGORIES = {1: "person", 18: "dog & <b>"}


@dataclass(frozen=True)
class Drawn:
    """The masks of an output, by the image's name and then by the instance's number."""

    uri: str
    photos: Path
    masks: dict[str, list[Bitmap]]

    @property
    def shown(self) -> list[tuple[str, int, Bitmap]]:
        """Name, instance and mask of those with pixels."""
        return [
            (name, number, mask)
            for name, masks in self.masks.items()
            for number, mask in enumerate(masks)
            if mask.any()
        ]


def draw_masks(size: tuple[int, int], seed: int) -> list[Bitmap]:
    """A ring around a dot, two parts, the whole image, noise, and an empty mask."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot((rows - height / 2) / height, (columns - width / 2) / width)
    ring = ((distance < 0.4) & (distance > 0.2)) | (distance < 0.07)
    parts = (columns < width // 3) | (columns > 2 * width // 3)
    blocks = np.kron(rng.random((height // 4 + 1, width // 4 + 1)) < 0.4, np.ones((4, 4)))[:height, :width]
    return [ring, parts, np.ones(size, bool), blocks.astype(bool), np.zeros(size, bool)]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("export")
    photos = folder / "photos"
    for name, (height, width) in SIZES.items():
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (90, 120, 200)).save(path)
    (photos / "broken.jpg").write_bytes(b"")
    spec = load_spec(None, {"input.uri": str(photos), "output.uri": str(folder / "out"), "compute.shard_images": 2})
    storage = Storage()
    run = open_run(spec, FINGERPRINT, storage, run="night")
    masks: dict[str, list[Bitmap]] = {}
    for shard in range(run.shard_count):
        images, instances = [], []
        for ref in run.read_shard(shard).images:
            name = str(Path(ref.uri).relative_to(photos))
            if name not in SIZES:
                images.append(build_image_row(ref, shard=shard, model="m", status="unreadable", error="it is empty"))
                continue
            masks[name] = [] if name == "b/none.jpg" else draw_masks(SIZES[name], len(masks))
            rows = [instance(ref, number, mask) for number, mask in enumerate(masks[name])]
            images.append(build_image_row(ref, shard=shard, model="m", size=SIZES[name], instances=len(rows)))
            instances += rows
        commit_shard(storage, run.output_uri, run.name, shard, images, instances)
    run.close()
    return Drawn(str(folder / "out"), photos, masks)


def instance(ref: Any, number: int, mask: Bitmap) -> InstanceRow:
    image_row = build_image_row(ref, shard=0, model="m")
    category_id = (1, 18)[number % 2]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y, right, bottom = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 1, 1)
    box = {"x": float(x), "y": float(y), "width": float(right - x), "height": float(bottom - y)}
    score = 0.95 - 0.1 * number
    values = (category_id, CATEGORIES[category_id], score, box, int(mask.sum()), encoded(mask), "m")
    return InstanceRow(image_row.image_id, image_row.uri, number, *values)


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output of one image, whose second mask is damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    Image.new("RGB", (12, 10)).save(folder / "a.jpg")
    spec = load_spec(None, {"input.uri": str(folder / "a.jpg"), "output.uri": str(folder / "out")})
    run = open_run(spec, FINGERPRINT, Storage(), run="night")
    (ref,) = run.read_shard(0).images
    rows = [instance(ref, number, np.ones((10, 12), bool)) for number in range(3)]
    rows[1] = replace(rows[1], mask={"size": [10, 12], "counts": "7"})
    image = build_image_row(ref, shard=0, model="m", size=(10, 12), instances=3)
    commit_shard(Storage(), run.output_uri, run.name, 0, [image], rows)
    run.close()
    return str(folder / "out")
