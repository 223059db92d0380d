"""Reads CVAT's XML, "CVAT for images 1.1": polygons, masks, boxes and ellipses.

CVAT turns images upright when they are uploaded and writes that size, so coordinates are those of the upright image.
The file is read element by element: exports of large projects have hundreds of megabytes.
"""

import xml.parsers.expat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.formats.files import ImageFinder, SourceFiles
from pipeline.datasets.geometry import box_polygon, ellipse_polygon
from pipeline.datasets.source import Flaws, MaskPatch, Points, Size, SourceDataset, SourceImage, SourceObject
from pipeline.datasets.split_names import known_split
from pipeline.errors import InputError, SpecError

_SHAPES = frozenset({"polygon", "mask", "box", "ellipse"})
_WITHOUT_AREA = frozenset({"polyline", "points", "cuboid", "skeleton", "tag"})
_HEAD_BYTES = 4096
_LARGEST_MASK_PX = 178_956_970  # as the largest image that is decoded


def is_cvat(path: Path) -> bool:
    """Return whether an XML file is one of CVAT's, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return b"<annotations" in head and (b"<version>1.1" in head or b"<meta" in head or b"<image" in head)


def read_cvat(files: SourceFiles, finder: ImageFinder, flaws: Flaws) -> SourceDataset:
    """Read every CVAT file of the source.

    Raises:
        SpecError: a file is not XML, or holds the tracks of a video.
        InputError: no image is annotated.
    """
    paths = [path for path in files.with_suffix(".xml") if is_cvat(path)]
    document = _Document()
    images: list[SourceImage] = []
    for path in paths:
        name = files.name_of(path)
        reading = _Reading(name, finder, flaws, document, images.append)
        _parse(path, name, reading)
    if not images:
        names = ", ".join(files.name_of(path) for path in paths) or str(files.source)
        raise InputError(f"{names} has no images; export the task as 'CVAT for images 1.1'.")
    return SourceDataset("CVAT XML", tuple(images), classes=tuple(document.labels) or None)


@dataclass
class _Document:
    """The labels of all files, in their order."""

    labels: dict[str, None] = field(default_factory=dict)


def _parse(path: Path, name: str, reading: "_Reading") -> None:
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = reading.start
    parser.EndElementHandler = reading.end
    parser.CharacterDataHandler = reading.text
    # CVAT declares no entities; those of others may expand without end.
    parser.EntityDeclHandler = reading.refuse_entity
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (xml.parsers.expat.ExpatError, LookupError) as error:  # LookupError: an unknown encoding
        raise SpecError(f"{name} is not XML (cut short?): {error}.") from error
    except OSError as error:
        raise SpecError(f"{name} cannot be read: {error.strerror or error}.") from error


class _Reading:
    """Expat's callbacks for one file."""

    def __init__(
        self,
        name: str,
        finder: ImageFinder,
        flaws: Flaws,
        document: _Document,
        add: Callable[[SourceImage], None],
    ) -> None:
        self._name = name
        self._finder = finder
        self._flaws = flaws
        self._labels = document.labels
        self._add = add
        self._path: list[str] = []
        self._text = ""
        self._image: Mapping[str, str] | None = None
        self._objects: list[SourceObject] = []
        self._shapes = 0

    def refuse_entity(self, *_: object) -> None:
        raise SpecError(f"{self._name} declares XML entities, which CVAT does not do; it is not read.")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        self._text = ""
        if tag == "track" and self._path[:-1] == ["annotations"]:
            raise SpecError(
                f"{self._name} holds tracks of a video; export the task as 'CVAT for images 1.1', which has a shape "
                "for each frame."
            )
        if tag == "image" and self._path[:-1] == ["annotations"]:
            self._image, self._objects, self._shapes = attributes, [], 0
        elif self._image is not None and self._path[1:-1] == ["image"]:
            self._read(tag, attributes)

    def text(self, text: str) -> None:
        if self._path[-1:] == ["name"]:
            self._text += text

    def end(self, tag: str) -> None:
        # <label><name> below <meta>; labels of a skeleton's points have a parent of another name.
        if tag == "name" and self._path[-2:-1] == ["label"] and self._path[-3:-2] == ["labels"]:
            self._labels.setdefault(self._text)
        self._path.pop()
        if tag == "image" and self._image is not None and self._path == ["annotations"]:
            self._end_image(self._image)
            self._image = None

    def _end_image(self, image: Mapping[str, str]) -> None:
        name = image.get("name", "")
        if not name:
            self._flaws.leave_out("image without a name", self._name)
            return
        subset = image.get("subset", "")
        path = self._finder.named(f"{subset}/{name}") if subset else None
        self._add(
            SourceImage(
                name,
                path or self._finder.named(name),
                _size(image),
                tuple(self._objects),
                split=None if subset.lower() in ("", "default") else known_split(subset) or subset.lower(),
            )
        )

    def _read(self, tag: str, attributes: Mapping[str, str]) -> None:
        image_name = (self._image or {}).get("name", self._name)
        where = f"{tag} {self._shapes}"
        place = f"{image_name}, {where}"
        if tag in _WITHOUT_AREA:
            self._shapes += 1
            self._flaws.leave_out(f"shape without an area ({tag})", place)
            return
        if tag not in _SHAPES:
            return
        self._shapes += 1
        label = attributes.get("label", "")
        if not label:
            self._flaws.leave_out("shape without a label", place)
            return
        # CVAT's group 0 is no group.
        group = attributes.get("group_id") if attributes.get("group_id") not in (None, "", "0") else None
        try:
            self._objects.append(_read_shape(tag, attributes, label, where, group))
        except (KeyError, ValueError) as error:
            reason = str(error).strip("'")
            kind = "mask" if tag == "mask" else "shape"
            self._flaws.leave_out(f"{kind} that cannot be read ({reason[:60]})", place)


