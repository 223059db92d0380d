"""The ground truth of `htc evaluate`: COCO annotations with a run's class names, and notes on how they were read."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from htc_model.training.annotations import AnnotationError, BadAnnotation, CocoAnnotations
from htc_model.training.coco_reader import read_annotations
from pipeline.errors import InputError, SpecError
from pipeline.text import count_of

# Named examples of each kind of flaw; --json names all.
MAX_NAMED = 10

FindSize = Callable[[str], tuple[int, int] | None]


def read_truth(
    document: Any,
    uri: str,
    run: str,
    *,
    known: Sequence[str],
    classes: Sequence[str],
    is_model_known: bool,
    find_size: FindSize,
) -> tuple[CocoAnnotations, list[str]]:
    """Read annotations to score a run against.

    A category matches a class of the model if the names differ only in case or in spaces around them.

    Args:
        uri: URI of the document, and `run`: the run's name, for messages.
        known: names of the model's classes; if these are not known, the names that the run has detected.
        classes: names to score; empty for all that the model knows, or for all of the document.
        find_size: returns (height, width) in pixels of the run's image with a file name.

    Returns:
        The annotations, and sentences on how they were read.

    Raises:
        SpecError: the document is not valid for scoring.
        InputError: the model knows none of its classes.
    """
    notes: list[str] = []
    try:
        prepared = _with_names(document, known, notes)
        chosen = [_canonical(name, _category_names(prepared)) for name in classes] or None
        truth = read_annotations(prepared, classes=chosen, keeps_empty_images=True, is_truth=True, find_size=find_size)
        if chosen is None and is_model_known:
            shared = [name for name in truth.classes if name in known]
            if not shared:
                raise InputError(
                    f"The model of run {run} knows none of the classes in {uri}: it knows {listed(known)}, the file "
                    f"has {listed(truth.classes)}.{alike(truth.classes, known)}"
                )
            left = [name for name in truth.classes if name not in known]
            if left:
                notes.append(
                    f"Not scored: {len(left)} of the file's {len(truth.classes)} classes, which the model does not "
                    f"know ({listed(left)}).{alike(left, [name for name in known if name not in truth.classes])}"
                )
                truth = read_annotations(
                    prepared, classes=shared, keeps_empty_images=True, is_truth=True, find_size=find_size
                )
        elif chosen is None:
            notes.append(
                f"The model of run {run} is not on this machine, so its classes are not known: all "
                f"{len(truth.classes)} of the file are scored; choose others with --class."
            )
    except AnnotationError as error:
        raise SpecError(f"{uri}: {error}") from error
    return _in_order(truth), [*notes, *truth.notes]


def flaw_sentences(truth: CocoAnnotations, uri: str) -> list[str]:
    """Return how many annotations are flawed, how, and which, as sentences."""
    sentences = []
    if truth.bad:
        sentences.append(
            f"{uri}: {count_of(len(truth.bad), 'flaw')}; flawed annotations are left out, so detections of them "
            f"count as wrong: {_by_kind(truth.bad)}."
        )
    if truth.mended:
        sentences.append(
            f"{uri}: {count_of(len(truth.mended), 'flaw')} in annotations that still count: {_by_kind(truth.mended)}."
        )
    return sentences


def refuse_flaws(truth: CocoAnnotations, uri: str) -> None:
    """Refuse annotations with any flaw.

    Raises:
        SpecError: there is a flaw; the message names all kinds.
    """
    sentences = flaw_sentences(truth, uri)
    if sentences:
        raise SpecError(f"{' '.join(sentences)} With --strict, flawed annotations are refused.")


def _by_kind(flaws: Sequence[BadAnnotation]) -> str:
    kinds: dict[str, list[str]] = {}
    for flaw in flaws:
        where = flaw.image if flaw.annotation_id is None else f"annotation {flaw.annotation_id} of {flaw.image}"
        kinds.setdefault(flaw.kind, []).append(where)
    return "; ".join(f"{len(places)} x {kind} ({listed(places, MAX_NAMED)})" for kind, places in kinds.items())


def _with_names(document: Any, known: Sequence[str], notes: list[str]) -> Any:
    """Copy a document, with file names for images that have only a URL, and with the model's class names."""
    if not isinstance(document, Mapping):
        return document
    images, categories = document.get("images"), document.get("categories")
    if not isinstance(images, list) or not isinstance(categories, list):
        return document
    names = [*known, *_category_names(document)]
    renamed = []
    for category in categories:
        name = category.get("name") if isinstance(category, Mapping) else None
        if not isinstance(name, str):
            renamed.append(category)
            continue
        canonical = _canonical(name, names)
        if canonical != name:
            notes.append(f"The annotations' class {name!r} is treated as {canonical!r}.")
        renamed.append({**category, "name": canonical})
    return {**document, "images": [_with_file_name(image) for image in images], "categories": renamed}


def _with_file_name(image: Any) -> Any:
    """Add a missing file name, from coco_url (LVIS has no other) or from an id that is text."""
    if not isinstance(image, Mapping) or isinstance(image.get("file_name"), str):
        return image
    for key in ("coco_url", "id"):
        if isinstance(image.get(key), str) and image[key]:
            return {**image, "file_name": image[key].rsplit("/", 1)[-1] if key == "coco_url" else image[key]}
    return image


def _category_names(document: Any) -> list[str]:
    categories = document.get("categories") if isinstance(document, Mapping) else None
    if not isinstance(categories, list):
        return []
    names = [category.get("name") for category in categories if isinstance(category, Mapping)]
    return [name for name in names if isinstance(name, str)]


def _canonical(name: str, names: Sequence[str]) -> str:
    """Return the first of the names that equals this one except for case and surrounding spaces, else the name."""
    folded = name.strip().casefold()
    return next((each for each in names if each.strip().casefold() == folded), name)


def listed(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def alike(names: Sequence[str], known: Sequence[str]) -> str:
    """Return which names may be other spellings of the model's classes, as a sentence; "" if none is alike."""
    pairs = [(name, difflib.get_close_matches(name, known, n=1)) for name in names]
    found = [f"{name} may be the model's {close[0]}" for name, close in pairs if close]
    return f" In other words, {listed(found)}? Then rename it in the file." if found else ""


def _in_order(truth: CocoAnnotations) -> CocoAnnotations:
    """Order the images by their ids, as pycocotools does: the order decides between equal scores."""
    ids = [image.image_id for image in truth.images]
    if all(isinstance(each, str) for each in ids) or not any(isinstance(each, str) for each in ids):
        return replace(truth, images=tuple(sorted(truth.images, key=lambda image: image.image_id)))
    return truth
