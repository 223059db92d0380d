"""Converts annotations of other formats to COCO JSON with a folder of images.

The result, which training and the other commands on data sets read:

    DIR/annotations.json      or train.json, val.json, test.json, where the source is split
    DIR/images/...            the images, copied or linked
    DIR/convert_report.json   what was left out or changed, with the names of the files
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.concurrency import read_ahead
from pipeline.datasets.build import Canvas, build_annotations, image_entry
from pipeline.datasets.class_names import similar_names
from pipeline.datasets.formats.coco import Crowds
from pipeline.datasets.formats.files import SourceFiles
from pipeline.datasets.formats.recognise import Format, read_source, recognise_format
from pipeline.datasets.layout import ANNOTATIONS, IMAGES, REPORT, SPLITS, json_name, write_json
from pipeline.datasets.source import Flaws, Size, SourceDataset, SourceImage, listed
from pipeline.errors import ImageError, InputError, OutputOccupiedError, SpecError
from pipeline.inputs.decode import StoredSize, read_size
from pipeline.inputs.formats.detect import find_format
from pipeline.text import count_of

_READERS = 4
_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "TIFF": ".tif", "GIF": ".gif", "BMP": ".bmp"}


@dataclass(frozen=True)
class ConvertOptions:
    """How a source is converted.

    format: None recognises it. images: a folder of the images, where they are not with the annotations.
    is_linked: images become symbolic links instead of copies. classes: names to keep, in the order of their ids; all by
        default. renamed: class names by their names in the source; several may become one.
    crowds: see `formats.coco`. keeps_empty: labelme's images without a file count as images without objects.
    is_strict: refuse a source of which anything must be left out or changed.
    """

    format: Format | None = None
    images: Path | None = None
    is_linked: bool = False
    classes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    crowds: Crowds = "auto"
    keeps_empty: bool = False
    is_strict: bool = False


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    format: for people. files: the JSON files. images, objects: counts; by class in `classes`, in the order of the ids.
    left_out, changed: names of files by kind. notes: sentences for the user.
    """

    format: str
    folder: Path
    files: tuple[Path, ...]
    images: int
    objects: int
    classes: Mapping[str, int]
    left_out: Mapping[str, Sequence[str]]
    changed: Mapping[str, Sequence[str]]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what the report file holds."""
        return {
            "format": self.format,
            "files": [path.name for path in self.files],
            "images": self.images,
            "objects": self.objects,
            "classes": dict(self.classes),
            "left_out": {kind: list(names) for kind, names in self.left_out.items()},
            "changed": {kind: list(names) for kind, names in self.changed.items()},
            "notes": list(self.notes),
        }


def convert_dataset(source: Path, to: Path, options: ConvertOptions | None = None) -> Conversion:
    """Convert annotations to COCO JSON.

    Images whose file is missing, unreadable or of another size than annotated are left out with their objects. Shapes
    are joined to objects by their group, clipped to the image, and left out where nothing remains.

    Args:
        source: a folder, or one annotation file.
        to: a folder that is new, empty, or holds an earlier conversion, which is replaced.

    Raises:
        InputError: the source is missing, empty, or of no known format, or nothing of it can be used.
        SpecError: the source contradicts itself, or anything was left out and `is_strict` is set.
        OutputOccupiedError: the folder holds other files.
    """
    options = options or ConvertOptions()
    files = SourceFiles(source)
    _check_folders(files, to)
    flaws = Flaws()
    sizes = _Sizes()
    found = read_source(
        files,
        options.format or recognise_format(files),
        flaws,
        images=options.images,
        crowds=options.crowds,
        keeps_empty=options.keeps_empty,
        sizes=sizes.upright,
    )
    names = _ClassNames(found, options)
    images = _find_images(found, flaws)
    documents, written = _build(images, names, found, sizes, flaws)
    if not written:
        reasons = ", ".join(f"{kind} ({listed(where, between='; ')})" for kind, where in flaws.left_out.items())
        raise InputError(f"Nothing of {source} can be used: {reasons or 'it has no images'}.")
    if options.is_strict and flaws.counts():
        reasons = "; ".join(
            f"{len(where)} x {kind} ({listed(where, between='; ')})"
            for part in (flaws.left_out, flaws.changed)
            for kind, where in part.items()
        )
        raise SpecError(f"{source} has flaws, which --strict refuses: {reasons}.")
    paths = _write(to, documents, written, options)
    classes = names.counts(documents)
    conversion = Conversion(
        format=found.format,
        folder=to,
        files=tuple(paths),
        images=len(written),
        objects=sum(classes.values()),
        classes=classes,
        left_out=flaws.left_out,
        changed=flaws.changed,
        notes=(*found.notes, *names.notes(classes)),
    )
    write_json(to / REPORT, conversion.as_json())
    return conversion


class _Sizes:
    """Sizes of image files, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, StoredSize | ImageError] = {}

    def load(self, path: Path) -> StoredSize | ImageError:
        """Return an image's size, or why it cannot be read."""
        if path not in self._known:
            try:
                self._known[path] = read_size(path.read_bytes())
            except ImageError as error:
                self._known[path] = error
            except OSError as error:
                self._known[path] = ImageError("unreadable", error.strerror or str(error))
        return self._known[path]

    def upright(self, path: Path) -> Size | None:
        """Return (width, height) of the upright image; None if it cannot be read."""
        size = self.load(path)
        return size.upright if isinstance(size, StoredSize) else None


