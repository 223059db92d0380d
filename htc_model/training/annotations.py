"""COCO annotations, read once and checked: what is wrong is named and left out, never fatal, never silent."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.rle import decode_rle
from htc_model.training.segmentations import RejectedError, clip_box, read_area, sound_segmentation, to_rle


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
        where = self.image if self.annotation_id is None else f"annotation {self.annotation_id} of {self.image}"
        return f"{where}: {self.kind}"


@dataclass(frozen=True)
class ObjectAnnotation:
    """One object.

    label: in [0, C). box_xyxy: original pixels, clipped to the image. area: in pixels, as in the file (of the mask in
        COCO), or the box's. segmentation: polygons or run lengths as in the file; None where there is only a box.
    """

    annotation_id: object
    label: int
    box_xyxy: tuple[float, float, float, float]
    area: float
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
    images: dict[int, Mapping[str, Any]]
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
        images={},
    )
    for image in document["images"]:
        _read_image(image, reading)
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
            f"No image has an object to train on: {len(images)} usable images, {len(document['annotations'])} "
            f"annotations, {len(reading.bad)} flaws{f', such as {reading.bad[0]}' if reading.bad else ''}."
        )
    return CocoAnnotations(
        classes=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        images=tuple(images if keeps_empty_images else with_objects),
        bad=tuple(reading.bad),
        images_without_objects=len(images) - len(with_objects),
    )


def _read_image(image: Any, reading: _Reading) -> None:
    is_sound = (
        isinstance(image, Mapping)
        and _is_id(image.get("id"))
        and isinstance(image.get("file_name"), str)
        and all(_is_id(image.get(side)) and image[side] > 0 for side in ("height", "width"))
    )
    if not is_sound:
        name = image.get("file_name", "an image") if isinstance(image, Mapping) else "an image"
        reading.bad.append(BadAnnotation(None, str(name), "image without id, file_name, height or width"))
    elif image["id"] in reading.images:
        reading.bad.append(BadAnnotation(None, image["file_name"], "image id that another image has"))
    else:
        reading.images[image["id"]] = image


def _choose_categories(categories: list[Any], classes: Sequence[str] | None) -> list[Any]:
    for category in categories:
        is_sound = (
            isinstance(category, Mapping) and isinstance(category.get("name"), str) and _is_id(category.get("id"))
        )
        if not is_sound:
            raise AnnotationError(f"The category {category} needs an id, a whole number, and a name.")
    if len({category["id"] for category in categories}) < len(categories):
        raise AnnotationError("Two categories have the same id; without them apart, their objects cannot be told.")
    ordered = sorted(categories, key=lambda category: category["id"])
    if classes is None:
        return ordered
    names = {category["name"] for category in ordered}
    missing = [name for name in classes if name not in names]
    if missing:
        raise AnnotationError(f"The class {missing[0]!r} is not in the file; it has {', '.join(sorted(names))}.")
    return [category for category in ordered if category["name"] in set(classes)]


def _read_annotation(annotation: Any, reading: _Reading, known_ids: set[int]) -> None:
    if not isinstance(annotation, Mapping):
        reading.bad.append(BadAnnotation(None, "the file", f"annotation without keys: {type(annotation).__name__}"))
        return
    image = _look_up(reading.images, annotation.get("image_id"))
    name = image["file_name"] if image else f"image {annotation.get('image_id')}"
    try:
        if image is None:
            raise RejectedError("the image is not in the file")
        if not _is_id(annotation.get("category_id")) or annotation["category_id"] not in known_ids:
            raise RejectedError("the category is not in the file")
        label = reading.labels.get(annotation["category_id"])
        if label is None:
            return
        size = image["height"], image["width"]
        segmentation, flaws = sound_segmentation(annotation.get("segmentation"), size)
        reading.bad.extend(BadAnnotation(annotation.get("id"), name, flaw) for flaw in flaws)
        if segmentation == []:
            return
        box = clip_box(annotation.get("bbox"), segmentation, size)
        area = read_area(annotation.get("area"), box)
        is_crowd = bool(annotation.get("iscrowd", 0))
        entry = ObjectAnnotation(annotation.get("id"), label, box, area, segmentation, is_crowd)
        reading.objects.setdefault(image["id"], []).append(entry)
    except RejectedError as rejected:
        reading.bad.append(BadAnnotation(annotation.get("id"), name, str(rejected)))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _look_up(images: Mapping[int, Mapping[str, Any]], image_id: Any) -> Mapping[str, Any] | None:
    return images.get(image_id) if _is_id(image_id) else None


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
    return decode_rle(to_rle(entry.segmentation, (height, width))).astype(np.uint8)


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
