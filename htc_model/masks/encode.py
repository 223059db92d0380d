"""Encodes 28 x 28 mask maps as COCO masks of the original image, without rasterising them.

The published method stretches each map over its box by bilinear sampling, on a canvas as large as the image, and
thresholds it. But along one image column the stretched map is a chain of straight lines between neighbouring map rows,
and a straight line crosses the threshold at most once. So each line segment of a column gives at most one run of
foreground, which follows from the segment's two ends; touching runs are merged, and COCO's encoding needs only the
runs. Time and memory grow with the boxes' widths times 29, not with their areas: a hundred instances on a 12-megapixel
image need a few megabytes at a time.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.masks.rle import encode_runs
from htc_model.masks.semantic_runs import CHUNK_PIXELS, encode_semantic
from htc_model.structures import Detections, RawDetections, Rle

# MMDetection's test_cfg.rcnn.mask_thr_binary.
MASK_THRESHOLD = 0.5
# Image columns processed at a time, over all instances: about 60 MB of intermediates at 28 map rows.
CHUNK_COLUMNS = 32_768


def encode_detections(raw: RawDetections, *, chunk_columns: int = CHUNK_COLUMNS) -> Detections:
    """Encode one image's masks, and move everything to the CPU.

    Args:
        raw: on any device.
        chunk_columns: limits the memory, see `encode_masks`; of the semantic map in proportion.

    Raises:
        NonFiniteError: a logit of the semantic map is NaN or infinite.
    """
    masks = semantic = None
    if raw.mask_probs is not None:
        masks = encode_masks(raw.mask_probs, raw.mask_boxes, raw.original_size, chunk_columns=chunk_columns)
    if raw.semantic is not None:
        chunk_pixels = max(1, CHUNK_PIXELS * chunk_columns // CHUNK_COLUMNS)
        semantic = encode_semantic(raw.semantic, raw.original_size, chunk_pixels=chunk_pixels)
    return Detections(
        boxes_xyxy=raw.boxes_xyxy.detach().float().cpu(),
        scores=raw.scores.detach().float().cpu(),
        labels=raw.labels.detach().cpu(),
        masks=masks,
        semantic=semantic,
    )


@torch.no_grad()
def encode_masks(
    mask_probs: Tensor,
    boxes_xyxy: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = MASK_THRESHOLD,
    chunk_columns: int = CHUNK_COLUMNS,
) -> list[Rle]:
    """Encode the masks that bilinear pasting at each box would give, thresholded at `>= threshold`.

    The semantics are those of `grid_sample(align_corners=False, padding_mode="zeros")` at pixel centres;
    a pixel may differ where the sampled value equals the threshold to the last bits of a float32. A box
    without width or height gives an empty mask.

    Args:
        mask_probs: [N, M, M] in [0, 1] (M is 28 in every published model), any float dtype.
        boxes_xyxy: [N, 4] in pixels of the image; may be fractional and extend beyond it.
        size: (height, width) of the image in pixels.
        threshold: in (0, 1].
        chunk_columns: columns processed at a time; about 2 kB of intermediates each.

    Returns:
        N masks of the image's size.
    """
    sizes = torch.tensor(size, device=mask_probs.device).expand(len(mask_probs), 2)
    pieces = PieceTable(mask_probs.float(), boxes_xyxy.float(), sizes, threshold)
    bounds = pieces.slot_bounds.cpu().numpy()
    masks: list[Rle] = []
    while len(masks) < len(mask_probs):
        # As many instances as fit into the chunk, or a part of a single one.
        first = len(masks)
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + chunk_columns, side="right")) - 1)
        chunks = [
            pieces.find_runs(start, min(start + chunk_columns, int(bounds[last])))
            for start in range(int(bounds[first]), int(bounds[last]), chunk_columns)
        ]
        masks += encode_runs(*merge_runs(chunks, range(first, last)), size)
    return masks


Runs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Runs of foreground: the owner (the instance) of each, its begin and one past its end, as positions x * height + y."""


def merge_runs(chunks: Sequence[Runs], instances: range) -> Runs:
    """Concatenate the runs of consecutive chunks of columns, with touching runs merged.

    Args:
        chunks: the runs of `instances`, ascending; those of one instance may lie in several.

    Returns:
        begins and ends [R], and run_counts [N] of each of the instances, as `rle.encode_runs` takes them.
    """
    nothing = np.zeros(0, np.int64)  # boxes outside the image have no columns, so no chunks
    owners, begins, ends = (np.concatenate([nothing, *(chunk[part] for chunk in chunks)]) for part in range(3))
    is_begin, is_end = _run_borders(owners, begins, ends)
    run_counts = np.bincount(owners[is_begin] - instances.start, minlength=len(instances)).astype(np.int64)
    return begins[is_begin], ends[is_end], run_counts


