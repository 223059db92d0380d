"""An output over images of a test's own, with masks of its own, to draw."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image
from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import FINGERPRINT, Output, encoded


class Found(NamedTuple):
    """An instance: its category, its score and its mask, [H, W] bool or run lengths as they are."""

    category: str
    score: float
    mask: np.ndarray | dict[str, Any]


def make_drawn_output(
    tmp_path: Path,
    images: Mapping[str, bytes],
    find: Callable[[str, int, int], Sequence[Found]] = lambda name, height, width: (),
    *,
    run: str = "night",
) -> Output:
    """Write images into a folder, and an output of one committed shard, as the pipeline would.

    Args:
        find: returns an image's instances by its name, height and width; an image that cannot be decoded is a row
            with its status.
    """
    photos = tmp_path / "photos"
    for name, payload in images.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(payload)
    spec = load_spec(None, {"input.uri": str(photos), "output.uri": str(tmp_path / "out"), "compute.shard_images": 99})
    storage = Storage()
    handle = open_run(spec, FINGERPRINT, storage, run=run)
    image_rows, instance_rows = [], []
    for ref in handle.read_shard(0).images:
        try:
            height, width = decode_image(Path(ref.uri).read_bytes()).shape[:2]
        except ImageError as error:
            image_rows.append(build_image_row(ref, shard=0, model="m", status=error.status, error=error.reason))
            continue
        found = find(str(Path(ref.uri).relative_to(photos)), height, width)
        row = build_image_row(ref, shard=0, model="m", size=(height, width), instances=len(found))
        image_rows.append(row)
        instance_rows += [_row(row, number, each) for number, each in enumerate(found)]
    commit_shard(storage, handle.output_uri, handle.name, 0, image_rows, instance_rows)
    return Output(tmp_path / "out", photos, spec, handle)


def _row(image: Any, number: int, found: Found) -> InstanceRow:
    box = {"x": 0.0, "y": 0.0, "width": 10.0, "height": 10.0}
    if isinstance(found.mask, np.ndarray) and found.mask.any():
        rows, columns = np.flatnonzero(found.mask.any(1)), np.flatnonzero(found.mask.any(0))
        box = {
            "x": float(columns[0]),
            "y": float(rows[0]),
            "width": float(columns[-1] - columns[0] + 1),
            "height": float(rows[-1] - rows[0] + 1),
        }
    return InstanceRow(
        image_id=image.image_id,
        uri=image.uri,
        instance=number,
        category_id=1,
        category=found.category,
        score=found.score,
        bbox=box,
        area=int(found.mask.sum()) if isinstance(found.mask, np.ndarray) else 0,
        mask=encoded(found.mask) if isinstance(found.mask, np.ndarray) else found.mask,
        model="m",
    )
