"""What a check of a data set finds: a catalogue of kinds, each with its severity and its way out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

MAX_EXAMPLES = 10

# By code: the severity, what the things are, and the way out. An error makes training fail, or its scores wrong; a
# warning costs quality; a note is for knowing. docs/own_classes.md lists them.
CATALOGUE: Mapping[str, tuple[Severity, str, str]] = {
    "annotations-unusable": (
        "error",
        "annotation files that cannot be trained on",
        "correct what the file's line says, or name another file",
    ),
    "image-missing": (
        "error",
        "images that the JSON names and that are not there",
        "copy them there, name their folder by --images, or leave them out by converting again",
    ),
    "image-unreadable": (
        "error",
        "images that cannot be read",
        "save them again as JPEG or PNG, or take them out of the JSON",
    ),
    "size-differs": (
        "error",
        "images of another size than the JSON says",
        "put back the images that were annotated, or scale the annotations with them",
    ),
    "annotated-unturned": (
        "error",
        "images annotated on their stored pixels, though their EXIF orientation turns them",
        "htc dataset convert turns the annotations upright",
    ),
    "splits-overlap": (
        "error",
        "images that are in two splits, so that scores come from images trained on",
        "split again by htc dataset split, which keeps equal images together",
    ),
    "categories-differ": (
        "error",
        "categories whose id or name differs between splits",
        "number them alike; htc dataset split writes splits with the same categories",
    ),
    "class-not-trained": (
        "error",
        "classes that are scored and have no object in the training split",
        "split again by htc dataset split, which gives each split some of every class, or take the class out",
    ),
    "mask-off-image": (
        "error",
        "objects that lie wholly off their image",
        "annotate them again, or convert again: htc dataset convert leaves them out",
    ),
    "near-splits-overlap": (
        "warning",
        "images that look like an image of another split",
        "htc dataset split --near-duplicates keeps them together",
    ),
    "image-twice": (
        "warning",
        "images with the same content as another image of their split",
        "keep one of each; objects annotated on one only are background on the other",
    ),
    "two-formats": (
        "warning",
        "images of one name in two formats (a.jpg and a.png)",
        "keep the one that was annotated",
    ),
    "empty-class": (
        "warning",
        "classes without an object in the training split",
        "annotate some, or take the class out by htc dataset convert --class",
    ),
    "rare-class": (
        "warning",
        "classes with fewer than 20 objects in the training split",
        "annotate more; below some 20 objects a class is hardly learned",
    ),
    "class-not-evaluated": (
        "warning",
        "classes with objects in the training split and none in the validation split",
        "split again by htc dataset split, which gives each split some of every class",
    ),
    "similar-names": (
        "warning",
        "classes whose names differ only in case or spaces",
        "join them by htc dataset convert --rename OLD=NEW",
    ),
    "annotation-left-out": (
        "warning",
        "annotations, or parts of them, that training leaves out",
        "annotate them again, or convert again: htc dataset convert leaves them out",
    ),
    "mask-empty": ("warning", "masks that cover no pixel", "annotate them again, or take them out"),
    "mask-crosses-itself": (
        "warning",
        "polygons whose edges cross each other, so that a part of them may be cut out",
        "draw them again; a net of two crossing loops is usually a slip of the mouse",
    ),
    "box-differs": (
        "warning",
        "objects whose box is not their mask's",
        "leave the box out of the JSON, or convert again: boxes are then those of the masks",
    ),
    "box-only": (
        "warning",
        "objects with a box and no mask, which are trained as filled rectangles",
        "draw their masks, or take them out",
    ),
    "annotation-twice": (
        "warning",
        "objects annotated twice: the same class, nearly the same mask",
        "take one of each out",
    ),
    "mostly-crowds": (
        "warning",
        "classes of which most masks are marked as crowds, which are not trained on",
        "CVAT marks every brush mask so: htc dataset convert --crowds objects",
    ),
    "mask-partly-off": (
        "note",
        "objects that reach beyond their image; they are clipped",
        "nothing, or convert again: htc dataset convert clips them",
    ),
    "crowd": ("note", "crowds, which are neither trained on nor scored against", "nothing, if they are meant"),
    "imbalance": (
        "note",
        "classes with less than a hundredth of the objects of the largest class",
        "annotate more of them; the scores of each class show whether it is enough",
    ),
    "tiny-object": (
        "note",
        "objects smaller than 8 x 8 pixels at training size, which are hardly found",
        "train a preset with a larger input, or cut the images into tiles",
    ),
    "image-without-objects": (
        "note",
        "images without an object",
        "training leaves them out unless keeps_empty_images is set",
    ),
    "image-unlisted": (
        "note",
        "images in the folder that the JSON does not name",
        "annotate them, or leave them there: they are not read",
    ),
    "few-to-score": (
        "note",
        "splits to score on with fewer than 100 images with objects: chance moves scores by points",
        "annotate more, or compare models only on large differences",
    ),
    "annotation-mended": (
        "note",
        "annotations with a flaw that does not matter",
        "nothing, or convert again",
    ),
    "near-twice": ("note", "images that look like another image of their split", "nothing, if they are meant"),
}


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found; see `CATALOGUE`.

    count: how many. examples: the first ten, by name. counts: by split.
    """

    code: str
    count: int
    examples: tuple[str, ...]
    counts: Mapping[str, int]

    @property
    def severity(self) -> Severity:
        """Return "error", "warning" or "note"."""
        return CATALOGUE[self.code][0]

    @property
    def message(self) -> str:
        """Return what the things are."""
        return CATALOGUE[self.code][1]

    @property
    def way_out(self) -> str:
        """Return what to do about them."""
        return CATALOGUE[self.code][2]

    def as_json(self) -> dict[str, Any]:
        """Return what --json writes."""
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "message": self.message,
            "way_out": self.way_out,
            "by_split": dict(self.counts),
            "examples": list(self.examples),
        }