def _run_borders(
    owners: NDArray[np.int64], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pieces begin and which end a run, with touching runs merged."""
    touches = (begins[1:] == ends[:-1]) & (owners[1:] == owners[:-1])
    is_begin, is_end = np.ones(len(owners), bool), np.ones(len(owners), bool)
    is_begin[1:] = ~touches
    is_end[:-1] = ~touches
    return is_begin, is_end


class PieceTable:
    """The maps, and the image coordinates of the line segments ("pieces") between neighbouring map rows.

    The columns of all instances are numbered as consecutive "column slots", instance after instance, so that boxes of
    any width share the same tensor operations. Piece k of a column goes from map row k - 1 to map row k; the map has a
    frame of zeros, since the published pasting pads with zeros.

    Args:
        maps: [N, M, M] float32.
        boxes_xyxy: [N, 4] float32, in pixels of each instance's image.
        sizes: [N, 2] int64 (height, width) of each instance's image.
        threshold: in (0, 1].

    Attributes:
        slot_bounds: [N + 1] int64, each instance's first column slot, and the number of all.
    """

    def __init__(self, maps: Tensor, boxes_xyxy: Tensor, sizes: Tensor, threshold: float) -> None:
        self.height, width = sizes.unbind(1)
        self.threshold = threshold
        self.side = maps.shape[-1]
        device = maps.device
        # [N * (M + 2), M + 2]: one row per map column, so that a column's cells are contiguous.
        framed = torch.nn.functional.pad(maps.transpose(1, 2), (1, 1, 1, 1))
        self.columns = framed.reshape(-1, self.side + 2)
        self.x0, self.y0, x1, y1 = boxes_xyxy.unbind(1)
        self.box_width, self.box_height = x1 - self.x0, y1 - self.y0
        # Below a threshold of one half, foreground may extend beyond the box by a part of a map cell.
        overhang = max(0.0, 0.5 - threshold) / self.side
        self.first_x, last_x = _pixel_range(self.x0, x1, overhang * self.box_width, width)
        top, bottom = _pixel_range(self.y0, y1, overhang * self.box_height, self.height)
        is_valid = (self.box_width > 0) & (self.box_height > 0) & torch.isfinite(boxes_xyxy).all(dim=1)
        counts = torch.where(is_valid, (last_x - self.first_x).clamp(min=0), 0)
        self.slot_bounds = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        # Piece k covers the pixels from piece_top[:, k] to piece_top[:, k + 1] - 1; it may cover none.
        map_rows = torch.arange(-1, self.side + 1, device=device)
        borders = (map_rows + 0.5) / self.side * self.box_height[:, None] + self.y0[:, None] - 0.5
        bottommost = self.height.to(borders.dtype)[:, None]
        borders = torch.minimum(borders.nan_to_num(0, 0, 0).clamp(min=-1), bottommost).ceil().long()
        self.piece_top = torch.minimum(torch.maximum(borders, top[:, None]), bottom[:, None])
        pieces = torch.arange(self.side + 1, device=device)
        every_box = torch.arange(len(maps), device=device)[:, None]
        # A piece without pixels has the weight NaN: values sampled with it are not above the threshold.
        has_no_rows = self.piece_top[:, 1:] <= self.piece_top[:, :-1]
        first_weight = self._weight(every_box, pieces, self.piece_top[:, :-1])
        last_weight = self._weight(every_box, pieces, self.piece_top[:, 1:] - 1)
        self.first_weight = first_weight.masked_fill(has_no_rows, float("nan"))
        self.last_weight = last_weight.masked_fill(has_no_rows, float("nan"))

    def _weight(self, owner: Tensor, piece: Tensor, y: Tensor) -> Tensor:
        """Return the position of pixel row y between a piece's two map rows: 0 at the upper, 1 at the lower one."""
        place = _map_place(y, self.y0[owner], self.box_height[owner], self.side)
        return (place - (piece - 1)).clamp(0, 1)

    def find_runs(self, start: int, stop: int) -> Runs:
        """Find the runs of foreground in the column slots [start, stop).

        Returns:
            owner (the instance), begin and one past the end of each run, as positions x * height + y,
            ascending within an instance; touching runs of this chunk are merged.
        """
        slots = torch.arange(start, stop, device=self.columns.device)
        owner = torch.searchsorted(self.slot_bounds, slots, right=True) - 1
        x = self.first_x[owner] + slots - self.slot_bounds[owner]
        profile, is_first_set, is_last_set = self.sample_columns(owner, x)
        # Most runs go through several pieces; only their first and last pieces matter.
        continues = is_first_set[:, 1:] & is_last_set[:, :-1]
        opens = is_first_set | is_last_set
        closes = opens.clone()
        opens[:, 1:] &= ~continues
        closes[:, :-1] &= ~continues
        column_start = x * self.height[owner]
        owners, begins = self._find_borders(opens, is_first_set, owner, column_start, profile, is_opening=True)
        _, ends = self._find_borders(closes, is_last_set, owner, column_start, profile, is_opening=False)
        is_begin, is_end = _run_borders(owners, begins, ends)
        return owners[is_begin], begins[is_begin], ends[is_end]

    def sample_columns(self, owner: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the maps in image columns.

        Args:
            owner, x: [K] int64, the columns' instances and their places in the images.

        Returns:
            The values at the map rows [K, M + 2], and whether each piece's first and its last pixel row are set
            [K, M + 1].
        """
        profile = self._column_profile(owner, x)
        upper, lower = profile[:, :-1], profile[:, 1:]
        first_weight, last_weight = (w.index_select(0, owner) for w in (self.first_weight, self.last_weight))
        is_first_set = torch.lerp(upper, lower, first_weight) >= self.threshold
        is_last_set = torch.lerp(upper, lower, last_weight) >= self.threshold
        return profile, is_first_set, is_last_set

    def _column_profile(self, owner: Tensor, x: Tensor) -> Tensor:
        """Sample the framed maps along x only: [columns, M + 2] values at the map rows."""
        place = _map_place(x, self.x0[owner], self.box_width[owner], self.side)
        # Pixels just outside the frame belong to its border, where the map is zero.
        place = place.clamp(-1, self.side)
        left = place.floor().clamp(max=self.side - 1)
        row = owner * (self.side + 2) + left.long() + 1
        return torch.lerp(
            self.columns.index_select(0, row),
            self.columns.index_select(0, row + 1),
            (place - left)[:, None],
        )

    def _find_borders(
        self,
        has_border: Tensor,
        is_edge_set: Tensor,
        owner: Tensor,
        column_start: Tensor,
        profile: Tensor,
        *,
        is_opening: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the opening or closing border of a run in each given piece.

        Args:
            has_border: [columns, pieces], which pieces contain a border.
            is_edge_set: [columns, pieces], whether it is at the piece's first (closing: last) row; otherwise
                the threshold is crossed within the piece.

        Returns:
            owner and position of each border.
        """
        slot, piece = has_border.nonzero(as_tuple=True)
        owner = owner.index_select(0, slot)
        row = self.piece_top[owner, piece if is_opening else piece + 1]
        crossing = (~is_edge_set[slot, piece]).nonzero(as_tuple=True)[0]
        crossing_slot, crossing_piece = slot.index_select(0, crossing), piece.index_select(0, crossing)
        ends = profile[crossing_slot, crossing_piece], profile[crossing_slot, crossing_piece + 1]
        row[crossing] = self.find_crossings(owner.index_select(0, crossing), crossing_piece, ends, is_opening)
        position = column_start.index_select(0, slot) + row
        return owner.cpu().numpy(), position.cpu().numpy()

    def find_crossings(self, owner: Tensor, piece: Tensor, ends: tuple[Tensor, Tensor], is_opening: bool) -> Tensor:
        """Find the first pixel row of each piece that is set (closing: no longer set).

        The crossing is computed, then corrected by the sampled values of its neighbours, which are decisive: the
        division may be off by one pixel. All tensors are of one shape, or broadcast to one.
        """
        upper, lower = ends
        weight = (self.threshold - upper) / (lower - upper)
        place = weight + (piece - 1)
        y = (place + 0.5) / self.side * self.box_height[owner] + self.y0[owner] - 0.5
        first = self.piece_top[owner, piece] + 1  # the piece's first row has the other state
        last = self.piece_top[owner, piece + 1] - 1
        guess = torch.minimum(torch.maximum(y.ceil().long(), first), last)

        def has_changed(rows: Tensor) -> Tensor:
            values = torch.lerp(upper, lower, self._weight(owner, piece, rows))
            return (values >= self.threshold) == is_opening

        is_late = has_changed(guess - 1) & (guess > first)
        is_early = ~has_changed(guess)
        return guess - is_late.long() + is_early.long()


def _pixel_range(low: Tensor, high: Tensor, overhang: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Find the pixels [first, last) whose centres may be set, with a margin of one, clipped to the image."""
    most = limit.to(low.dtype)
    first = torch.minimum((low - overhang).nan_to_num(0, 0, 0).floor().clamp(min=0), most).long() - 1
    last = torch.minimum((high + overhang).nan_to_num(0, 0, 0).ceil().clamp(min=0), most).long() + 1
    return first.clamp(min=0), torch.minimum(last, limit)


def _map_place(pixel: Tensor, start: Tensor, length: Tensor, side: int) -> Tensor:
    """Map pixel indices to map coordinates (0 is the centre of the first cell), in the steps of grid_sample.

    Rounding at the same steps as the published pasting keeps ties on the same side wherever possible.
    """
    normalised = (pixel + 0.5 - start) / length * 2 - 1
    return ((normalised + 1) * side - 1) / 2
