"""Recognises the format of annotations by their content, and reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pipeline.datasets.formats.coco import Crowds, is_coco, read_coco_files
from pipeline.datasets.formats.cvat import is_cvat, read_cvat
from pipeline.datasets.formats.files import ImageFinder, SourceFiles
from pipeline.datasets.formats.label_maps import CLASSES, OBJECTS, has_label_maps, read_label_maps
from pipeline.datasets.formats.labelme import first_json, is_labelme, read_labelme
from pipeline.datasets.formats.yolo import find_data_yaml, has_labels, read_yolo
from pipeline.datasets.source import Flaws, Size, SourceDataset
from pipeline.errors import InputError, SpecError

Format = Literal["labelme", "cvat", "yolo", "coco", "masks"]
FORMATS: tuple[Format, ...] = get_args(Format)

# JSON files that are read to recognise a folder: other tools' files may lie among the annotations.
_MOST_EXAMINED = 20


def recognise_format(files: SourceFiles) -> Format:
    """Find the format of a source.

    Raises:
        InputError: it holds no annotations of a known format.
        SpecError: it holds annotations of several formats.
    """
    _refuse_archive(files)
    found: list[Format] = []
    documents = [first_json(path) for path in files.with_suffix(".json")[:_MOST_EXAMINED]]
    if any(is_labelme(document) for document in documents):
        found.append("labelme")
    if any(is_coco(document) for document in documents):
        found.append("coco")
    if any(is_cvat(path) for path in files.with_suffix(".xml")):
        found.append("cvat")
    if not files.is_file and has_label_maps(files):
        found.append("masks")
    if find_data_yaml(files) is not None or (not found and not files.is_file and has_labels(files)):
        found.append("yolo")
    if len(found) > 1:
        raise SpecError(f"{files.source} holds annotations of several formats: {', '.join(found)}; choose by --format.")
    if not found:
        raise InputError(_unknown(files))
    return found[0]


def _refuse_archive(files: SourceFiles) -> None:
    archives = [files.source] if files.is_file else files.all
    if all(path.suffix.lower() in (".zip", ".tar", ".gz", ".7z", ".rar") for path in archives):
        raise InputError(f"{files.source} is an archive, or holds nothing else; unpack it first.")


def _unknown(files: SourceFiles) -> str:
    known = (
        "labelme (JSON), CVAT (XML 'for images 1.1'), YOLO (data.yaml and labels/), COCO (JSON), "
        f"label maps ({OBJECTS}/ and {CLASSES}/)"
    )
    jsons = files.with_suffix(".json")
    broken = [files.name_of(path) for path in jsons[:_MOST_EXAMINED] if first_json(path) is None]
    if broken and len(broken) == len(jsons):
        return f"{broken[0]} is not JSON (cut short, or not UTF-8?), so its format is not known; known are {known}."
    if not files.is_file and files.images and len(files.images) == len(files.all):
        return f"{files.source} holds {len(files.images):,} images and no annotations; known are {known}."
    return f"{files.source} holds no annotations of a known format; known are {known}."


def read_source(
    files: SourceFiles,
    form: Format,
    flaws: Flaws,
    *,
    images: Path | None,
    crowds: Crowds,
    keeps_empty: bool,
    sizes: Callable[[Path], Size | None],
) -> SourceDataset:
    """Read annotations of a known format.

    Args:
        images: a folder of images elsewhere.
        sizes: returns an image file's upright (width, height), None if it cannot be read.

    Raises:
        SpecError, InputError: see the formats' readers.
    """
    elsewhere = SourceFiles(images) if images is not None else None

    def list_images() -> list[Path]:
        return list(dict.fromkeys([*files.images, *(elsewhere.images if elsewhere is not None else [])]))

    folders = [*([images] if images is not None else []), files.root / "images", files.root]
    finder = ImageFinder(list_images, folders)
    if form == "labelme":
        return read_labelme(files, finder, flaws, keeps_empty=keeps_empty)
    if form == "cvat":
        return read_cvat(files, finder, flaws)
    if form == "yolo":
        return read_yolo(files, finder, flaws, sizes=sizes)
    if form == "masks":
        return read_label_maps(files, finder, flaws)
    return read_coco_files(files, finder, flaws, crowds=crowds)
