"""Encodes semantic maps as one COCO mask per class of the original size, without a full-size map of all classes.

Each pixel's logits are interpolated between the branch's cells, some image columns at a time, and only the class with
the highest one is kept. Before that, classes are left out that cannot win in these columns: a class that is below
another one at all four cells around a pixel is below it at the pixel, because interpolation weighs both alike. A photo
of 12 megapixels with 183 classes needs some 30 MB at a time (benchmarks/semantic_maps.py), where all of its logits
would be 8.8 GB.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.finite import check_finite
from htc_model.masks.rle import encode_runs
from htc_model.structures import SemanticMap, SemanticRegion

# Pixels worked on at a time, 20 bytes of intermediates each.
CHUNK_PIXELS = 2**17
# A class is left out only if it is lower by this share of the largest logit: float32 rounds to some 1e-7.
_MARGIN = 1e-5


@torch.no_grad()
def encode_semantic(
    maps: Sequence[SemanticMap], size: tuple[int, int], *, chunk_pixels: int = CHUNK_PIXELS
) -> list[SemanticRegion]:
    """Find each pixel's class, and encode the regions of the classes.

    Of one map a pixel's class is that with the highest interpolated logit; of several that with the highest mean of
    interpolated probabilities; of equal ones the first. The result does not depend on `chunk_pixels`.

    Args:
        maps: at least one, of the same image.
        size: (height, width) of the original image in pixels.
        chunk_pixels: limits the memory, see `CHUNK_PIXELS`.

    Returns:
        The classes that the image has, in the order of channels; together they cover it, without overlap.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
    """
    check_finite("logits of the semantic branch", [each.logits for each in maps])
    views = [_View(each, size, is_mean=len(maps) > 1) for each in maps]
    height, width = size
    columns = max(1, chunk_pixels // height)
    starts, labels = [], []
    for first in range(0, width, columns):
        found = _best(views, slice(first, min(first + columns, width))).flatten()
        changes = torch.cat([found.new_ones(1, dtype=torch.bool), found[1:] != found[:-1]]).nonzero()[:, 0]
        labels.append(found[changes].cpu().numpy().astype(np.int64))
        starts.append(changes.cpu().numpy() + first * height)
    return _encode(np.concatenate(starts), np.concatenate(labels), size)


class _View:
    """What one view says of every class, and where the pixels of the original image are in it.

    Args:
        is_mean: whether it is averaged with others: then its values are probabilities, else logits.

    Attributes:
        values: [C, w, h], so that pixels come out column by column. rows: how many the original image has.
    """

    def __init__(self, seen: SemanticMap, size: tuple[int, int], *, is_mean: bool) -> None:
        values = seen.logits.float()
        self.values = (values.softmax(dim=0) if is_mean else values).transpose(1, 2).contiguous()
        (self.rows, width), device = size, values.device
        _, cells_x, cells_y = self.values.shape
        self._rows = _Taps(self.rows, seen.image_size[0], seen.stride, cells_y, device)
        self._columns = _Taps(width, seen.image_size[1], seen.stride, cells_x, device, is_mirrored=seen.is_mirrored)
        self._margin = _MARGIN * float(values.abs().max())

    def at(self, chunk: slice, label: int) -> Tensor:
        """Interpolate a class's values at some columns of the original image: [n, H]."""
        columns = self._columns.interpolate(self.values[label], 0, chunk)
        return self._rows.interpolate(columns, 1, slice(0, self.rows))

    def cells(self, chunk: slice) -> Tensor:
        """Return the values [C, k, h] of the cells between which some columns of the original image lie."""
        first, last = self._columns.cells(chunk)
        return self.values[:, first : last + 1]

    def may_win(self, chunk: slice) -> Tensor:
        """Return which classes [C] bool may have the highest value somewhere in some columns."""
        values = self.cells(chunk)
        # Each cell with its neighbours to the right and below: the corners between which pixels are interpolated.
        right = values[:, _next(values.shape[1])]
        corners = [each for side in (values, right) for each in (side, side[:, :, _next(values.shape[2])])]
        leader = (corners[0] + corners[1] + corners[2] + corners[3]).argmax(dim=0, keepdim=True)
        found = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        for corner in corners:
            found |= (corner >= corner.gather(0, leader) - self._margin).flatten(1).any(dim=1)
        return found


