"""Label maps: per image one 16-bit PNG of instances and one of categories, and a table of what the numbers mean."""

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jobs.results.export.selection import bitmap_of
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import InputError, SpecError

if TYPE_CHECKING:
    from jobs.results.export.selection import ExportedImage, Selection

# What 16 bits hold, 0 being no instance.
MAX_INSTANCES = 2**16 - 1
TABLE = "instances.csv"


def write_png(selection: "Selection", folder: ExportFolder, progress: Progress) -> None:
    """Write `instances/NAME.png` and `categories/NAME.png` of each image, and `instances.csv`.

    In the first a pixel is the `value` of its instance in `instances.csv`, from 1, in the second the category's id; 0
    is neither. Where masks overlap, the pixel belongs to the most confident one.
    """
    path = folder.file(TABLE)
    try:
        with path.open("w", encoding="utf-8", newline="") as sink:
            _write_maps(selection, folder, progress, csv.writer(sink, lineterminator="\n"))
    except OSError as error:
        raise SpecError(f"{folder.final / TABLE} cannot be written: {error.strerror or error}.") from error


def _write_maps(selection: "Selection", folder: ExportFolder, progress: Progress, rows: Any) -> None:
    rows.writerow(["file", "value", "category_id", "category", "score", "pixels", "visible_pixels", "uri"])
    for image in selection.by_image():
        instances, categories = _label_maps(image, folder)
        for name, labels in (("instances", instances), ("categories", categories)):
            file = io.BytesIO()
            Image.fromarray(labels).save(file, "PNG")
            folder.write(f"{name}/{image.stem}.png", file.getvalue())
        visible = np.bincount(instances.ravel(), minlength=len(image.instances) + 1)
        for value, each in enumerate(image.instances, 1):
            category = each.category
            numbers = [value, category.category_id, category.name, f"{each.score:.6g}", each.area, int(visible[value])]
            rows.writerow([f"{image.stem}.png", *numbers, image.uri])
        progress(len(image.instances))


def _label_maps(
    image: "ExportedImage", folder: ExportFolder
) -> "tuple[np.ndarray[tuple[int, int], np.dtype[np.uint16]], np.ndarray[tuple[int, int], np.dtype[np.uint16]]]":
    if len(image.instances) > MAX_INSTANCES or any(
        each.category.category_id > MAX_INSTANCES for each in image.instances
    ):
        raise InputError(f"{image.uri}: a 16-bit PNG holds {MAX_INSTANCES:,} instances and category ids up to that.")
    instances = np.zeros((image.height, image.width), np.uint16)
    categories = np.zeros((image.height, image.width), np.uint16)
    # The most confident last.
    for value, each in reversed(list(enumerate(image.instances, 1))):
        if each.mask is None:
            folder.counts["{n} without a mask left out"] += 1
            continue
        bitmap = bitmap_of(image, each)
        instances[bitmap] = value
        categories[bitmap] = each.category.category_id
    return instances, categories
