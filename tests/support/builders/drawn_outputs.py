"""An output over images of a test's own, with masks of its own, to draw."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image
from pipeline.inputs.read import fetch_image
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from tests.support.builders.outputs import FINGERPRINT, Output, encoded


class Found(NamedTuple):
    """An instance: its category, its score and its mask, [H, W] bool or run lengths as they are."""

    category: str
    score: float
    mask: np.ndarray | dict[str, Any]


Find = Callable[[str, int, int], Sequence[Found]]
"""Returns an image's instances by its name, height and width."""


def nothing(name: str, height: int, width: int) -> Sequence[Found]:
    """Find no instances."""
    return ()


def make_drawn_output(tmp_path: Path, images: Mapping[str, bytes], find: Find = nothing) -> Output:
    """Write images into the folder `photos`, and the output `out` of one committed shard, as the pipeline would."""
    handle, spec = write_drawn_run(str(tmp_path), images, find)
    return Output(tmp_path / "out", tmp_path / "photos", spec, handle)


def write_drawn_run(
    base: str, images: Mapping[str, bytes], find: Find = nothing, section: StorageSection | None = None
) -> tuple[RunHandle, JobSpec]:
    """Write images below `photos` and a run to `out` in a local or remote folder.

    An image that cannot be decoded is a row with its status.

    Args:
        section: the options of the store.
    """
    storage = Storage(section)
    photos = join(base, "photos")
    for name, payload in images.items():
        storage.write(join(photos, name), payload)
    spec = load_spec(None, {"input.uri": photos, "output.uri": join(base, "out"), "compute.shard_images": 99})
    handle = open_run(spec, FINGERPRINT, storage, run="night")
    image_rows, instance_rows = [], []
    for ref in handle.read_shard(0).images:
        payload, version = fetch_image(ref, storage)
        try:
            height, width = decode_image(payload).shape[:2]
        except ImageError as error:
            image_rows.append(
                build_image_row(ref, shard=0, model="m", status=error.status, error=error.reason, read=version)
            )
            continue
        found = find(ref.uri.removeprefix(f"{photos}/"), height, width)
        row = build_image_row(ref, shard=0, model="m", size=(height, width), instances=len(found), read=version)
        image_rows.append(row)
        instance_rows += [_row(row, number, each) for number, each in enumerate(found)]
    commit_shard(storage, handle.output_uri, handle.name, 0, image_rows, instance_rows)
    return handle, spec


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
