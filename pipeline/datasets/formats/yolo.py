"""Reads YOLO's segmentation labels: data.yaml, images, and a text file of polygons for each image.

A line is a class number and the corners as shares of width and height: `0 0.1 0.2 0.3 0.2 0.3 0.4`. Five numbers are a
box (class, middle, size), unless the file has polygons, too: then they are a polygon of two corners. Ultralytics'
loader reads files in the same way and turns images upright, so shares are those of the upright image.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.datasets.formats.files import ImageFinder, SourceFiles, read_text
from pipeline.datasets.source import Flaws, Size, SourceDataset, SourceImage, SourceObject, listed
from pipeline.datasets.split_names import SPLIT_NAMES
from pipeline.errors import InputError, SpecError
from pipeline.inputs.formats.detect import IMAGE_SUFFIXES

# From an image file to its upright (width, height); None if it cannot be read.
SizeOf = Callable[[Path], Size | None]

_BOX_NUMBERS = 5
# Text files of a YOLO folder that are not labels.
_NOT_LABELS = frozenset({"classes.txt", "obj.names", "train.txt", "val.txt", "test.txt", "readme.txt"})


def find_data_yaml(files: SourceFiles) -> Path | None:
    """Return the data.yaml: a YAML file with the key names."""
    for path in files.with_suffix(".yaml", ".yml"):
        try:
            document = yaml.safe_load(path.read_bytes())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(document, Mapping) and "names" in document:
            return path
    return None


def has_labels(files: SourceFiles) -> bool:
    """Return whether there is a text file in a folder called labels."""
    return any("labels" in path.parts[-3:-1] for path in files.all if path.suffix == ".txt")


def read_yolo(files: SourceFiles, finder: ImageFinder, flaws: Flaws, *, sizes: SizeOf) -> SourceDataset:
    """Read the labels of every image.

    Args:
        sizes: returns an image file's upright (width, height), None if it cannot be read.

    Raises:
        SpecError: data.yaml is not usable, or a label has no class in it.
        InputError: there are no images.
    """
    data_yaml = find_data_yaml(files)
    names = _read_names(files, data_yaml)
    source = files.name_of(data_yaml) if data_yaml is not None else "classes.txt"
    labels = {path for path in files.all if path.suffix == ".txt" and path.name.lower() not in _NOT_LABELS}
    by_split = _images_by_split(files, data_yaml, finder)
    used: set[Path] = set()
    images: list[SourceImage] = []
    for split, path in by_split:
        label = _label_of(path)
        name = files.name_of(path)
        same = finder.of_stem(path.parent, path.stem)
        if len(same) > 1 and label in labels:
            used.add(label)
            flaws.leave_out(
                f"image whose label file is also another image's ({', '.join(each.name for each in same)})", name
            )
            continue
        objects: tuple[SourceObject, ...] = ()
        size = sizes(path)
        if label in labels:
            used.add(label)
            objects = _read_labels(label, files.name_of(label), size, names, source=source, flaws=flaws) if size else ()
        images.append(SourceImage(name, path, size, objects, split=split))
    for label in sorted(labels - used):
        if "labels" in label.parts:
            flaws.leave_out("label file without an image", files.name_of(label))
    if not images:
        raise InputError(f"{files.root} has no images that {source} names; they belong into images/, beside labels/.")
    return SourceDataset("YOLO", tuple(images), classes=tuple(names.values()))


def _read_names(files: SourceFiles, data_yaml: Path | None) -> dict[int, str]:
    """Return the classes' names by number.

    Raises:
        SpecError: there is no data.yaml and no classes.txt, or the names are neither a list nor numbered.
    """
    if data_yaml is None:
        listing = next((path for path in files.all if path.name in ("classes.txt", "obj.names")), None)
        if listing is None:
            raise SpecError(
                f"{files.root} has labels but no data.yaml that names the classes; write one: names: [first, second]."
            )
        return dict(enumerate(line.strip() for line in read_text(listing, listing.name).splitlines() if line.strip()))
    name = files.name_of(data_yaml)
    names: Any = _load_yaml(data_yaml, name)["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise SpecError(f"names of {name} must be a list of class names, or numbers with names.")
    try:
        numbered = {int(number): str(each) for number, each in names.items()}
    except (TypeError, ValueError):
        raise SpecError(f"names of {name} must be a list of class names, or numbers with names.") from None
    unnamed = [number for number, each in numbered.items() if not each.strip() or each == "None"]
    if unnamed:
        raise SpecError(f"names of {name} has no name for the class {unnamed[0]}.")
    return dict(sorted(numbered.items()))


def _load_yaml(path: Path, name: str) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{name} cannot be read: {error}.") from error
    return document if isinstance(document, Mapping) else {}


def _images_by_split(files: SourceFiles, data_yaml: Path | None, finder: ImageFinder) -> list[tuple[str | None, Path]]:
    """Return the images that data.yaml names, with their split; without data.yaml all images."""
    document = _load_yaml(data_yaml, files.name_of(data_yaml)) if data_yaml is not None else {}
    base = data_yaml.parent if data_yaml is not None else files.root
    found: list[tuple[str | None, Path]] = []
    seen: set[Path] = set()
    for key, split in SPLIT_NAMES.items():
        entries = document.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str) and entry:
                place = _locate(entry, document.get("path"), base)
                if place is None:
                    raise SpecError(
                        f"{files.name_of(data_yaml or base)} names {entry} as {key}, and there is no such folder or "
                        f"file below {base}; correct {key}, or path."
                    )
                for path in _images_of(place, base, files, finder):
                    if path not in seen:
                        seen.add(path)
                        found.append((split, path))
    if not found and not any(document.get(key) for key in SPLIT_NAMES):
        # Not split: all images.
        return [(None, path) for path in files.images]
    return found


def _locate(entry: str, stated: Any, base: Path) -> Path | None:
    """Find a folder or listing that data.yaml names.

    `path` is often the folder on the machine that made the data set; Roboflow writes `../train/images` for folders that
    are beside data.yaml.
    """
    tries = [Path(entry)] if Path(entry).is_absolute() else []
    if isinstance(stated, str) and stated:
        tries.append(base / stated / entry)
    tries.append(base / entry)
    if entry.startswith("../"):
        tries.append(base / entry[3:])
    return next((path for path in tries if path.exists()), None)


def _images_of(place: Path, base: Path, files: SourceFiles, finder: ImageFinder) -> Sequence[Path]:
    """Return the images of a folder, or those that a listing names, which may be of the machine that wrote it."""
    if place.is_dir():
        place = place.resolve()
        below = [path for path in files.all if path.resolve().is_relative_to(place)]
        if not below:
            below = sorted(path for path in place.rglob("*") if path.is_file())
        return [path for path in below if path.suffix.lower() in IMAGE_SUFFIXES]
    lines = [line.strip() for line in read_text(place, files.name_of(place)).splitlines()]
    found = []
    for line in lines:
        tries = (place.parent / line, base / line)
        path = next((each for each in tries if line and each.is_file()), None)
        if line:
            found.append(path or finder.named(line) or base / line)
    return found


def _label_of(image: Path) -> Path:
    """Return an image's label file: `labels` in place of the last folder called `images`, else beside the image."""
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _read_labels(
    label: Path, name: str, size: Size, names: Mapping[int, str], *, source: str, flaws: Flaws
) -> tuple[SourceObject, ...]:
    rows = [line.split() for line in read_text(label, name).splitlines()]
    has_polygons = any(len(row) > _BOX_NUMBERS for row in rows)
    objects: list[SourceObject] = []
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        place, where = f"{name}, line {number}", f"line {number}"
        try:
            values = np.array([float(value) for value in row])
        except ValueError:
            flaws.leave_out("line that is not numbers", place)
            continue
        if not np.isfinite(values).all() or values[0] != int(values[0]):
            flaws.leave_out("line that is not numbers", place)
            continue
        if int(values[0]) not in names:
            raise SpecError(
                f"{place}: the class {int(values[0])} has no name in {source}, which names "
                f"{listed([f'{each} ({key})' for key, each in names.items()], 5)}; add it to names."
            )
        entry = _read_row(values[1:], names[int(values[0])], where, size, has_polygons=has_polygons)
        if entry is None:
            flaws.leave_out("line with half a point", place)
        else:
            objects.append(entry)
    return tuple(objects)


def _read_row(
    values: NDArray[np.float64], label: str, where: str, size: Size, *, has_polygons: bool
) -> SourceObject | None:
    width, height = size
    if len(values) == _BOX_NUMBERS - 1 and not has_polygons:
        x, y, w, h = values.tolist()
        return SourceObject(label, where, box=((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))
    if len(values) % 2:
        return None
    return SourceObject(label, where, polygons=(values.reshape(-1, 2) * np.array([width, height], float),))
