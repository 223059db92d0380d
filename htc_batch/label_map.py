"""LabelMap: the semantic or panoptic map of one image, decoded when it is asked for."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle
from pipeline.errors import InputError
from pipeline.job_spec.map_tables import MapTable
from pipeline.text import count_of

# By table: the column of a region's number, that of its name, and what is added so that 0 is left for no region.
_COLUMNS: Mapping[MapTable, tuple[str, str, int]] = {
    "semantic": ("class_id", "class", 0),
    "panoptic": ("segment", "category", 1),
}


class LabelMap:
    """The regions of one image, which do not overlap: `regions[0]` is [H, W] bool, of the original image's size.

    Attributes:
        image: the image's row of `images`, as a dict.
        rows: the regions' rows of the table, a pyarrow Table, by class or segment.
        table: "semantic" or "panoptic".
    """

    def __init__(self, image: Mapping[str, Any], rows: pa.Table, table: MapTable) -> None:
        self.image = dict(image)
        self.table = table
        self._number, self._name, self._first = _COLUMNS[table]
        self.rows = rows.sort_by([(self._number, "ascending")])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        """Decode a region's mask.

        Raises:
            InputError: it is damaged.
            IndexError: there are not as many.
        """
        row = range(len(self))[index]
        try:
            return decode_rle(self.rows.column("mask")[row].as_py())
        except ValueError as error:
            number = self.rows.column(self._number)[row].as_py()
            raise InputError(
                f"{self.image['uri']}: the mask of {self._number} {number} in {self.table} is damaged: {error}."
            ) from None

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[row] for row in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The regions' classes or categories."""
        return [str(name) for name in self.rows.column(self._name).to_pylist()]

    @property
    def areas(self) -> NDArray[np.int64]:
        """[N], in pixels."""
        return np.asarray(self.rows.column("area"), np.int64)

    def labels(self) -> NDArray[np.int32]:
        """Draw all regions into one array, [H, W]: the pixels' class ids, or their segments' numbers plus one.

        A pixel of no segment is 0; so is one of the class "other" or "unlabeled", whose id that is.

        Raises:
            InputError: a mask is damaged.
        """
        drawn = np.zeros((int(self.image["height"] or 0), int(self.image["width"] or 0)), np.int32)
        for number, mask in zip(self.rows.column(self._number).to_pylist(), self, strict=True):
            drawn[mask] = number + self._first
        return drawn

    def __repr__(self) -> str:
        """Return the image, its size and how many regions it has."""
        what = "region" if self.table == "semantic" else "segment"
        size = f"{self.image['width']} x {self.image['height']}"
        return f"<LabelMap: {count_of(len(self), what)} of {self.image['uri']}, {size} pixels>"
