"""COCO annotations, read once and checked: what is wrong is named and left out, never fatal, never silent."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle
from htc_model.training.annotation_parsing import RejectedError, Size, read_area, read_box, sound_segmentation, to_rle

# As JSON has them: whole numbers, decimals, text.
ImageId = int | float | str


class AnnotationError(ValueError):
    """An annotation file as a whole cannot be trained on; the message is one sentence for a person."""


@dataclass(frozen=True)
class BadAnnotation:
    """One annotation, or one part of it, that is wrong: left out, or mended.

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

    label: in [0, C). box_xyxy: original pixels, clipped to the image. area: in pixels, as in the file; where there is
        none, the mask's, or the box's without a mask. segmentation: polygons or run lengths as in the file; None where
        there is only a box. unclipped_xywh: the box as in the file, x, y, width, height; None where it was missing.
    """

    annotation_id: object
    label: int
    box_xyxy: tuple[float, float, float, float]
    area: float
    segmentation: Any
    is_crowd: bool
    unclipped_xywh: tuple[float, float, float, float] | None = None

    @property
    def bbox_xywh(self) -> tuple[float, float, float, float]:
        """The box that scoring takes: x, y, width, height in pixels, as in the file where it has one."""
        if self.unclipped_xywh is not None:
            return self.unclipped_xywh
        x1, y1, x2, y2 = self.box_xyxy
        return x1, y1, x2 - x1, y2 - y1


@dataclass(frozen=True)
class ImageAnnotations:
    """One image of the data set; sizes in original pixels; stuff_file: its semantic map, where there is one."""

    image_id: ImageId
    file_name: str
    height: int
    width: int
    objects: tuple[ObjectAnnotation, ...]
    stuff_file: str | None = None


@dataclass(frozen=True)
class CocoAnnotations:
    """A data set: its classes in the order of their category ids, its images, and what was wrong.

    bad: left out. mended: what still counts, though something of it was wrong or missing. notes: sentences on how the
    file as a whole was understood.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageAnnotations, ...]
    bad: tuple[BadAnnotation, ...] = ()
    images_without_objects: int = 0
    mended: tuple[BadAnnotation, ...] = ()
    notes: tuple[str, ...] = ()

    def bad_counts(self) -> dict[str, int]:
        """Count what was left out by kind, most frequent first."""
        return dict(Counter(bad.kind for bad in self.bad).most_common())


@dataclass
class _Reading:
    """The state of one pass over a file."""

    labels: Mapping[ImageId, int]
    known_ids: frozenset[ImageId]
    find_size: Callable[[str], Size | None]
    is_truth: bool
    images: dict[ImageId, Mapping[str, Any]] = field(default_factory=dict)
    sizes: dict[ImageId, Size] = field(default_factory=dict)
    objects: dict[ImageId, list[ObjectAnnotation]] = field(default_factory=dict)
    seen: dict[ImageId, Mapping[str, Any]] = field(default_factory=dict)
    bad: list[BadAnnotation] = field(default_factory=list)
    mended: list[BadAnnotation] = field(default_factory=list)


