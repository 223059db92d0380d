"""Encodes masks that cover the whole image, of any resolution, as COCO masks, without drawing them at full size.

Models with queries (DETR, Mask2Former and their kind) give one map of logits for each instance, over the whole image at
a quarter of its resolution or less; other models give bitmaps. Their own post-processing resizes every map to the
photo's size bilinearly and compares each pixel with a threshold: 4.8 GB for a hundred instances on 12 megapixels.

Here a map is sampled at the image's columns only, and only where the instance may be. Along a column the stretched map
is a chain of straight lines between neighbouring map rows; each is computed as a + w * (b - a), which in floating point
is monotonic in w, so that it crosses the threshold at most once, at a row that is found by bisection. The operations
are single ones of IEEE arithmetic: the masks are, bit for bit, those of the same formula at every pixel, on any device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.finite import check_finite
from htc_model.masks.encode import MASK_THRESHOLD, Runs, merge_runs
from htc_model.masks.rle import encode_runs
from htc_model.structures import Detections, FrameDetections, Rle

# Values worked on at a time, over all instances, some 32 bytes of intermediates each: 16 MB.
CHUNK_PIXELS = 2**19
# A logit of 0 is a probability of one half.
LOGIT_THRESHOLD = 0.0
# A sample between two values may exceed the larger one by its last bits; columns this near to the threshold are looked
# at, too, in units of the map's largest value.
_REACH = 1e-6


def encode_frames(found: FrameDetections, *, chunk_pixels: int = CHUNK_PIXELS) -> Detections:
    """Encode one image's masks, and move everything to the CPU.

    Masks of another size than the image's are sampled bilinearly (`align_corners=False`), bitmaps as zeros and ones;
    foreground are logits above 0, and probabilities above 0.5, as in these models' own post-processing.

    Args:
        found: on any device; `masks` of any float dtype, computed with as float32, or bool.
        chunk_pixels: limits the memory: values worked on at a time, some 32 bytes each. Besides, the borders of one
            instance's runs are held, 16 bytes each.

    Returns:
        The instances, most confident first. Where `found` has no boxes, those that enclose the masks, from the first
        pixel's left edge to the last one's right edge; an instance without a box and without a pixel is left out.

    Raises:
        NonFiniteError: a score, a box or a mask holds NaN or infinity.
        ValueError: the masks have no pixels, or `masks`, `scores`, `labels` and boxes differ in number.
    """
    count = len(found.scores)
    if found.masks.ndim != 3 or len(found.masks) != count or len(found.labels) != count:
        raise ValueError(
            f"masks are [N, h, w] and labels [N] for {count} scores, got masks of {tuple(found.masks.shape)} "
            f"and {len(found.labels)} labels"
        )
    check_finite("scores", [found.scores])
    threshold = LOGIT_THRESHOLD if found.is_logits else MASK_THRESHOLD
    masks, enclosing = encode_maps(found.masks, found.original_size, threshold=threshold, chunk_pixels=chunk_pixels)
    order = torch.sort(found.scores.detach().float().cpu(), descending=True, stable=True).indices
    if found.boxes_xyxy is None:
        boxes = enclosing
        order = order[boxes[order, 2] > boxes[order, 0]]
    else:
        if found.boxes_xyxy.shape != (count, 4):
            raise ValueError(f"boxes are [N, 4] for {count} scores, got {tuple(found.boxes_xyxy.shape)}")
        check_finite("boxes", [found.boxes_xyxy])
        boxes = found.boxes_xyxy.detach().float().cpu()
    return Detections(
        boxes_xyxy=boxes[order],
        scores=found.scores.detach().float().cpu()[order],
        labels=found.labels.detach().cpu()[order],
        masks=[masks[place] for place in order.tolist()],
    )


@torch.no_grad()
def encode_maps(
    maps: Tensor, size: tuple[int, int], *, threshold: float, chunk_pixels: int = CHUNK_PIXELS
) -> tuple[list[Rle], Tensor]:
    """Encode maps stretched over an image, where they are above a threshold.

    Args:
        maps: [N, h, w] of any float dtype, or bool; bool of the image's own size is taken as it is, of another size as
            zeros and ones.
        size: (height, width) of the image in pixels.

    Returns:
        N masks of the image's size, and the boxes [N, 4] float32 on the CPU that enclose their pixels; zeros for a mask
        without any.

    Raises:
        NonFiniteError: a map holds NaN or infinity.
        ValueError: the maps, or the image, have no pixels.
    """
    if not len(maps):
        return [], torch.zeros(0, 4)
    if 0 in maps.shape or min(size) < 1:
        raise ValueError(f"masks have at least one pixel, got {tuple(maps.shape)} for an image of {size}")
    table = _ColumnTable(maps, size, threshold)
    bounds = table.slot_bounds.cpu().numpy()
    columns = max(1, chunk_pixels // table.cells_per_column)
    masks: list[Rle] = []
    boxes = np.zeros((len(maps), 4), np.float32)
    while len(masks) < len(maps):
        # As many instances as fit into the chunk, or a part of a single one.
        first = len(masks)
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + columns, side="right")) - 1)
        chunks = [
            table.find_runs(start, min(start + columns, int(bounds[last])))
            for start in range(int(bounds[first]), int(bounds[last]), columns)
        ]
        begins, ends, run_counts = merge_runs(chunks, range(first, last))
        boxes[first:last] = _enclosing_boxes(begins, ends, run_counts, size[0])
        masks += encode_runs(begins, ends, run_counts, size)
    return masks, torch.from_numpy(boxes)


@dataclass(frozen=True)
class _Taps:
    """Where the image's pixels lie between the samples of a map, along one axis of `new` pixels and `old` samples.

    low, high: [new] int64, the two samples around each pixel. weight: [new] float32, of the second one, in [0, 1).
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def between(cls, new: int, old: int, device: torch.device) -> "_Taps":
        """Compute them in the steps of `torch.nn.functional.interpolate(align_corners=False)`, in float32."""
        scale = np.float32(old) / np.float32(new)
        place = (scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)).clip(0)
        low = np.minimum(place.astype(np.int64), old - 1)
        weight = (place - low.astype(np.float32)).clip(0, 1)
        high = np.minimum(low + 1, old - 1)
        return cls(*(torch.from_numpy(each).to(device) for each in (low, high, weight)))