class _ClassNames:
    """The classes of the result and their ids."""

    def __init__(self, source: SourceDataset, options: ConvertOptions) -> None:
        self._renamed = options.renamed
        used = {each.label for image in source.images for each in image.objects}
        known = [*(source.classes or ()), *sorted(used - set(source.classes or ()))]
        missing = [name for name in options.renamed if name not in known]
        if missing:
            raise SpecError(f"--rename: the source has no class {missing[0]!r}; it has {listed(known, 8)}.")
        names = list(dict.fromkeys(self.renamed(name) for name in known))
        missing = [name for name in options.classes if name not in names]
        if missing:
            raise SpecError(f"--class: the source has no class {missing[0]!r}; it has {listed(names, 8)}.")
        ids = dict(zip(source.classes or (), source.category_ids or (), strict=False))
        if options.classes:
            self.ids = {name: number for number, name in enumerate(dict.fromkeys(options.classes), start=1)}
        elif ids and len(ids) == len(known):
            self.ids = {}
            for name in known:
                self.ids.setdefault(self.renamed(name), ids[name])
        else:
            self.ids = {name: number for number, name in enumerate(names, start=1)}

    def renamed(self, label: str) -> str:
        """Return the name of a class in the result."""
        return self._renamed.get(label, label)

    def counts(self, documents: Mapping[str | None, Mapping[str, Any]]) -> dict[str, int]:
        """Count the objects by class."""
        by_id = Counter(each["category_id"] for document in documents.values() for each in document["annotations"])
        return {name: by_id[number] for name, number in self.ids.items()}

    def notes(self, counts: Mapping[str, int]) -> list[str]:
        """Return sentences on classes that look like mistakes."""
        notes = [
            f"The classes {' and '.join(repr(name) for name in names)} differ only in case or spaces; if they are one, "
            f"add --rename {names[1]!r}={names[0]!r}."
            for names in similar_names(self.ids)
        ]
        empty = [name for name, count in counts.items() if not count]
        if empty:
            notes.append(f"Without an object: {count_of(len(empty), 'class', 'classes')} ({listed(empty, 8)}).")
        return notes


@dataclass(frozen=True)
class _NamedImage:
    image: SourceImage
    file_name: str


def _check_folders(files: SourceFiles, to: Path) -> None:
    """Refuse a folder inside the source, and one that holds other files."""
    root, target = files.root.resolve(), to.resolve()
    if not files.is_file and target.is_relative_to(root):
        raise SpecError(f"{to} lies in the source {files.source}; name a folder outside of it.")
    if to.is_dir():
        present = {path.name for path in to.iterdir() if not path.name.startswith(".")}
        if present and REPORT not in present:
            raise OutputOccupiedError(
                f"{to} holds files of another kind ({listed(sorted(present))}); name an empty folder."
            )
    elif to.exists():
        raise OutputOccupiedError(f"{to} is a file; name a folder.")


