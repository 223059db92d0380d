"""Reads COCO's JSON, also as CVAT and Roboflow export it.

CVAT marks every brush mask as a crowd (its exporter, Datumaro, does so with whatever is not a polygon), and crowds are
not trained on; so in its exports they are objects.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from htc_model.training.annotation_parsing import RejectedError, validate_segmentation
from pipeline.datasets.formats.files import ImageFinder, SourceFiles, load_json
from pipeline.datasets.source import Flaws, Size, SourceDataset, SourceImage, SourceObject
from pipeline.datasets.split_names import known_split
from pipeline.errors import SpecError

Crowds = Literal["auto", "keep", "objects"]

_KEPT_IMAGE_FIELDS = ("license", "flickr_url", "coco_url", "date_captured")
_KEPT_FIELDS = ("info", "licenses")


def is_coco(document: Any) -> bool:
    """Return whether a JSON document has the lists of COCO's instance annotations."""
    return isinstance(document, Mapping) and all(
        isinstance(document.get(key), list) for key in ("images", "annotations", "categories")
    )


def read_coco_files(files: SourceFiles, finder: ImageFinder, flaws: Flaws, *, crowds: Crowds) -> SourceDataset:
    """Read the JSON files of a source; several are its splits.

    Raises:
        SpecError: a file cannot be read, or the files' categories differ.
    """
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for path in files.with_suffix(".json"):
        document = load_json(path, files.name_of(path))
        if is_coco(document):
            found.append((path, document))
        else:
            flaws.leave_out("JSON file that is not COCO's", files.name_of(path))
    if not found:
        raise SpecError(f"{files.source} has no COCO JSON: it needs the lists images, annotations and categories.")
    parts = [
        _read(path, document, files.name_of(path), finder=finder, flaws=flaws, crowds=crowds)
        for path, document in found
    ]
    first = parts[0]
    for part, (path, _) in zip(parts[1:], found[1:], strict=True):
        if (part.classes, part.category_ids) != (first.classes, first.category_ids):
            raise SpecError(
                f"{files.name_of(path)} has other categories than {files.name_of(found[0][0])}; convert each file "
                "alone, or number the categories alike."
            )
    if len(parts) == 1:
        return first
    splits = [_split_of(path) for path, _ in found]
    if len(set(splits)) < len(splits):
        splits = [path.stem for path, _ in found]
    images = tuple(
        replace(image, split=split) for part, split in zip(parts, splits, strict=True) for image in part.images
    )
    return replace(first, images=images, notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)))


def _split_of(path: Path) -> str:
    """Return the split that a file or its folder is named after, such as valid/_annotations.coco.json."""
    return known_split(path.stem) or known_split(path.parent.name) or path.stem


def _read(
    path: Path,
    document: Mapping[str, Any],
    name: str,
    *,
    finder: ImageFinder,
    flaws: Flaws,
    crowds: Crowds,
) -> SourceDataset:
    names, category_ids = _read_categories(document["categories"], name)
    is_cvat = _is_cvat_export(document["annotations"])
    are_objects = crowds == "objects" or (crowds == "auto" and is_cvat)
    objects: dict[Any, list[SourceObject]] = {}
    sizes: dict[Any, Size | None] = {}
    images: dict[Any, SourceImage] = {}
    for image in document["images"]:
        read = _read_image(image, path, name, finder, flaws)
        if read is None:
            continue
        if _key(image.get("id")) in images:
            flaws.leave_out("image whose id another image has", read.name)
            continue
        images[_key(image.get("id"))] = read
        sizes[_key(image.get("id"))] = read.size
    crowded = 0
    for number, annotation in enumerate(document["annotations"]):
        where = f"annotation {annotation.get('id', number) if isinstance(annotation, Mapping) else number}"
        key = _key(annotation.get("image_id")) if isinstance(annotation, Mapping) else None
        if key not in images:
            flaws.leave_out("annotation of an image that is not in the file", f"{name}, {where}")
            continue
        label = names.get(_key(annotation.get("category_id")))
        place = f"{images[key].name}, {where}"
        if label is None:
            flaws.leave_out("annotation of a category that is not in the file", place)
            continue
        entry = _read_annotation(annotation, label, sizes[key], where=where, place=place, flaws=flaws)
        if entry is not None:
            crowded += entry.is_crowd
            objects.setdefault(key, []).append(replace(entry, is_crowd=entry.is_crowd and not are_objects))
    return SourceDataset(
        "COCO JSON" + (" of CVAT" if is_cvat else ""),
        tuple(replace(image, objects=tuple(objects.get(key, ()))) for key, image in images.items()),
        classes=tuple(dict.fromkeys(names.values())),
        category_ids=category_ids,
        fields={key: document[key] for key in _KEPT_FIELDS if key in document},
        notes=_crowd_notes(crowded, name, crowds, is_cvat=is_cvat),
    )


