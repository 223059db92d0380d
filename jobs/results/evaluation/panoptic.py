"""COCO's panoptic format as truth: things become instances, stuff is left out."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks.rle import encode_bitmap
from pipeline.errors import NotFoundError, SpecError
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.text import count_of


def is_panoptic(document: Any) -> bool:
    """Return whether a document is in the panoptic format: its annotations have segments."""
    annotations = document.get("annotations") if isinstance(document, Mapping) else None
    return bool(annotations) and isinstance(annotations, list) and _has_segments(annotations[0])


def _has_segments(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and isinstance(annotation.get("segments_info"), list)


def things_of(document: Mapping[str, Any], uri: str, storage: Storage) -> tuple[dict[str, Any], str]:
    """Convert a panoptic document (cocodataset.org/#format-data, 4) to one of instances.

    Masks come from the PNGs in the folder beside the file, of the file's name without its ending; without that folder
    the instances have boxes only.

    Returns:
        The document, and a sentence on how it was read.

    Raises:
        SpecError: a PNG is missing, or cannot be read.
    """
    things = [
        each
        for each in document.get("categories", [])
        if isinstance(each, Mapping) and each.get("isthing", 1) and isinstance(each.get("id"), int | float | str)
    ]
    ids = {each["id"] for each in things}
    folder = uri.removesuffix(".gz").removesuffix(".json")
    has_masks = True
    annotations: list[dict[str, Any]] = []
    for number, annotation in enumerate(document["annotations"]):
        if not _has_segments(annotation):
            continue
        segments = [
            each for each in annotation["segments_info"] if isinstance(each, Mapping) and each.get("category_id") in ids
        ]
        pixels = (
            _read(join(folder, str(annotation.get("file_name"))), storage, may_miss=number == 0) if has_masks else None
        )
        has_masks = pixels is not None
        for segment in segments:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": annotation.get("image_id"),
                    "category_id": segment["category_id"],
                    "bbox": segment.get("bbox"),
                    "area": segment.get("area"),
                    "iscrowd": segment.get("iscrowd", 0),
                    "segmentation": None if pixels is None else _mask(pixels, segment.get("id")),
                }
            )
    where = (
        f"masks are from {folder}/" if has_masks else f"there is no folder {folder}/ of masks, so they have boxes only"
    )
    note = f"{uri} is panoptic: its {count_of(len(annotations), 'thing')} are scored, stuff is not; {where}."
    return {"images": document.get("images"), "annotations": annotations, "categories": things}, note


def _read(uri: str, storage: Storage, *, may_miss: bool) -> NDArray[np.int64] | None:
    """Return a PNG's segment ids [H, W]: red + 256 green + 65536 blue; None if it may be missing and is."""
    try:
        payload = storage.read(uri)
    except NotFoundError as error:
        if may_miss:
            return None
        raise SpecError(str(error)) from error
    try:
        with Image.open(io.BytesIO(payload)) as image:
            colours = np.asarray(image.convert("RGB")).astype(np.int64)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SpecError(f"{uri} is not a PNG of segments: {error}.") from error
    return np.asarray(colours @ np.array([1, 256, 65536]), np.int64)


def _mask(pixels: NDArray[np.int64], number: Any) -> dict[str, Any] | None:
    mask = pixels == number
    if not np.any(mask):
        return None
    rle = encode_bitmap(mask)
    counts: Any = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
