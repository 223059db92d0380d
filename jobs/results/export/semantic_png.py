"""Semantic maps: per image a PNG of class ids, and a table of what the ids mean."""

import csv
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.results.export.label_maps import images_with_rows, masks_of, png_of
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import InputError

if TYPE_CHECKING:
    from jobs.results.export.selection import Selection
    from pipeline.output.results import Results

TABLE = "classes.csv"
FOLDER = "semantic"
# The largest number of 8 and of 16 bits stands for pixels without a class, as in COCO-Stuff's and Cityscapes' maps.
_NO_CLASS_8, _NO_CLASS_16 = 255, 65535
_COLUMNS = ("image_id", "class_id", "area", "mask")


def write_semantic_png(selection: "Selection", folder: ExportFolder, progress: Progress, results: "Results") -> None:
    """Write `semantic/NAME.png` of each image, and `classes.csv`.

    A pixel is its class's `value` in `classes.csv`, the `class_id` of the table: in 8 bits where all ids are below 255,
    in 16 otherwise. The largest number, 255 or 65535, is no class.

    Raises:
        InputError: an id needs more than 16 bits.
    """
    most = max((each.category_id for each in selection.categories), default=0)
    if most >= _NO_CLASS_16:
        raise InputError(f"The class id {most} of run {selection.run} does not fit a PNG of 16 bits.")
    no_class = _NO_CLASS_8 if most < _NO_CLASS_8 else _NO_CLASS_16
    mode, kind = ("L", np.uint8) if no_class == _NO_CLASS_8 else ("I;16", np.uint16)
    pixels, images = Counter[int](), Counter[int]()
    for image, rows in images_with_rows(selection, results, "semantic", _COLUMNS):
        values = np.array([no_class, *(row["class_id"] for row in rows)]).astype(kind)

        def paint(labels: NDArray[np.int32], values: NDArray[Any] = values) -> NDArray[Any]:
            return values[labels]

        png = png_of(masks_of(image, rows), (image.height, image.width), mode, paint)
        folder.write(f"{FOLDER}/{image.stem}.png", png)
        for row in rows:
            pixels[row["class_id"]] += row["area"]
            images[row["class_id"]] += 1
        progress(len(rows))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["value", "class", "pixels", "images"])
    for each in selection.categories:
        writer.writerow([each.category_id, each.name, pixels[each.category_id], images[each.category_id]])
    writer.writerow([no_class, "", "", ""])
    folder.write(TABLE, table.getvalue())
