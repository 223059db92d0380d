"""Reads label maps as Pascal VOC and CVAT ("Segmentation mask 1.1") have them.

`SegmentationObject/NAME.png` has a number or a colour for each object, `SegmentationClass/NAME.png` one for each class;
`labelmap.txt` (`name:red,green,blue::`) names the colours. Without it, numbers are Pascal VOC's own 20 classes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.datasets.formats.files import ImageFinder, SourceFiles, read_text
from pipeline.datasets.source import Flaws, MaskPatch, SourceDataset, SourceImage, SourceObject
from pipeline.errors import InputError, SpecError
from pipeline.inputs.formats.png import without_metadata

OBJECTS, CLASSES, LABELMAP = "SegmentationObject", "SegmentationClass", "labelmap.txt"
# Pascal VOC 2012, in the order of their numbers from 1.
_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Pixels on the border of an object, which count for none.
_VOID_NUMBER, _VOID_COLOUR = 255, (224, 224, 192)
_MODES = ("L", "P", "RGB")


def has_label_maps(files: SourceFiles) -> bool:
    """Return whether there is a folder of Pascal VOC's name with PNG files."""
    return any(path.suffix.lower() == ".png" and path.parent.name in (OBJECTS, CLASSES) for path in files.all)


def read_label_maps(files: SourceFiles, finder: ImageFinder, flaws: Flaws) -> SourceDataset:
    """Read every object of every label map.

    Raises:
        InputError: there are no maps of objects.
        SpecError: labelmap.txt is not usable, or a class has no name.
    """
    maps = [path for path in files.all if path.parent.name == OBJECTS and path.suffix.lower() == ".png"]
    if not maps:
        raise InputError(
            f"{files.root} has {CLASSES} and no {OBJECTS}: without objects of their own, masks are no instances; "
            "export the maps of objects, too."
        )
    names = _read_labelmap(files)
    splits = _read_splits(files)
    images = []
    for path in maps:
        name = files.name_of(path)
        same = [each for each in files.images if each.stem == path.stem and each.parent.name not in (OBJECTS, CLASSES)]
        image = same[0] if len(same) == 1 else None
        if len(same) > 1:
            several = ", ".join(files.name_of(each) for each in same)
            flaws.leave_out(f"label map of more than one image ({several})", name)
            continue
        try:
            objects, classes = _decode(path), _decode(path.parent.parent / CLASSES / path.name)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            flaws.leave_out("label map that cannot be read", f"{name} ({error})")
            continue
        if objects.shape[:2] != classes.shape[:2]:
            flaws.leave_out("label maps of objects and classes differ in size", name)
            continue
        size = (objects.shape[1], objects.shape[0])
        found = tuple(_read_objects(objects, classes, names, name))
        shown = files.name_of(image) if image is not None else path.stem
        images.append(SourceImage(shown, image, size, found, split=splits.get(path.stem)))
    if not images:
        raise InputError(f"{files.root} has no label map that can be read.")
    return SourceDataset("label maps (Pascal VOC)", tuple(images), classes=names.all)


@dataclass(frozen=True)
class _ClassNames:
    """The classes' names by colour, and by number for maps in gray; "" for the background."""

    by_colour: Mapping[tuple[int, ...], str]
    by_number: Sequence[str]

    @property
    def all(self) -> tuple[str, ...]:
        """The names in their order, without the background."""
        return tuple(name for name in self.by_number if name)


def voc_colour(number: int) -> tuple[int, int, int]:
    """Return the colour of a number in Pascal VOC's palette: its bits, lowest first, go to red, green, blue in turn."""
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red |= (number & 1) << bit
        green |= (number >> 1 & 1) << bit
        blue |= (number >> 2 & 1) << bit
        number >>= 3
    return red, green, blue


def _name_colours(names: Sequence[str]) -> _ClassNames:
    return _ClassNames({voc_colour(number): name for number, name in enumerate(names)}, names)


def _read_labelmap(files: SourceFiles) -> _ClassNames:
    """Return the classes' names."""
    path = next((each for each in files.all if each.name == LABELMAP), None)
    if path is None:
        return _name_colours(("", *_VOC_CLASSES))
    by_colour: dict[tuple[int, ...], str] = {}
    by_number: list[str] = []
    for line in read_text(path, LABELMAP).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, colour, *_ = [*line.split(":"), ""]
        name = "" if name in ("background", "__background__") else name
        by_number.append(name)
        if not colour:
            # Datumaro leaves out the colours of Pascal VOC's palette.
            by_colour[voc_colour(len(by_number) - 1)] = name
            continue
        try:
            red, green, blue = (int(value) for value in colour.split(","))
        except ValueError:
            raise SpecError(f"{files.name_of(path)}: {line!r} is not NAME:RED,GREEN,BLUE::.") from None
        by_colour[red, green, blue] = name
    return _ClassNames(by_colour, by_number)


def _read_splits(files: SourceFiles) -> dict[str, str]:
    splits = {}
    for path in files.all:
        if path.suffix == ".txt" and path.parent.name == "Segmentation" and path.stem in ("train", "val", "test"):
            splits.update({line.strip(): path.stem for line in read_text(path, path.name).splitlines() if line.strip()})
    return splits


def _decode(path: Path) -> NDArray[np.uint8]:
    """Decode a map to [H, W, 4]: its colours, and its numbers, where it has numbers (else 255)."""
    with PngImagePlugin.PngImageFile(io.BytesIO(without_metadata(path.read_bytes()))) as png:
        if png.mode not in _MODES:
            raise ValueError(f"its pixels are {png.mode}, not numbers or colours")
        numbers = (
            np.full((png.height, png.width), _VOID_NUMBER, np.uint8) if png.mode == "RGB" else np.array(png, np.uint8)
        )
        colours = np.array(png.convert("RGB"), np.uint8)
    if png.mode == "L":
        palette = np.array([voc_colour(number) for number in range(256)], np.uint8)
        colours = palette[numbers]
    return np.concatenate([colours, numbers[:, :, None]], axis=2)


def _read_objects(
    objects: NDArray[np.uint8], classes: NDArray[np.uint8], names: _ClassNames, name: str
) -> list[SourceObject]:
    codes = objects[..., 0].astype(np.int64) << 16 | objects[..., 1].astype(np.int64) << 8 | objects[..., 2]
    is_void = (objects[..., :3] == _VOID_COLOUR).all(axis=2)
    codes[is_void] = 0
    found = []
    for number, code in enumerate(np.unique(codes[codes != 0]), start=1):
        mask = codes == code
        values, counts = np.unique(classes[mask], axis=0, return_counts=True)
        label = _class_name(values[counts.argmax()], names, name)
        if not label:
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        patch = MaskPatch(left, top, mask[top : rows[-1] + 1, left : columns[-1] + 1])
        found.append(SourceObject(label, f"object {number}", patches=(patch,)))
    return found


def _class_name(value: NDArray[np.uint8], names: _ClassNames, name: str) -> str:
    """Return the class of a pixel's colour, or of its number where the colour is none of the classes'."""
    colour, number = tuple(int(each) for each in value[:3]), int(value[3])
    if colour in names.by_colour:
        return names.by_colour[colour]
    if colour == _VOID_COLOUR:
        return ""
    if number < len(names.by_number):
        return names.by_number[number]
    raise SpecError(
        f"The class map of {name} has the colour {colour}, which {LABELMAP} does not name; add it. Without that file, "
        "colours are those of Pascal VOC's 20 classes."
    )
