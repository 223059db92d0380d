"""Checks of image files: there, readable, of the annotated size, and each only once."""

from collections.abc import Mapping, Sequence
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


def check_repetitions(images: Sequence[ListedImage], findings: Findings) -> None:
    """Find images that are the same, or look the same, within a split and across splits."""
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
        if earlier[0].split == image.split:
            findings.add(
                "image-twice", image.split, f"{image.file_name} = {earlier[0].file_name}", image=image.file_name
            )
        else:
            findings.add("splits-overlap", image.split, f"{image.place} = {earlier[0].place}", image=image.file_name)
    _check_looks(images, reported, findings)
    _check_stems(images, findings)


def _check_looks(images: Sequence[ListedImage], reported: set[int], findings: Findings) -> None:
    seen: set[int] = set(reported)
    for one, other in find_alike([image.facts.look for image in images]):
        if other in seen:
            continue
        seen.add(other)
        first, second = images[one], images[other]
        code = "near-twice" if first.split == second.split else "near-splits-overlap"
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
            width, height = image.get("width"), image.get("height")
            are_whole = all(
                isinstance(side, int | float) and side > 0 and int(side) == side for side in (width, height)
            )
            listed.append((name, (int(width), int(height)) if are_whole else None))
    return listed
