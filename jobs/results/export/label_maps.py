"""Maps of an image as PNG files, drawn in bands of rows: a large image takes the memory of its picture only."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks.label_maps import label_bands
from jobs.results.map_tables import rows_by_image
from pipeline.errors import InputError
from pipeline.output.mask_functions import decode_masks
from pipeline.output.schema import MASK_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from htc_model.masks.many_runs import ForegroundRuns
    from jobs.results.export.selection import ExportedImage, Selection
    from pipeline.job_spec.map_tables import MapTable
    from pipeline.output.results import Results

Paint = Callable[[NDArray[np.int32]], NDArray[Any]]
"""Takes labels [H, W], 1 + a row's place and 0 for none; returns what is written, [H, W] or [H, W, 3]."""


def png_of(masks: "ForegroundRuns", size: tuple[int, int], mode: str, paint: Paint) -> bytes:
    """Draw a map and encode it.

    Args:
        masks: of the map's rows. size: (height, width) in pixels.
        mode: Pillow's: "RGB" or "L", 8 bits; "I;16", 16 bits.
    """
    picture = Image.new(mode, (size[1], size[0]))
    for top, labels in label_bands(masks, size):
        picture.paste(Image.fromarray(np.ascontiguousarray(paint(labels))), (0, top))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def masks_of(image: "ExportedImage", rows: "Sequence[dict[str, Any]]") -> "ForegroundRuns":
    """Decode the masks of an image's rows.

    Raises:
        InputError: one is damaged, or of another size.
    """
    masks = decode_masks(pa.array([row["mask"] for row in rows], MASK_TYPE))
    if not masks.is_valid.all() or (masks.sizes != np.array([image.height, image.width])).any():
        raise InputError(f"{image.uri}: a mask of its map is damaged; run this image again.")
    return masks.runs()


def images_with_rows(
    selection: "Selection", results: "Results", table: "MapTable", columns: Sequence[str]
) -> "Iterator[tuple[ExportedImage, list[dict[str, Any]]]]":
    """Yield the exported images with their rows of a table, a part of the table after another.

    Memory holds the images of one part and the rows of one image; an image without a row has none.
    """
    for run, part, images in selection.images_by_part():
        left = dict(images)
        for image_id, rows in rows_by_image(results, table, run, left, columns, parts=[part]):
            yield left.pop(image_id), rows
        for image in left.values():
            yield image, []
