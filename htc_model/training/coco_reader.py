"""Reads COCO annotations and checks them: wrong ones are named and left out; only an unusable file is an error."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from htc_model.training.annotation_parsing import RejectedError, Size, read_area, read_box, validate_segmentation
from htc_model.training.annotations import (
    AnnotationError,
    BadAnnotation,
    CocoAnnotations,
    ImageAnnotations,
    ImageId,
    ObjectAnnotation,
)

# pycocotools stores run lengths in 32 bits.
_MOST_PIXELS = 2**32 - 1
# Classes in a message; LVIS has 1,203.
_MAX_NAMED = 20


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
    """Check a COCO document and convert it to annotations.

    Categories of the same name count as one, with the lowest of their ids.

    Args:
        document: what `json.load` returned.
        classes: names to train on, all by default; objects of other classes are left out and not reported as bad.
        keeps_empty_images: images without a (non-crowd) object are kept, as pure background.
        is_truth: read for scoring, not for training. An object with a valid box but an invalid mask is kept without
            a mask, to score boxes; category ids may be text, and are then numbered from 1.
        find_size: returns (height, width) in pixels of an image without a size in the document; None if not known.

    Raises:
        AnnotationError: the document is not a COCO file, has no image with an object, or lacks a requested class.
    """
    if not isinstance(document, Mapping) or not all(
        isinstance(document.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise AnnotationError(
            "This is not a COCO annotation file: it needs the lists images, annotations and categories."
        )
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
    """Report ids that are written as decimals; 3.0 and 3 are the same id."""
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
    if height is not None and width is not None and min(height, width) > 0 and height * width <= _MOST_PIXELS:
        return height, width
    size = reading.find_size(name)
    if size is not None:
        kind = "image without height and width: they are those of the image itself"
        reading.mended.append(BadAnnotation(None, name, kind))
    return size


def _merge_categories(categories: list[Any], *, is_truth: bool) -> tuple[dict[str, list[ImageId]], list[str]]:
    """Return the categories' ids by name, in the order of their first ids, and notes on them."""
    named: dict[str, list[ImageId]] = {}
    for category in categories:
        has_name = isinstance(category, Mapping) and isinstance(category.get("name"), str)
        number: Any = category.get("id") if has_name else None
        if not _is_id(number) or (_whole(number) is None and not is_truth):
            kind = "an id" if is_truth else "an id, a whole number,"
            raise AnnotationError(f"The category {category} needs {kind} and a name.")
        named.setdefault(category["name"], []).append(number)
    ids = [number for numbers in named.values() for number in numbers]
    if len(set(ids)) < len(ids):
        raise AnnotationError("Two categories have the same id, so their objects cannot be distinguished.")
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
    """Return each class's lowest id; its position, from 1, if not all ids are whole numbers."""
    whole = [_whole(numbers[0]) for numbers in categories.values()]
    known = [number for number in whole if number is not None]
    return tuple(known) if len(known) == len(whole) else tuple(range(1, len(whole) + 1))


def _choose_categories(named: Mapping[str, list[ImageId]], classes: Sequence[str] | None) -> dict[str, list[ImageId]]:
    missing = [name for name in classes or () if name not in named]
    if missing:
        close = difflib.get_close_matches(missing[0], named, n=1)
        names = sorted(named)
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        raise AnnotationError(
            f"The class {missing[0]!r} is not in the file; {f'did you mean {close[0]}? It' if close else 'it'} has "
            f"{', '.join(names[:_MAX_NAMED])}{more}."
        )
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
    """Read one object; None if its mask cannot be used, which has then been recorded as bad."""
    size = reading.sizes[annotation["image_id"]]
    number = annotation.get("id")
    try:
        segmentation, flaws = validate_segmentation(annotation.get("segmentation"), size)
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
    """Compare with an earlier annotation of the same id.

    Raises:
        RejectedError: the earlier annotation is equal.
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
    """Read iscrowd: 0 or 1 as a number, a boolean or text."""
    return value.strip().lower() in {"1", "true"} if isinstance(value, str) else bool(value)


def _why_not_found(value: Any, known: Mapping[ImageId, Any] | frozenset[ImageId], kind: str) -> str:
    """Explain that an id is not in the file; an id of the other type, 7 and "7", is the likeliest reason."""
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
    """Return whether this can be an id for pycocotools: a number or text."""
    return (isinstance(value, int | str) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _whole(value: Any) -> int | None:
    """Return an integer, also one that is written as a decimal; None for anything else."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole and not isinstance(value, bool) else None
