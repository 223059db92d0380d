"""COCO annotations, read once and checked: what is wrong is named and left out, never fatal, never silent."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from htc_model.rle import decode_rle

# A polygon of fewer corners has no inside; COCO stores two numbers per corner.
_MIN_POLYGON_NUMBERS = 6


class AnnotationError(ValueError):
    """An annotation file as a whole cannot be trained on; the message is one sentence for a person."""


@dataclass(frozen=True)
class BadAnnotation:
    """One annotation, or one part of it, that was left out, and why.

    kind: a short name to count by, such as "polygon with < 3 points".
    """

    annotation_id: object
    image: str
    kind: str

    def __str__(self) -> str:
        return f"annotation {self.annotation_id} of {self.image}: {self.kind}"


@dataclass(frozen=True)
class ObjectAnnotation:
    """One object.

    label: in [0, C). box_xyxy: original pixels, clipped to the image.
    segmentation: polygons or run lengths as in the file; None where there is only a box.
    """

    annotation_id: object
    label: int
    box_xyxy: tuple[float, float, float, float]
    segmentation: Any
    is_crowd: bool


@dataclass(frozen=True)
class ImageAnnotations:
    """One image of the data set; sizes in original pixels; stuff_file: its semantic map, where there is one."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[ObjectAnnotation, ...]
    stuff_file: str | None = None