def _size(image: Mapping[str, str]) -> Size | None:
    try:
        width, height = int(image["width"]), int(image["height"])
    except (KeyError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _read_shape(tag: str, attributes: Mapping[str, str], label: str, where: str, group: str | None) -> SourceObject:
    """Read one shape.

    Raises:
        KeyError, ValueError: an attribute is missing or not numbers.
    """
    rotation = float(attributes.get("rotation") or 0)
    if tag == "polygon":
        return SourceObject(label, where, polygons=(_points(attributes["points"]),), group=group)
    if tag == "ellipse":
        cx, cy, rx, ry = (_number(attributes, key) for key in ("cx", "cy", "rx", "ry"))
        return SourceObject(label, where, polygons=(ellipse_polygon((cx, cy), (rx, ry), rotation),), group=group)
    if tag == "box":
        x1, y1, x2, y2 = (_number(attributes, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        box = (x1, y1, x2 - x1, y2 - y1)
        if rotation:
            return SourceObject(label, where, polygons=(box_polygon(box, rotation),), group=group)
        return SourceObject(label, where, box=box, group=group)
    return SourceObject(label, where, patches=(_read_mask(attributes),), group=group)


def _number(attributes: Mapping[str, str], key: str) -> float:
    value = float(attributes[key])
    if not np.isfinite(value):
        raise ValueError(f"{key} is {value}")
    return value


def _points(text: str) -> Points:
    """Read "x,y;x,y;..."."""
    points = np.array([[float(value) for value in pair.split(",")] for pair in text.split(";") if pair.strip()])
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("points that are not pairs of numbers")
    return points


def _read_mask(attributes: Mapping[str, str]) -> MaskPatch:
    """Read run lengths, background first, row by row within the box left, top, width, height."""
    left, top, width, height = (int(float(attributes[key])) for key in ("left", "top", "width", "height"))
    lengths = np.array([int(value) for value in attributes["rle"].split(",") if value.strip()], np.int64)
    if width < 1 or height < 1 or width * height > _LARGEST_MASK_PX:
        raise ValueError(f"a mask of {width} x {height} pixels")
    if (lengths < 0).any() or lengths.sum() > width * height:
        raise ValueError("run lengths longer than the mask")
    flat: NDArray[np.bool_] = np.zeros(width * height, bool)
    # The last run of background may be left out.
    runs = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    flat[: len(runs)] = runs
    return MaskPatch(left, top, flat.reshape(height, width))