def _crowd_notes(crowded: int, name: str, crowds: Crowds, *, is_cvat: bool) -> tuple[str, ...]:
    """Say what becomes of masks that are marked as crowds."""
    if not crowded or crowds == "keep":
        return ()
    if crowds == "auto" and not is_cvat:
        return (
            f"{crowded:,} masks of {name} are marked as crowds, on which nothing is trained; if they are objects, add "
            "--crowds objects.",
        )
    why = ", as CVAT marks every brush mask" if is_cvat else ""
    return (
        f"{crowded:,} masks of {name} are marked as crowds{why}, and count as objects; --crowds keep leaves them "
        "crowds.",
    )


def _key(value: Any) -> Any:
    """Return an id that can be a key; None for what cannot."""
    return value if isinstance(value, int | str | float) and not isinstance(value, bool) else None


def _read_categories(categories: list[Any], name: str) -> tuple[dict[Any, str], tuple[int, ...] | None]:
    """Return names by id, in the order of the ids, and the first id of each name if all are whole numbers."""
    named: dict[Any, str] = {}
    for category in categories:
        number = _key(category.get("id")) if isinstance(category, Mapping) else None
        label = category.get("name") if isinstance(category, Mapping) else None
        if number is None or not isinstance(label, str) or not label:
            raise SpecError(f"{name}: the category {str(category)[:80]} needs an id and a name.")
        if number in named:
            raise SpecError(f"{name}: two categories have the id {number}; number them differently.")
        named[number] = label
    if not named:
        raise SpecError(f"{name} has no categories.")
    are_whole = all(isinstance(number, int) for number in named)
    ordered = dict(sorted(named.items())) if are_whole else named
    first = {label: number for number, label in reversed(ordered.items())}
    return ordered, tuple(first[label] for label in dict.fromkeys(ordered.values())) if are_whole else None


def _is_cvat_export(annotations: list[Any]) -> bool:
    """CVAT writes the attribute "occluded" into every annotation."""
    first = annotations[0] if annotations else None
    attributes = first.get("attributes") if isinstance(first, Mapping) else None
    return isinstance(attributes, Mapping) and "occluded" in attributes


def _read_image(image: Any, path: Path, name: str, finder: ImageFinder, flaws: Flaws) -> SourceImage | None:
    if not isinstance(image, Mapping) or _key(image.get("id")) is None:
        flaws.leave_out("image without an id", name)
        return None
    stated = image.get("file_name")
    if not isinstance(stated, str) or not stated:
        # LVIS names its images by their addresses only.
        url = image.get("coco_url")
        stated = "/".join(url.split("/")[-2:]) if isinstance(url, str) and url else None
    if stated is None:
        flaws.leave_out("image without file_name", f"{name}, image {image.get('id')}")
        return None
    width, height = image.get("width"), image.get("height")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None
    # Where several splits have images of one name, those beside the JSON are its own.
    beside = path.parent / PurePosixPath(stated)
    file = beside if beside.is_file() else finder.named(stated)
    fields = {key: image[key] for key in _KEPT_IMAGE_FIELDS if key in image}
    if isinstance(image["id"], int):
        fields["id"] = image["id"]
    return SourceImage(stated, file, size, fields=fields)


def _read_annotation(
    annotation: Mapping[str, Any], label: str, size: Size | None, *, where: str, place: str, flaws: Flaws
) -> SourceObject | None:
    is_crowd = annotation.get("iscrowd") in (1, True, "1")
    segmentation, box = annotation.get("segmentation"), _read_box(annotation.get("bbox"))
    if size is None and not isinstance(segmentation, list):
        counts = segmentation.get("size") if isinstance(segmentation, Mapping) else None
        size = (counts[1], counts[0]) if isinstance(counts, list) and len(counts) == 2 else None
    # Without a size, polygons are measured against the file's later on.
    height, width = (size[1], size[0]) if size else (1 << 20, 1 << 20)
    try:
        sound, reasons = validate_segmentation(segmentation, (height, width))
    except RejectedError as rejected:
        flaws.leave_out(str(rejected), place)
        return None
    for reason in reasons:
        flaws.leave_out(reason, place)
    if isinstance(sound, Mapping):
        return SourceObject(label, where, rle=sound, is_crowd=is_crowd)
    if sound:
        polygons = tuple(np.asarray(part, np.float64).reshape(-1, 2) for part in sound)
        return SourceObject(label, where, polygons=polygons, is_crowd=is_crowd)
    if reasons:
        return None
    if box is None:
        flaws.leave_out("no box and no mask", place)
        return None
    return SourceObject(label, where, box=box, is_crowd=is_crowd)


def _read_box(values: Any) -> tuple[float, float, float, float] | None:
    try:
        x, y, width, height = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return (x, y, width, height) if np.isfinite([x, y, width, height]).all() else None
