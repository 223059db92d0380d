"""Masks: the masks of one image, decoded when they are asked for."""

import base64
import html
import io
from collections.abc import Iterator, Mapping
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks.rle import decode_rle
from pipeline.errors import InputError
from pipeline.text import count_of

Bitmap = NDArray[np.bool_]
# Of a notebook's picture, in pixels.
SHOWN_PX = 320
SHOWN_ROWS = 8
# Neighbours on the colour wheel differ by the golden angle, so that any few colours are far apart.
_GOLDEN_ANGLE = 137.5 / 360


class Masks:
    """The masks of one image, most confident first: `masks[0]` is [H, W] bool, of the original image's size.

    Nothing is decoded before a mask is asked for, and nothing is kept.

    Attributes:
        image: the image's row of `images`, as a dict.
        rows: the instances' rows of `instances`, a pyarrow Table, in the order of the masks.
    """

    def __init__(self, image: Mapping[str, Any], rows: pa.Table) -> None:
        self.image = dict(image)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Bitmap: ...

    @overload
    def __getitem__(self, index: slice) -> "Masks": ...

    def __getitem__(self, index: "int | slice") -> "Bitmap | Masks":
        """Decode a mask, or choose some.

        Raises:
            InputError: the mask is damaged, or the model wrote none.
            IndexError: there are not as many.
        """
        if isinstance(index, slice):
            return Masks(self.image, self.rows.take(pa.array(range(len(self))[index], pa.int64())))
        row = range(len(self))[index]
        mask = self.rows.column("mask")[row].as_py()
        number = self.rows.column("instance")[row].as_py()
        if mask is None:
            raise InputError(f"{self.image['uri']}: instance {number} has no mask; its model finds boxes only.")
        try:
            return decode_rle(mask)
        except ValueError as error:
            raise InputError(f"{self.image['uri']}: the mask of instance {number} is damaged: {error}.") from None

    def __iter__(self) -> Iterator[Bitmap]:
        return (self[row] for row in range(len(self)))

    @property
    def categories(self) -> list[str]:
        """The categories' names."""
        return [str(name) for name in self.rows.column("category").to_pylist()]

    @property
    def scores(self) -> NDArray[np.float32]:
        """[N], in [0, 1]."""
        return np.asarray(self.rows.column("score"), np.float32)

    @property
    def boxes_xywh(self) -> NDArray[np.float32]:
        """[N, 4]: x, y, width and height in pixels."""
        boxes = [[box[side] for side in ("x", "y", "width", "height")] for box in self.rows.column("bbox").to_pylist()]
        return np.asarray(boxes, np.float32).reshape(-1, 4)

    def stack(self) -> Bitmap:
        """Decode all masks to one array, [N, H, W] bool.

        Raises:
            InputError: a mask is damaged, or missing.
        """
        stacked = np.zeros((len(self), int(self.image["height"] or 0), int(self.image["width"] or 0)), np.bool_)
        for row, mask in enumerate(self):
            stacked[row] = mask
        return stacked

    def label_map(self) -> NDArray[np.int32]:
        """Draw all masks into one array, [H, W]: 0 is none, n the nth mask; the most confident one lies above.

        Raises:
            InputError: a mask is damaged, or missing.
        """
        labels = np.zeros((int(self.image["height"] or 0), int(self.image["width"] or 0)), np.int32)
        for row in reversed(range(len(self))):
            labels[self[row]] = row + 1
        return labels

    def __repr__(self) -> str:
        """Return the image, its size and how many masks it has; of an image without a result its status."""
        if self.image.get("status") not in (None, "ok"):
            return f"<Masks: none of {self.image['uri']}, whose status is {self.image['status']}>"
        size = f"{self.image['width']} x {self.image['height']}"
        return f"<Masks: {count_of(len(self), 'mask')} of {self.image['uri']}, {size} pixels>"

    def _repr_html_(self) -> str:
        """Return a small picture of the masks, and a table of the most confident ones, for notebooks."""
        head = f"<p><b>{count_of(len(self), 'mask')}</b> of {html.escape(str(self.image['uri']))}</p>"
        try:
            labels = self.label_map() if len(self) else None
        except InputError as error:
            return f"{head}<p>{html.escape(str(error))}</p>"
        cells = []
        for row, instance in enumerate(self.rows.slice(0, SHOWN_ROWS).to_pylist()):
            red, green, blue = _colours(len(self))[row + 1]
            cells.append(
                f'<tr><td style="background:rgb({red},{green},{blue})">{instance["instance"]}</td>'
                f"<td>{html.escape(instance['category'])}</td><td>{instance['score']:.3f}</td>"
                f"<td>{instance['area']:,}</td></tr>"
            )
        more = f"<p>and {len(self) - SHOWN_ROWS} more</p>" if len(self) > SHOWN_ROWS else ""
        heading = "<tr><th>instance</th><th>category</th><th>score</th><th>pixels</th></tr>"
        table = f"<table>{heading}{''.join(cells)}</table>{more}" if cells else ""
        return head + (_picture(labels, len(self)) if labels is not None else "") + table


def _colours(count: int) -> NDArray[np.uint8]:
    """Return [N + 1, 3] uint8 RGB: grey for no mask, then one colour per mask."""
    hues = (np.arange(count) * _GOLDEN_ANGLE % 1 * 255).astype(np.uint8)
    hsv = np.stack([hues, np.full(count, 170, np.uint8), np.full(count, 230, np.uint8)], axis=1)
    rgb = np.asarray(Image.fromarray(hsv[None], "HSV").convert("RGB"))[0] if count else np.zeros((0, 3), np.uint8)
    return np.concatenate([np.array([[235, 235, 235]], np.uint8), rgb])


def _picture(labels: NDArray[np.int32], count: int) -> str:
    step = max(1, -(-max(labels.shape) // SHOWN_PX))
    file = io.BytesIO()
    Image.fromarray(_colours(count)[labels[::step, ::step]]).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{count_of(count, "mask")}" src="data:image/png;base64,{encoded}">'