def read_annotations(
    document: Any,
    *,
    classes: Sequence[str] | None = None,
    keeps_empty_images: bool = False,
    is_truth: bool = False,
    find_size: Callable[[str], Size | None] = lambda _: None,
) -> CocoAnnotations:
    """Check a COCO document and turn it into annotations.

    Categories of one name count as one, under the lowest of their ids.

    Args:
        document: what `json.load` gave.
        classes: names to train on, all by default; objects of other classes are left out without being called bad.
        keeps_empty_images: images without a (non-crowd) object are kept, as pure background.
        is_truth: read to score and not to train. An object whose mask cannot be used and whose box can is kept without
            a mask, to score boxes; ids of categories may be text, and are numbered from 1 then.
        find_size: (height, width) in pixels of an image that the document gives no size for; None if not known.

    Raises:
        AnnotationError: the document is no COCO file, has no image with an object, or lacks a class asked
            for.
    """
    if not isinstance(document, Mapping) or not all(
        isinstance(document.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise AnnotationError("This is no COCO annotation file: it needs the lists images, annotations and categories.")
    named, notes = _merge_categories(document["categories"], is_truth=is_truth)
    categories = _choose_categories(named, classes)
    labels = {name: label for label, name in enumerate(categories)}
    reading = _Reading(
        labels={number: labels[name] for name, numbers in categories.items() for number in numbers},
        known_ids=frozenset(number for numbers in named.values() for number in numbers),
        find_size=find_size,
        is_truth=is_truth,
    )
    for image in document["images"]:
        _read_image(image, reading)
    for annotation in document["annotations"]:
        _read_annotation(annotation, reading)
    images = [
        ImageAnnotations(
            image_id, image["file_name"], *reading.sizes[image_id], tuple(reading.objects.get(image_id, ()))
        )
        for image_id, image in reading.images.items()
    ]
    with_objects = [image for image in images if any(not entry.is_crowd for entry in image.objects)]
    if not with_objects:
        raise AnnotationError(
            f"No image has an object to {'score' if is_truth else 'train on'}: {len(images)} usable images, "
            f"{len(document['annotations'])} annotations, {len(reading.bad)} flaws"
            f"{f', such as {reading.bad[0]}' if reading.bad else ''}."
        )
    return CocoAnnotations(
        classes=tuple(categories),
        category_ids=_category_ids(categories),
        images=tuple(images if keeps_empty_images else with_objects),
        bad=tuple(reading.bad),
        images_without_objects=len(images) - len(with_objects),
        mended=tuple(reading.mended),
        notes=(*notes, *_note_decimals(document)),
    )


def _note_decimals(document: Mapping[str, Any]) -> list[str]:
    """Name the ids that are written as decimals; 3.0 and 3 are one id."""
    keys = [("images", "id"), ("categories", "id"), ("annotations", "image_id"), ("annotations", "category_id")]
    found = [
        (name, key, entry[key])
        for name, key in keys
        for entry in document[name]
        if isinstance(entry, Mapping) and isinstance(entry.get(key), float)
    ]
    if not found:
        return []
    name, key, value = found[0]
    return [
        f"{len(found)} {'id is' if len(found) == 1 else 'ids are'} written as decimals, such as {key} {value} "
        f"in {name}; {value} counts as the number {value:g}."
    ]


def _read_image(image: Any, reading: _Reading) -> None:
    if not isinstance(image, Mapping):
        reading.bad.append(BadAnnotation(None, "an image", f"image without keys: {type(image).__name__}"))
        return
    image_id: Any = image.get("id")
    name: Any = image.get("file_name")
    flaw = ""
    if not isinstance(name, str) or not name:
        flaw = "image without file_name"
    elif not _is_id(image_id):
        flaw = "image without id" if image_id is None else "image whose id is neither a number nor text"
    elif image_id in reading.images:
        if reading.images[image_id] == image:
            reading.mended.append(BadAnnotation(None, name, "image listed twice, counted once"))
            return
        flaw = "image id that another image has"
    if flaw or not isinstance(name, str) or not _is_id(image_id):
        reading.bad.append(BadAnnotation(None, str(name or "an image"), flaw))
        return
    size = _read_size(image, name, reading)
    if size is None:
        reading.bad.append(BadAnnotation(None, name, "image without height and width"))
        return
    reading.images[image_id] = image
    reading.sizes[image_id] = size


def _read_size(image: Mapping[str, Any], name: str, reading: _Reading) -> Size | None:
    height, width = (_whole(image.get(side)) for side in ("height", "width"))
    if height is not None and width is not None and height > 0 and width > 0:
        return height, width
    size = reading.find_size(name)
    if size is not None:
        kind = "image without height and width: they are those of the image itself"
        reading.mended.append(BadAnnotation(None, name, kind))
    return size


def _merge_categories(categories: list[Any], *, is_truth: bool) -> tuple[dict[str, list[ImageId]], list[str]]:
    """Return the categories' ids by name, in the order of their first ids, and what is to be said of them."""
    named: dict[str, list[ImageId]] = {}
    for category in categories:
        is_sound = isinstance(category, Mapping) and isinstance(category.get("name"), str)
        number: Any = category.get("id") if is_sound else None
        if not _is_id(number) or (_whole(number) is None and not is_truth):
            kind = "an id" if is_truth else "an id, a whole number as the tables have it,"
            raise AnnotationError(f"The category {category} needs {kind} and a name.")
        named.setdefault(category["name"], []).append(number)
    ids = [number for numbers in named.values() for number in numbers]
    if len(set(ids)) < len(ids):
        raise AnnotationError("Two categories have the same id; without them apart, their objects cannot be told.")
    ordered = sorted(
        ((name, sorted(numbers, key=_id_order)) for name, numbers in named.items()),
        key=lambda pair: _id_order(pair[1][0]),
    )
    notes = [
        f"The categories {', '.join(str(number) for number in numbers)} are all called {name}; they count as one class."
        for name, numbers in ordered
        if len(numbers) > 1
    ]
    return dict(ordered), notes


def _id_order(number: ImageId) -> tuple[float, str]:
    return (math.inf, number) if isinstance(number, str) else (number, "")


def _category_ids(categories: Mapping[str, list[ImageId]]) -> tuple[int, ...]:
    """Return each class's lowest id; a place, from 1, when not all ids are whole numbers."""
    whole = [_whole(numbers[0]) for numbers in categories.values()]
    known = [number for number in whole if number is not None]
    return tuple(known) if len(known) == len(whole) else tuple(range(1, len(whole) + 1))


def _choose_categories(named: Mapping[str, list[ImageId]], classes: Sequence[str] | None) -> dict[str, list[ImageId]]:
    missing = [name for name in classes or () if name not in named]
    if missing:
        raise AnnotationError(f"The class {missing[0]!r} is not in the file; it has {', '.join(sorted(named))}.")
    return {name: numbers for name, numbers in named.items() if classes is None or name in set(classes)}


def _read_annotation(annotation: Any, reading: _Reading) -> None:
    if not isinstance(annotation, Mapping):
        reading.bad.append(BadAnnotation(None, "the file", f"annotation without keys: {type(annotation).__name__}"))
        return
    image_id: Any = annotation.get("image_id")
    image = reading.images.get(image_id) if _is_id(image_id) else None
    name = image["file_name"] if image else f"image {image_id}"
    try:
        if image is None:
            raise RejectedError(_why_not_found(image_id, reading.images, "image"))
        category_id: Any = annotation.get("category_id")
        if not _is_id(category_id) or category_id not in reading.known_ids:
            raise RejectedError(_why_not_found(category_id, reading.known_ids, "category"))
        label = reading.labels.get(category_id)
        if label is None:
            return
        _check_repeat(annotation, name, reading)
        entry = _read_object(annotation, label, name, reading)
        if entry is not None:
            reading.objects.setdefault(image["id"], []).append(entry)
    except RejectedError as rejected:
        reading.bad.append(BadAnnotation(annotation.get("id"), name, str(rejected)))


def _read_object(annotation: Mapping[str, Any], label: int, name: str, reading: _Reading) -> ObjectAnnotation | None:
    """Read one object; None when its mask cannot be used, which has been noted then."""
    size = reading.sizes[annotation["image_id"]]
    number = annotation.get("id")
    try:
        segmentation, flaws = sound_segmentation(annotation.get("segmentation"), size)
    except RejectedError as rejected:
        segmentation, flaws = [], [str(rejected)]
    is_without_mask = segmentation == []
    if is_without_mask and not reading.is_truth:
        reading.bad.extend(BadAnnotation(number, name, flaw) for flaw in flaws)
        return None
    segmentation = segmentation or None
    try:
        box = read_box(annotation.get("bbox"), segmentation, size)
    except RejectedError:
        reading.bad.extend(BadAnnotation(number, name, flaw) for flaw in flaws)
        raise
    if is_without_mask:
        reading.mended.extend(BadAnnotation(number, name, f"{flaw}: counts for boxes only") for flaw in flaws)
    else:
        reading.bad.extend(BadAnnotation(number, name, flaw) for flaw in flaws)
    if box.flaw:
        reading.mended.append(BadAnnotation(number, name, f"{box.flaw}: the box is taken from the mask"))
    area = read_area(annotation.get("area"), box.xyxy, segmentation, size)
    is_crowd = _is_crowd(annotation.get("iscrowd"))
    return ObjectAnnotation(number, label, box.xyxy, area, segmentation, is_crowd, box.unclipped_xywh)


def _check_repeat(annotation: Mapping[str, Any], name: str, reading: _Reading) -> None:
    """Look for an annotation of the same id.

    Raises:
        RejectedError: the very same annotation was there before.
    """
    number: Any = annotation.get("id")
    if not _is_id(number):
        return
    earlier = reading.seen.setdefault(number, annotation)
    if earlier is annotation:
        return
    if earlier == annotation:
        raise RejectedError("annotation listed twice")
    reading.mended.append(BadAnnotation(number, name, "annotation id that another annotation has: counts on its own"))


def _is_crowd(value: Any) -> bool:
    """Read iscrowd: 0 or 1, as a number, as true or false, or as text."""
    return value.strip().lower() in {"1", "true"} if isinstance(value, str) else bool(value)


def _why_not_found(value: Any, known: Mapping[ImageId, Any] | frozenset[ImageId], kind: str) -> str:
    """Say that an id is not in the file; an id of the other type, 7 and "7", is the likeliest reason."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if number in known:
            return f"the {kind} is not in the file: {kind}_id is text, the id a number"
    elif _is_id(value) and str(value) in known:
        return f"the {kind} is not in the file: {kind}_id is a number, the id text"
    return f"the {kind} is not in the file"


def _is_id(value: Any) -> TypeGuard[int | float | str]:
    """Whether pycocotools could look this up: a number, or text."""
    return (isinstance(value, int | str) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _whole(value: Any) -> int | None:
    """Return a whole number, also one that is written as a decimal; None for anything else."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole and not isinstance(value, bool) else None


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
        tuple(mended for part in parts for mended in part.mended),
        tuple(note for part in parts for note in part.notes),
    )