@dataclass(frozen=True)
class CocoAnnotations:
    """A data set: its classes in the order of their category ids, its images, and what was left out."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageAnnotations, ...]
    bad: tuple[BadAnnotation, ...] = ()
    images_without_objects: int = 0

    def bad_counts(self) -> dict[str, int]:
        """Count what was left out by kind, most frequent first."""
        return dict(Counter(bad.kind for bad in self.bad).most_common())


@dataclass
class _Reading:
    """The state of one pass over a file."""

    labels: Mapping[int, int]
    images: Mapping[int, Mapping[str, Any]]
    objects: dict[int, list[ObjectAnnotation]] = field(default_factory=dict)
    bad: list[BadAnnotation] = field(default_factory=list)


def read_annotations(
    document: Any, *, classes: Sequence[str] | None = None, keeps_empty_images: bool = False
) -> CocoAnnotations:
    """Check a COCO document and turn it into annotations.

    Args:
        document: what `json.load` gave.
        classes: names to train on, all by default; objects of other classes are left out without being called bad.
        keeps_empty_images: images without a (non-crowd) object are kept, as pure background.

    Raises:
        AnnotationError: the document is no COCO file, has no image with an object, or lacks a class asked
            for.
    """
    if not isinstance(document, Mapping) or not all(
        isinstance(document.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise AnnotationError("This is no COCO annotation file: it needs the lists images, annotations and categories.")
    categories = _choose_categories(document["categories"], classes)
    known_ids = {category["id"] for category in document["categories"]}
    reading = _Reading(
        labels={category["id"]: label for label, category in enumerate(categories)},
        images={image["id"]: image for image in document["images"]},
    )
    for annotation in document["annotations"]:
        _read_annotation(annotation, reading, known_ids)
    images = [
        ImageAnnotations(
            image_id, image["file_name"], image["height"], image["width"], tuple(reading.objects.get(image_id, ()))
        )
        for image_id, image in reading.images.items()
    ]
    with_objects = [image for image in images if any(not entry.is_crowd for entry in image.objects)]
    if not with_objects:
        raise AnnotationError(
            f"No image has an object to train on: {len(images)} images, {len(document['annotations'])} annotations, "
            f"{len(reading.bad)} of them unusable."
        )
    return CocoAnnotations(
        classes=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        images=tuple(images if keeps_empty_images else with_objects),
        bad=tuple(reading.bad),
        images_without_objects=len(images) - len(with_objects),
    )


def _choose_categories(categories: list[Any], classes: Sequence[str] | None) -> list[Any]:
    ordered = sorted(categories, key=lambda category: category["id"])
    if classes is None:
        return ordered
    names = {category["name"] for category in ordered}
    missing = [name for name in classes if name not in names]
    if missing:
        raise AnnotationError(f"The class {missing[0]!r} is not in the file; it has {', '.join(sorted(names))}.")
    return [category for category in ordered if category["name"] in set(classes)]


class _RejectedError(Exception):
    """An annotation cannot be used; the message is its kind."""


def _read_annotation(annotation: Mapping[str, Any], reading: _Reading, known_ids: set[int]) -> None:
    image = reading.images.get(annotation.get("image_id", -1))
    name = image["file_name"] if image else f"image {annotation.get('image_id')}"
    try:
        if image is None:
            raise _RejectedError("the image is not in the file")
        if annotation.get("category_id") not in known_ids:
            raise _RejectedError("the category is not in the file")
        label = reading.labels.get(annotation["category_id"])
        if label is None:
            return
        segmentation = annotation.get("segmentation") or None
        if isinstance(segmentation, list):
            sound = [part for part in segmentation if _is_sound_polygon(part)]
            kinds = (_polygon_flaw(part) for part in segmentation if not _is_sound_polygon(part))
            reading.bad.extend(BadAnnotation(annotation.get("id"), name, kind) for kind in kinds)
            if not sound:
                return
            segmentation = sound
        elif segmentation is not None and not _is_sound_rle(segmentation, image):
            raise _RejectedError("the run lengths do not fit the image")
        box = _clip_box(annotation.get("bbox"), segmentation, image)
        is_crowd = bool(annotation.get("iscrowd", 0))
        entry = ObjectAnnotation(annotation.get("id"), label, box, segmentation, is_crowd)
        reading.objects.setdefault(image["id"], []).append(entry)
    except _RejectedError as rejected:
        reading.bad.append(BadAnnotation(annotation.get("id"), name, str(rejected)))


def _is_sound_polygon(part: Any) -> bool:
    is_numbers = isinstance(part, list) and all(isinstance(number, int | float) for number in part)
    return is_numbers and len(part) >= _MIN_POLYGON_NUMBERS and len(part) % 2 == 0 and bool(np.isfinite(part).all())


def _polygon_flaw(part: Any) -> str:
    return "polygon with < 3 points" if isinstance(part, list) else "run lengths among polygons"


def _is_sound_rle(segmentation: Any, image: Mapping[str, Any]) -> bool:
    if not isinstance(segmentation, Mapping) or list(segmentation.get("size", [])) != [image["height"], image["width"]]:
        return False
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        return sum(counts) == image["height"] * image["width"] and min(counts, default=0) >= 0
    return isinstance(counts, str | bytes) and len(counts) > 0


def _clip_box(bbox: Any, segmentation: Any, image: Mapping[str, Any]) -> tuple[float, float, float, float]:
    if isinstance(bbox, list) and len(bbox) == 4:
        x1, y1, x2, y2 = bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]
    elif isinstance(segmentation, list):
        corners = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in segmentation])
        (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
    elif segmentation is not None:
        rle = _to_rle(segmentation, image["height"], image["width"])
        x1, y1, width, height = pycocotools.mask.toBbox(rle).tolist()
        x2, y2 = x1 + width, y1 + height
    else:
        raise _RejectedError("no box and no mask")
    limits = (image["width"], image["height"]) * 2
    x1, y1, x2, y2 = (
        min(max(float(edge), 0.0), float(limit)) for edge, limit in zip((x1, y1, x2, y2), limits, strict=True)
    )
    if not (x2 > x1 and y2 > y1):
        raise _RejectedError("no area inside the image")
    return x1, y1, x2, y2


def decode_mask(entry: ObjectAnnotation, height: int, width: int) -> NDArray[np.uint8]:
    """Draw one object's mask.

    Args:
        entry: polygons, run lengths (plain or compressed), or, without either, its box.
        height, width: of the original image.

    Returns:
        [height, width] uint8, 0 or 1.
    """
    if entry.segmentation is None:
        mask = np.zeros((height, width), np.uint8)
        x1, y1, x2, y2 = (round(edge) for edge in entry.box_xyxy)
        mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
        return mask
    return decode_rle(_to_rle(entry.segmentation, height, width)).astype(np.uint8)


def _to_rle(segmentation: Any, height: int, width: int) -> Any:
    if isinstance(segmentation, list):
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return pycocotools.mask.frPyObjects(segmentation, height, width)
    return segmentation


def merge_annotations(parts: Sequence[CocoAnnotations]) -> CocoAnnotations:
    """Put several data sets of the same classes together; image ids may repeat between them.

    Raises:
        AnnotationError: the classes differ.
    """
    for part in parts[1:]:
        if (part.classes, part.category_ids) != (parts[0].classes, parts[0].category_ids):
            raise AnnotationError(
                f"Data sets with other classes cannot be merged: {', '.join(parts[0].classes)} "
                f"and {', '.join(part.classes)}; name the classes to train on."
            )
    return CocoAnnotations(
        parts[0].classes,
        parts[0].category_ids,
        tuple(image for part in parts for image in part.images),
        tuple(bad for part in parts for bad in part.bad),
        sum(part.images_without_objects for part in parts),
    )
