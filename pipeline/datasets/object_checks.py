"""Checks of the objects of one split: masks, boxes, crowds, repetitions."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask

from htc_model.training.annotation_parsing import to_rle
from htc_model.training.annotations import CocoAnnotations, ImageAnnotations, ObjectAnnotation
from pipeline.datasets.findings import Findings
from pipeline.datasets.geometry import crosses_itself, is_outside

# What `read_annotations` calls an object of which nothing is inside the image.
OFF_IMAGE = frozenset({"no area inside the image", "polygon far outside the image"})
# A box may deviate from its mask's by this much: COCO's own boxes are those of polygons, masks are whole pixels.
_BOX_TOLERANCE_PX = 2.0
_BOX_TOLERANCE_SHARE = 0.05
# Masks of one class that overlap by more are one object annotated twice.
_TWICE_IOU = 0.9
# The first feature map of the network has a cell for 4 x 4 pixels; a smaller object has less than two of them.
TINY_SIDE_PX = 8.0


def check_objects(
    annotations: CocoAnnotations, split: str, findings: Findings, *, short_side: int, long_side: int
) -> None:
    """Check every object of a split.

    Args:
        short_side, long_side: bounds of the training size in pixels.
    """
    for bad in annotations.bad:
        code = "mask-off-image" if bad.kind in OFF_IMAGE else "annotation-left-out"
        findings.add(code, split, str(bad), image=bad.image)
    for mended in annotations.mended:
        findings.add("annotation-mended", split, str(mended))
    for note in annotations.notes:
        findings.add("annotation-mended", split, note)
    for image in annotations.images:
        scale = min(long_side / max(image.height, image.width), short_side / min(image.height, image.width))
        if not any(not entry.is_crowd for entry in image.objects):
            findings.add("image-without-objects", split, image.file_name)
        masks = [_check_object(entry, image, scale, split, findings) for entry in image.objects]
        _check_repetitions(image, masks, split, findings)


def _check_object(
    entry: ObjectAnnotation, image: ImageAnnotations, scale: float, split: str, findings: Findings
) -> object:
    """Check one object; return its run lengths, None if it has no mask or an empty one."""
    place = f"{image.file_name}, annotation {entry.annotation_id}"
    if entry.is_crowd:
        findings.add("crowd", split, place)
    if entry.segmentation is None:
        findings.add("box-only", split, place, image=image.file_name)
        return None
    size = (image.width, image.height)
    if isinstance(entry.segmentation, list):
        polygons = [np.asarray(part, np.float64).reshape(-1, 2) for part in entry.segmentation]
        if any(is_outside(polygon, size) for polygon in polygons):
            findings.add("mask-partly-off", split, place)
        if any(crosses_itself(polygon) for polygon in polygons):
            findings.add("mask-crosses-itself", split, place, image=image.file_name)
    rle = to_rle(entry.segmentation, (image.height, image.width))
    pixels = int(pycocotools.mask.area(rle))
    if not pixels:
        findings.add("mask-empty", split, place, image=image.file_name)
        return None
    if not entry.is_crowd and pixels * scale**2 < TINY_SIDE_PX**2:
        findings.add("tiny-object", split, place)
    if entry.unclipped_xywh is not None and _deviates(entry.box_xyxy, pycocotools.mask.toBbox(rle).tolist()):
        findings.add("box-differs", split, place, image=image.file_name)
    return rle


def _deviates(xyxy: Sequence[float], mask_xywh: Sequence[float]) -> bool:
    x, y, width, height = mask_xywh
    allowed_x, allowed_y = (max(_BOX_TOLERANCE_PX, _BOX_TOLERANCE_SHARE * side) for side in (width, height))
    return (
        max(abs(xyxy[0] - x), abs(xyxy[2] - x - width)) > allowed_x
        or max(abs(xyxy[1] - y), abs(xyxy[3] - y - height)) > allowed_y
    )


def _check_repetitions(image: ImageAnnotations, masks: Sequence[object], split: str, findings: Findings) -> None:
    by_label: dict[int, list[int]] = {}
    for number, (entry, mask) in enumerate(zip(image.objects, masks, strict=True)):
        if mask is not None and not entry.is_crowd:
            by_label.setdefault(entry.label, []).append(number)
    for numbers in by_label.values():
        if len(numbers) == 1:
            continue
        rles = [masks[number] for number in numbers]
        overlaps = np.asarray(pycocotools.mask.iou(rles, rles, [0] * len(rles)))
        is_repeated = (np.triu(overlaps, k=1) > _TWICE_IOU).any(axis=0)
        for at in np.flatnonzero(is_repeated):
            entry = image.objects[numbers[at]]
            findings.add(
                "annotation-twice",
                split,
                f"{image.file_name}, annotation {entry.annotation_id}",
                image=image.file_name,
            )
