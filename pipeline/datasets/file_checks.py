"""Checks of image files: there, readable, of the annotated size, and each only once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.datasets.findings import Findings
from pipeline.datasets.image_facts import ImageFacts, find_alike
from pipeline.datasets.source import Size


@dataclass(frozen=True)
class ListedImage:
    """An image that a split's JSON names, its annotated (width, height), and its file."""

    split: str
    file_name: str
    size: Size | None
    facts: ImageFacts

    @property
    def place(self) -> str:
        """Return its name for messages."""
        return f"{self.file_name} ({self.split})"


def check_files(images: Sequence[ListedImage], findings: Findings) -> None:
    """Check each image by itself."""
    for image in images:
        facts = image.facts
        if facts.is_missing:
            findings.add("image-missing", image.split, image.file_name)
        elif facts.problem is not None:
            findings.add("image-unreadable", image.split, f"{image.file_name} ({facts.problem})")
        elif facts.size is not None and image.size is not None and image.size != facts.size.upright:
            is_unturned = image.size == (facts.size.width, facts.size.height)
            annotated, is_ = ("x".join(map(str, size)) for size in (image.size, facts.size.upright))
            findings.add(
                "annotated-unturned" if is_unturned else "size-differs",
                image.split,
                f"{image.file_name} (JSON {annotated}, file {is_})",
            )


def check_repetitions(images: Sequence[ListedImage], trained: Collection[str], findings: Findings) -> None:
    """Find images that are the same, or look the same, within a split and across splits.

    Args:
        trained: the splits that are trained on, which count as one.
    """
    first_of: dict[object, ListedImage] = {}
    reported: set[int] = set()
    for number, image in enumerate(images):
        keys: list[object] = [image.facts.uri]
        if image.facts.digest is not None:
            keys.append(image.facts.digest)
        earlier = [first_of[key] for key in keys if key in first_of]
        for key in keys:
            first_of.setdefault(key, image)
        if not earlier:
            continue
        reported.add(number)
        if _are_together(earlier[0], image, trained):
            findings.add(
                "image-twice", image.split, f"{image.file_name} = {earlier[0].file_name}", image=image.file_name
            )
        else:
            findings.add("splits-overlap", image.split, f"{image.place} = {earlier[0].place}", image=image.file_name)
    _check_looks(images, reported, trained, findings)
    _check_stems(images, findings)


def _are_together(one: ListedImage, other: ListedImage, trained: Collection[str]) -> bool:
    return one.split == other.split or (one.split in trained and other.split in trained)


def _check_looks(
    images: Sequence[ListedImage], reported: set[int], trained: Collection[str], findings: Findings
) -> None:
    seen: set[int] = set(reported)
    for one, other in find_alike([image.facts.look for image in images]):
        if other in seen:
            continue
        seen.add(other)
        first, second = images[one], images[other]
        code = "near-twice" if _are_together(first, second, trained) else "near-splits-overlap"
        findings.add(code, second.split, f"{second.place} ~ {first.place}", image=second.file_name)


def _check_stems(images: Sequence[ListedImage], findings: Findings) -> None:
    """Find a.jpg beside a.png: usually one photo, exported twice."""
    first_of: dict[str, ListedImage] = {}
    for image in images:
        stem = str(PurePosixPath(image.file_name).with_suffix(""))
        earlier = first_of.setdefault(stem, image)
        if earlier.file_name != image.file_name:
            findings.add("two-formats", image.split, f"{image.place}, {earlier.place}", image=image.file_name)


def listed_names(document: Mapping[str, Any]) -> list[tuple[str, Size | None]]:
    """Return the file names of a COCO document's images, each with its (width, height) or None."""
    listed = []
    for image in document["images"]:
        name = image.get("file_name") if isinstance(image, Mapping) else None
        if isinstance(name, str) and name:
            sides = _whole(image.get("width")), _whole(image.get("height"))
            listed.append((name, (sides[0], sides[1]) if sides[0] and sides[1] else None))
    return listed


def _whole(side: Any) -> int | None:
    """Return a side in pixels, also one that is written as a decimal; None for anything else."""
    is_whole = isinstance(side, int) or (isinstance(side, float) and side.is_integer())
    return int(side) if is_whole and side > 0 else None