def _absolute(path: Path) -> Path:
    """Return a path without "..", and without following links: images keep the names that they have in the source."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _find_images(source: SourceDataset, flaws: Flaws) -> list[_NamedImage]:
    """Name the images of the result by their path below the folder that holds all of them."""
    present: list[SourceImage] = []
    for image in source.images:
        if image.path is None and image.payload is None:
            flaws.leave_out("image that was not found", image.name)
        else:
            present.append(image)
    paths = [_absolute(image.path) for image in present if image.path is not None]
    common = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    named: list[_NamedImage] = []
    taken: set[str] = set()
    for image in present:
        if image.path is not None:
            name = _absolute(image.path).relative_to(common).as_posix()
        else:
            try:
                suffix = _SUFFIX_OF.get(find_format(image.payload or b""), "")
            except ImageError as error:
                flaws.leave_out("image that cannot be read", f"{image.name} ({error.reason})")
                continue
            name = f"{PurePosixPath(image.name).as_posix()}{suffix}"
        if name in taken:
            flaws.leave_out("image that is annotated twice", image.name)
            continue
        taken.add(name)
        named.append(_NamedImage(image, name))
    return named


def _build(
    images: Sequence[_NamedImage], names: _ClassNames, source: SourceDataset, sizes: _Sizes, flaws: Flaws
) -> tuple[dict[str | None, dict[str, Any]], list[_NamedImage]]:
    """Build the COCO document of each split, and list the images in them."""
    documents: dict[str | None, dict[str, Any]] = {}
    written: list[_NamedImage] = []
    is_split = any(named.image.split for named in images)
    stated = [named.image.fields.get("id") for named in images]
    keeps_ids = all(number is not None for number in stated) and len(set(stated)) == len(stated)
    categories = [{"id": number, "name": name} for name, number in names.ids.items()]
    loaded = read_ahead(_READERS, lambda named: _load_size(named.image, sizes), images)
    number = 0
    for named, stored in zip(images, loaded, strict=True):
        canvas = _fit_canvas(named.image, stored, flaws)
        if canvas is None:
            continue
        split = (named.image.split or "train") if is_split else None
        document = documents.setdefault(
            split, {**source.fields, "images": [], "annotations": [], "categories": categories}
        )
        image_id = named.image.fields["id"] if keeps_ids else len(written) + 1
        document["images"].append(image_entry(image_id, named.file_name, canvas.size, named.image.fields))
        written.append(named)
        for label, entry in build_annotations(named.image.objects, canvas, named.image.name, flaws):
            category_id = names.ids.get(names.renamed(label))
            if category_id is None:
                continue
            number += 1
            document["annotations"].append({"id": number, "image_id": image_id, "category_id": category_id, **entry})
    order = {name: place for place, name in enumerate(SPLITS)}
    return dict(
        sorted(documents.items(), key=lambda pair: (order.get(pair[0] or "", len(order)), pair[0] or ""))
    ), written


def _load_size(image: SourceImage, sizes: _Sizes) -> StoredSize | ImageError:
    if image.path is not None:
        return sizes.load(image.path)
    try:
        return read_size(image.payload or b"")
    except ImageError as error:
        return error


def _fit_canvas(image: SourceImage, stored: StoredSize | ImageError, flaws: Flaws) -> Canvas | None:
    """Compare the annotated size with the file's; None, and recorded, if the image cannot be used."""
    if isinstance(stored, ImageError):
        flaws.leave_out("image that cannot be read", f"{image.name} ({stored.reason})")
        return None
    if image.size is None or image.size == stored.upright:
        return Canvas(stored.upright)
    if image.size == (stored.width, stored.height):
        flaws.change("annotated on the stored pixels, turned upright by the EXIF orientation", image.name)
        return Canvas(stored.upright, stored)
    annotated, file = "x".join(map(str, image.size)), "x".join(map(str, stored.upright))
    flaws.leave_out("image of another size than annotated", f"{image.name} (annotated {annotated}, is {file})")
    return None


def _write(
    to: Path, documents: Mapping[str | None, Any], images: Sequence[_NamedImage], options: ConvertOptions
) -> list[Path]:
    """Write images first, then the JSON files; those of an earlier conversion are removed."""
    try:
        (to / IMAGES).mkdir(parents=True, exist_ok=True)
        for _ in read_ahead(
            _READERS, lambda named: _write_image(to / IMAGES, named, is_linked=options.is_linked), images
        ):
            pass
        for old in (ANNOTATIONS, *(json_name(split) for split in SPLITS)):
            (to / old).unlink(missing_ok=True)
    except OSError as error:
        raise SpecError(f"{error.filename or to} cannot be written: {error.strerror or error}.") from error
    paths = []
    for split, document in documents.items():
        paths.append(to / (ANNOTATIONS if split is None else json_name(split)))
        write_json(paths[-1], document)
    return paths


def _write_image(folder: Path, named: _NamedImage, *, is_linked: bool) -> None:
    target = folder / named.file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    path = named.image.path
    if path is None:
        target.write_bytes(named.image.payload or b"")
        return
    if target.is_symlink() or (is_linked and target.exists()):
        target.unlink()
    if is_linked:
        target.symlink_to(_absolute(path))
    elif not _is_copied(path, target):
        shutil.copy2(path, target)


def _is_copied(path: Path, target: Path) -> bool:
    """Return whether an earlier conversion has copied this file: of the same size and time."""
    if not target.exists():
        return False
    one, other = path.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def load_report(folder: Path) -> Any:
    """Return the report of a conversion."""
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))