class _Taps:
    """Between which two cells each pixel of one side of the original image lies, and how near to the second.

    Args:
        pixels: of the side, in the original image. resized: likewise after the resize.
        stride: pixels of the resized image from one cell to the next; the first cell is about the first pixel.
        cells: how many there are.
        is_mirrored: whether the side was mirrored before the resize.
    """

    def __init__(
        self, pixels: int, resized: int, stride: int, cells: int, device: torch.device, *, is_mirrored: bool = False
    ) -> None:
        place = np.arange(pixels, dtype=np.float64)
        if is_mirrored:
            place = pixels - 1 - place
        # Resizing keeps the borders of the image in place, so that centres of pixels are at halves.
        cell = (((place + 0.5) * (resized / pixels) - 0.5) / stride).clip(0, cells - 1)
        near = np.floor(cell).astype(np.int64)
        self._cells = near, np.minimum(near + 1, cells - 1)
        self._near, self._far = (torch.from_numpy(each).to(device) for each in self._cells)
        self._share = torch.from_numpy((cell - near).astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self._share)

    def cells(self, chunk: slice) -> tuple[int, int]:
        """Return the first and the last cell that some pixels need."""
        near, far = self._cells
        return int(near[chunk].min()), int(far[chunk].max())

    def interpolate(self, values: Tensor, dim: int, chunk: slice) -> Tensor:
        """Interpolate [w, h] along one of its sides at some pixels.

        The operations are elementwise, so that a pixel's value does not depend on the chunk that it is in.
        """
        share = self._share[chunk, None] if dim == 0 else self._share[chunk]
        near = values.index_select(dim, self._near[chunk])
        return near + (values.index_select(dim, self._far[chunk]) - near) * share


def _next(count: int) -> list[int]:
    return [*range(1, count), count - 1]


def _best(views: Sequence[_View], chunk: slice) -> Tensor:
    """Return the classes [n, H], uint8 or int16, of some columns of the original image."""
    classes = len(views[0].values)
    may_win = views[0].may_win(chunk) if len(views) == 1 else _may_win_together(views, chunk)
    candidates: list[int] = may_win.nonzero()[:, 0].tolist()
    kind = torch.uint8 if classes <= torch.iinfo(torch.uint8).max + 1 else torch.int16
    shape = (chunk.stop - chunk.start, views[0].rows)
    labels = torch.full(shape, candidates[0], dtype=kind, device=may_win.device)
    if len(candidates) == 1:
        return labels
    highest: Tensor | None = None
    for label in candidates:
        values = _sum([view.at(chunk, label) for view in views])
        if highest is None:
            highest = values
            continue
        labels.masked_fill_(values > highest, label)
        torch.maximum(highest, values, out=highest)
    return labels


def _may_win_together(views: Sequence[_View], chunk: slice) -> Tensor:
    """Return which classes [C] bool may have the highest mean of probabilities somewhere in some columns.

    At every pixel the probabilities of all classes sum to one, so that the highest mean is one over their number at
    least; a class whose probability is lower in all cells does not win.
    """
    highest = _sum([view.cells(chunk).flatten(1).amax(dim=1) for view in views]) / len(views)
    return highest >= (1 - _MARGIN) / len(highest)


def _sum(views: Sequence[Tensor]) -> Tensor:
    """Add up; a view and its mirror image are neighbours, so that their order does not change the sum."""
    pairs = [sum(views[start + 1 : start + 2], views[start]) for start in range(0, len(views), 2)]
    return sum(pairs[1:], pairs[0])


def _encode(starts: NDArray[np.int64], labels: NDArray[np.int64], size: tuple[int, int]) -> list[SemanticRegion]:
    """Encode an image's runs of equal classes, column by column, given by their first pixels and their classes."""
    is_new = np.append(True, labels[1:] != labels[:-1])  # a run may go on in the next chunk
    starts, labels = starts[is_new], labels[is_new]
    ends = np.append(starts[1:], size[0] * size[1])
    order = np.argsort(labels, kind="stable")
    begins, ends, labels = starts[order], ends[order], labels[order]
    present, first, counts = np.unique(labels, return_index=True, return_counts=True)
    masks = encode_runs(begins, ends, counts.astype(np.int64), size)
    areas = np.add.reduceat(ends - begins, first)
    return [
        SemanticRegion(label, mask, area)
        for label, mask, area in zip(present.tolist(), masks, areas.tolist(), strict=True)
    ]
