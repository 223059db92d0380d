"""Contact sheets of a data set: its images with their masks, for people to look at."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from htc_model.training.annotation_parsing import to_rle
from htc_model.training.annotations import (
    AnnotationError,
    CocoAnnotations,
    ImageAnnotations,
    ObjectAnnotation,
)
from htc_model.training.coco_reader import read_annotations
from jobs.results.drawing.compose import Cell, contact_sheet
from jobs.results.drawing.instances import DrawnInstance
from jobs.results.drawing.overlay import draw_overlay
from jobs.results.drawing.picture_files import encode_picture
from jobs.results.drawing.style import Style
from jobs.terminal.output_file import atomic_output
from pipeline.datasets.findings import CheckReport
from pipeline.errors import ImageError, SpecError, StorageError
from pipeline.inputs.coco_files import read_coco
from pipeline.inputs.decode import decode_image
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

_COLUMNS, _ROWS = 4, 3
_CELL_PX = 420


@dataclass(frozen=True)
class Sheets:
    """The pages that were written, how many images are on them, and why others are not."""

    pages: tuple[Path, ...]
    images: int
    undrawn: tuple[str, ...]


def draw_contact_sheets(report: CheckReport, folder: Path, *, sample: int, storage: Storage) -> Sheets:
    """Draw pages of twelve images: those with errors or warnings first, then others, the same ones each time.

    Args:
        report: of the check; names the splits.
        folder: for `contact-01.jpg` and so on; created if it is missing. Earlier pages there are removed.
        sample: how many images.

    Raises:
        SpecError: a page cannot be written.
    """
    cells: list[Cell] = []
    undrawn: list[str] = []
    for split in report.splits:
        flagged = report.flagged.get(split.name, ())
        try:
            annotations = read_annotations(read_coco(split.annotations, storage), keeps_empty_images=True)
        except AnnotationError as error:
            undrawn.append(f"{split.name}: {error}")
            continue
        share = math.ceil(sample / len(report.splits))
        for image in _choose(annotations, flagged, share):
            try:
                pixels = _draw(image, annotations, join(split.images_folder, image.file_name), storage)
            except (ImageError, StorageError) as error:
                undrawn.append(f"{image.file_name}: {error}")
            else:
                cells.append(Cell(pixels, f"{split.name}: {image.file_name}", image.file_name in flagged))
    cells = cells[:sample]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("contact-*.jpg"):
            old.unlink()
    except OSError as error:
        raise SpecError(f"{error.filename or folder} cannot be written: {error.strerror or error}.") from None
    pages = []
    for number, first in enumerate(range(0, len(cells), _COLUMNS * _ROWS), start=1):
        pages.append(folder / f"contact-{number:02d}.jpg")
        with atomic_output(pages[-1]) as sink:
            page = contact_sheet(cells[first : first + _COLUMNS * _ROWS], columns=_COLUMNS, cell_px=_CELL_PX)
            sink.write(encode_picture(page, "jpeg"))
    return Sheets(tuple(pages), len(cells), tuple(undrawn))


def _choose(annotations: CocoAnnotations, flagged: Sequence[str], count: int) -> list[ImageAnnotations]:
    """Choose images: half of them may be flagged ones; the rest by a hash of their names."""
    is_flagged = set(flagged)

    def order(image: ImageAnnotations) -> bytes:
        return hashlib.blake2b(image.file_name.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    ordered = sorted(annotations.images, key=order)
    first = [image for image in ordered if image.file_name in is_flagged][: max(1, count // 2)]
    chosen = {id(image) for image in first}
    return [*first, *(image for image in ordered if id(image) not in chosen)][:count]


def _draw(image: ImageAnnotations, annotations: CocoAnnotations, uri: str, storage: Storage) -> NDArray[np.uint8]:
    """Draw the objects over the image.

    Raises:
        ImageError, StorageError: the image cannot be read, or is of another size.
    """
    pixels = decode_image(storage.read(uri))
    height, width = pixels.shape[:2]
    if (width, height) != (image.width, image.height):
        raise ImageError("unreadable", f"it has {width} x {height} pixels, in the JSON {image.width} x {image.height}")
    instances = [_instance(entry, annotations.classes[entry.label], height, width) for entry in image.objects]
    return draw_overlay(pixels, instances, Style(long_side=_CELL_PX))


def _instance(entry: ObjectAnnotation, name: str, height: int, width: int) -> DrawnInstance:
    x1, y1, x2, y2 = entry.box_xyxy
    return DrawnInstance(
        category=name,
        box_xywh=(x1, y1, x2 - x1, y2 - y1),
        mask=None if entry.segmentation is None else to_rle(entry.segmentation, (height, width)),
        label=f"{name} (crowd)" if entry.is_crowd else name,
    )
