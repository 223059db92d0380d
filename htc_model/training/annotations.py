"""COCO annotations of a data set as value types, their masks, and merging of data sets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle
from htc_model.training.annotation_parsing import to_rle

# The types of ids in JSON files: integers, decimals, text.
ImageId = int | float | str


class AnnotationError(ValueError):
    """An annotation file cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class BadAnnotation:
    """One annotation, or a part of it, that is wrong: left out, or mended.

    kind: a short reason, by which they are counted, such as "polygon with < 3 points".
    """

    annotation_id: object
    image: str
    kind: str

    def __str__(self) -> str:
        where = self.image if self.annotation_id is None else f"annotation {self.annotation_id} of {self.image}"
        return f"{where}: {self.kind}"


@dataclass(frozen=True)
class ObjectAnnotation:
    """One object.

    label: in [0, C). box_xyxy: original pixels, clipped to the image. area: in pixels, as in the file; where it is
        missing, the mask's, or the box's without a mask. segmentation: polygons or run lengths as in the file; None if
        there is only a box. unclipped_xywh: the box as in the file, x, y, width, height; None if it was missing.
    """

    annotation_id: object
    label: int
    box_xyxy: tuple[float, float, float, float]
    area: float
    segmentation: Any
    is_crowd: bool
    unclipped_xywh: tuple[float, float, float, float] | None = None

    @property
    def bbox_xywh(self) -> tuple[float, float, float, float]:
        """The box for scoring: x, y, width, height in pixels, as in the file if it has one."""
        if self.unclipped_xywh is not None:
            return self.unclipped_xywh
        x1, y1, x2, y2 = self.box_xyxy
        return x1, y1, x2 - x1, y2 - y1


@dataclass(frozen=True)
class ImageAnnotations:
    """One image of the data set; sizes in original pixels; stuff_file: its semantic map, if there is one."""

    image_id: ImageId
    file_name: str
    height: int
    width: int
    objects: tuple[ObjectAnnotation, ...]
    stuff_file: str | None = None


@dataclass(frozen=True)
class CocoAnnotations:
    """A data set: its classes in the order of their category ids, its images, and what was wrong.

    bad: left out. mended: kept, although a part was wrong or missing. notes: sentences on how the file was interpreted.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageAnnotations, ...]
    bad: tuple[BadAnnotation, ...] = ()
    images_without_objects: int = 0
    mended: tuple[BadAnnotation, ...] = ()
    notes: tuple[str, ...] = ()

    def bad_counts(self) -> dict[str, int]:
        """Count the left out annotations by kind, most frequent first."""
        return dict(Counter(bad.kind for bad in self.bad).most_common())


def decode_mask(entry: ObjectAnnotation, height: int, width: int) -> NDArray[np.uint8]:
    """Rasterise one object's mask.

    Args:
        entry: its polygons or run lengths (plain or compressed) are used; without them, its box.
        height, width: of the original image.

    Returns:
        [height, width] uint8, 0 or 1.
    """
    if entry.segmentation is None:
        mask = np.zeros((height, width), np.uint8)
        x1, y1, x2, y2 = (round(edge) for edge in entry.box_xyxy)
        mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
        return mask
    return decode_rle(to_rle(entry.segmentation, (height, width))).astype(np.uint8)


def merge_annotations(parts: Sequence[CocoAnnotations]) -> CocoAnnotations:
    """Merge data sets of the same classes; image ids may repeat between them.

    Raises:
        AnnotationError: the classes differ.
    """
    for part in parts[1:]:
        if (part.classes, part.category_ids) != (parts[0].classes, parts[0].category_ids):
            raise AnnotationError(
                f"Data sets with other classes cannot be merged: {', '.join(parts[0].classes)} "
                f"and {', '.join(part.classes)}; name the classes to train on."
            )
    return CocoAnnotations(
        parts[0].classes,
        parts[0].category_ids,
        tuple(image for part in parts for image in part.images),
        tuple(bad for part in parts for bad in part.bad),
        sum(part.images_without_objects for part in parts),
        tuple(mended for part in parts for mended in part.mended),
        tuple(note for part in parts for note in part.notes),
    )