class Findings:
    """Collects findings during a check."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, dict[str, int]] = {}
        # Images to look at, by split: those of errors and warnings.
        self.images: dict[str, dict[str, None]] = {}

    def add(self, code: str, split: str, where: str, *, image: str | None = None) -> None:
        """Record one thing.

        Args:
            code: of the catalogue.
            where: its name, such as "a.jpg, annotation 3".
            image: the file name of its image, for the contact sheet.
        """
        severity = CATALOGUE[code][0]
        places = self._places.setdefault(code, [])
        if len(places) < MAX_EXAMPLES:
            places.append(where)
        counts = self._counts.setdefault(code, {})
        counts[split] = counts.get(split, 0) + 1
        if image is not None and severity != "note":
            self.images.setdefault(split, {}).setdefault(image)

    def all(self) -> list[Finding]:
        """Return the findings: errors first, each severity in the order of the catalogue."""
        found = [
            Finding(code, sum(self._counts[code].values()), tuple(self._places[code]), self._counts[code])
            for code in CATALOGUE
            if code in self._counts
        ]
        return sorted(found, key=lambda each: SEVERITIES.index(each.severity))


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds. objects: without crowds. unlisted names are not counted."""

    name: str
    annotations: str
    images_folder: str
    images: int
    images_with_objects: int
    objects: int
    crowds: int


@dataclass(frozen=True)
class ClassCounts:
    """One class: its objects and its images by split, and the median side of its objects in pixels."""

    name: str
    category_id: int
    objects: Mapping[str, int]
    images: Mapping[str, int]
    median_side: float | None


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    flagged: file names of images with errors or warnings, by split.
    """

    splits: tuple[SplitCounts, ...]
    classes: tuple[ClassCounts, ...]
    findings: tuple[Finding, ...]
    flagged: Mapping[str, tuple[str, ...]]
    reads_pixels: bool

    @property
    def has_errors(self) -> bool:
        """Whether training would fail, or its scores would be wrong."""
        return any(finding.severity == "error" for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """Return how many kinds of this severity were found."""
        return sum(finding.severity == severity for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return what --json writes."""
        return {
            "splits": [
                {
                    "name": split.name,
                    "annotations": split.annotations,
                    "images_folder": split.images_folder,
                    "images": split.images,
                    "images_with_objects": split.images_with_objects,
                    "objects": split.objects,
                    "crowds": split.crowds,
                }
                for split in self.splits
            ],
            "classes": [
                {
                    "name": each.name,
                    "category_id": each.category_id,
                    "objects": dict(each.objects),
                    "images": dict(each.images),
                    "median_side": each.median_side,
                }
                for each in self.classes
            ],
            "findings": [finding.as_json() for finding in self.findings],
            "reads_pixels": self.reads_pixels,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
        }