class _ColumnTable:
    """The image's columns in which instances may have pixels: consecutive "column slots", instance after instance.

    Attributes:
        slot_bounds: [N + 1] int64, each instance's first column slot, and the number of all.
        cells_per_column: how many values a column is computed from.
    """

    def __init__(self, maps: Tensor, size: tuple[int, int], threshold: float) -> None:
        """See `encode_maps`."""
        self._maps, self._threshold = maps, threshold
        self._height, width = size
        old_height, old_width = maps.shape[1:]
        device = maps.device
        self._columns = _Taps.between(width, old_width, device)
        self._rows = _Taps.between(self._height, old_height, device)
        self._is_drawn = (old_height, old_width) == size
        self.cells_per_column = self._height if self._is_drawn else old_height
        # Pixel rows between the same two map rows are one span: a straight line.
        low = self._rows.low.cpu().numpy()
        first_row = np.concatenate([[0], np.flatnonzero(np.diff(low)) + 1])
        edge_row = np.append(first_row, self._height)
        self._longest = int(np.diff(edge_row).max())
        self._edge_row = torch.from_numpy(edge_row).to(device)
        self._first_row, self._last_row = self._edge_row[:-1], self._edge_row[1:] - 1
        self._top = self._rows.low[self._first_row]
        self._bottom = self._rows.high[self._first_row]
        self._first_weight = self._rows.weight[self._first_row]
        self._last_weight = self._rows.weight[self._last_row]
        first_sample, last_sample = self._column_range()
        self._first_x = torch.searchsorted(self._columns.high, first_sample)
        end_x = torch.searchsorted(self._columns.low, last_sample, right=True)
        counts = torch.where(last_sample >= first_sample, (end_x - self._first_x).clamp(min=0), 0)
        self.slot_bounds = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def _column_range(self) -> tuple[Tensor, Tensor]:
        """Find each map's first and last column that can reach the threshold: [N] int64; the last before the first."""
        if self._maps.dtype == torch.bool:
            can_reach = self._maps.any(dim=1)
        else:
            # Reductions, which copy nothing: maps may be as large as the image.
            most, least = self._maps.amax(dim=1).float(), self._maps.amin(dim=1).float()
            check_finite("masks", [most, least])
            largest = torch.maximum(most.abs(), least.abs()).amax(dim=1, keepdim=True)
            can_reach = most >= self._threshold - _REACH * largest
        numbers = torch.arange(can_reach.shape[1], device=can_reach.device)
        first = torch.where(can_reach, numbers, len(numbers)).amin(dim=1)
        return first, torch.where(can_reach, numbers, -1).amax(dim=1)

    def find_runs(self, start: int, stop: int) -> Runs:
        """Find the runs of foreground in the column slots [start, stop): owner, begin and end, see `Runs`."""
        slots = torch.arange(start, stop, device=self.slot_bounds.device)
        owner = torch.searchsorted(self.slot_bounds, slots, right=True) - 1
        x = self._first_x[owner] + slots - self.slot_bounds[owner]
        slot, row = self._drawn_borders(owner, x) if self._is_drawn else self._sampled_borders(owner, x)
        # The borders of a column open and close a run in turn, and the last one closes.
        position = (x[slot] * self._height + row).cpu().numpy()
        return owner[slot[0::2]].cpu().numpy(), position[0::2], position[1::2]

    def _drawn_borders(self, owner: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find where columns [K] of maps of the image's own size change: the columns' places and the rows."""
        values = self._maps.transpose(1, 2)[owner, x]
        is_set = values if values.dtype == torch.bool else values.float() > self._threshold
        changes = is_set.new_zeros(len(is_set), self._height + 1)
        changes[:, 0] = is_set[:, 0]
        torch.logical_xor(is_set[:, 1:], is_set[:, :-1], out=changes[:, 1:-1])
        changes[:, -1] = is_set[:, -1]
        slot, row = changes.nonzero(as_tuple=True)
        return slot, row

    def _sampled_borders(self, owner: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find where columns [K] of stretched maps change: the columns' places and the rows."""
        profile = self._sample(owner, x)
        upper = profile if len(self._top) == profile.shape[1] else profile.index_select(1, self._top)
        step = profile.index_select(1, self._bottom).sub_(upper)
        is_first_set = (step * self._first_weight).add_(upper) > self._threshold
        is_last_set = (step * self._last_weight).add_(upper) > self._threshold
        spans = len(self._top)
        # Even places: between two spans, before the first and behind the last; odd ones: within a span.
        changes = is_first_set.new_zeros(len(profile), 2 * spans + 1)
        changes[:, 0] = is_first_set[:, 0]
        changes[:, 2:-1:2] = is_first_set[:, 1:] ^ is_last_set[:, :-1]
        changes[:, 1::2] = is_first_set ^ is_last_set
        changes[:, -1] = is_last_set[:, -1]
        slot, place = changes.nonzero(as_tuple=True)
        span = place // 2
        row = self._edge_row[span]
        within = (place % 2 == 1).nonzero()[:, 0]
        inner = slot[within], span[within]
        row[within] = self._bisect(inner[1], upper[inner], step[inner], is_last_set[inner])
        return slot, row

    def _sample(self, owner: Tensor, x: Tensor) -> Tensor:
        """Sample the maps along x only: [K, h] float32 at the map rows."""
        by_column = self._maps.transpose(1, 2)
        left = by_column[owner, self._columns.low[x]].float()
        right = by_column[owner, self._columns.high[x]].float()
        return right.sub_(left).mul_(self._columns.weight[x][:, None]).add_(left)

    def _bisect(self, span: Tensor, upper: Tensor, step: Tensor, is_last_set: Tensor) -> Tensor:
        """Find the first row of each span that is in the state of the last row, where the first one is not."""
        before, row = self._first_row[span], self._last_row[span]
        for _ in range(max(0, self._longest - 2).bit_length()):
            middle = (before + row) // 2
            is_set = step * self._rows.weight[middle] + upper > self._threshold
            # Where the two are neighbours already, the middle is the first of them, which keeps both.
            has_changed = is_set == is_last_set
            row = torch.where(has_changed, middle, row)
            before = torch.where(has_changed, before, middle)
        return row


def _enclosing_boxes(
    begins: NDArray[np.int64], ends: NDArray[np.int64], run_counts: NDArray[np.int64], height: int
) -> NDArray[np.float32]:
    """Compute the boxes [N, 4] around the runs of each mask; zeros for a mask without runs."""
    boxes = np.zeros((len(run_counts), 4), np.float32)
    has_runs = run_counts > 0
    if not has_runs.any():
        return boxes
    start = (np.cumsum(run_counts) - run_counts)[has_runs]
    first_x, last_x = begins // height, (ends - 1) // height
    # A run that goes on in the next column reaches the bottom of one and the top of the other.
    is_one_column = first_x == last_x
    top = np.where(is_one_column, begins - first_x * height, 0)
    bottom = np.where(is_one_column, ends - first_x * height, height)
    corners = (
        np.minimum.reduceat(first_x, start),
        np.minimum.reduceat(top, start),
        np.maximum.reduceat(last_x, start) + 1,
        np.maximum.reduceat(bottom, start),
    )
    boxes[has_runs] = np.stack(corners, axis=1)
    return boxes
