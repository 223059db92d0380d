"""Annotations of any format as value types: what the readers of `formats/` return and `convert` writes as COCO.

All coordinates are pixels of the annotated image, x to the right and y down, with borders between pixels: the first
pixel reaches from 0 to 1, as in COCO.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Size = tuple[int, int]


@dataclass(frozen=True)
class MaskPatch:
    """A bitmap [h, w] bool whose upper left pixel lies at (left, top) of the image."""

    left: int
    top: int
    bitmap: NDArray[np.bool_]


@dataclass(frozen=True)
class SourceObject:
    """One annotated shape: a whole object, or a part of one.

    label: the class's name as in the source. where: names the shape in messages, such as "shape 3".
    polygons: [N, 2] corners each; their union counts. patches: bitmaps. rle: run lengths of the whole image, COCO's.
    box: x, y, width, height of a shape that is only a box.
    group: shapes of one image with the same label and group are one object; None stands alone.
    """

    label: str
    where: str
    polygons: tuple[Points, ...] = ()
    patches: tuple[MaskPatch, ...] = ()
    rle: Mapping[str, Any] | None = None
    box: tuple[float, float, float, float] | None = None
    group: object = None
    is_crowd: bool = False


@dataclass(frozen=True)
class SourceImage:
    """One annotated image.

    name: as in the source, for messages. path: of its file; None where it was not found. payload: the file's bytes,
        where the annotations contain them. size: (width, height) as annotated, None where the format does not say.
    split: "train", "val", "test" or another name that the source gives; None without.
    fields: further keys of the image that COCO's JSON keeps.
    """

    name: str
    path: Path | None
    size: Size | None
    objects: tuple[SourceObject, ...] = ()
    payload: bytes | None = None
    split: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceDataset:
    """A whole source.

    format: its name for people. classes: in the source's own order, None where it has none.
    category_ids: of the classes, where the source numbers them. fields: further keys of the COCO document.
    notes: sentences on how the source was understood.
    """

    format: str
    images: tuple[SourceImage, ...]
    classes: tuple[str, ...] | None = None
    category_ids: tuple[int, ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Flaws:
    """What was left out or changed, by kind, with the names of the files."""

    def __init__(self) -> None:
        self.left_out: dict[str, list[str]] = {}
        self.changed: dict[str, list[str]] = {}

    def leave_out(self, kind: str, where: str) -> None:
        """Record something that the result does not contain."""
        self.left_out.setdefault(kind, []).append(where)

    def change(self, kind: str, where: str) -> None:
        """Record something that the result contains otherwise than the source does."""
        self.changed.setdefault(kind, []).append(where)

    def counts(self) -> Counter[str]:
        """Count both by kind."""
        return Counter({kind: len(names) for part in (self.left_out, self.changed) for kind, names in part.items()})


def listed(names: Sequence[str], most: int = 3, *, between: str = ", ") -> str:
    """Return "a, b, c and 4 more"."""
    more = len(names) - most
    return between.join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
