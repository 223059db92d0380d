"""The runs of all masks of a batch of images, of any sizes, by operations of fixed shapes, and their encoding.

`encode.py` finds the same runs with less arithmetic, by selecting the pieces that have a border; a selection's size
must be read by the host. Here every piece of every column is computed, and the runs are compacted by their running
number into a buffer that is copied to the host at once. A buffer that turns out to be too small is filled again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.masks.encode import MASK_THRESHOLD, PieceTable
from htc_model.masks.rle import encode_runs_of_sizes
from htc_model.structures import Rle

# Column slots that are computed at once take about 6 kB of intermediates each: 25 MB, 100 MB, 400 MB, 800 MB.
COLUMN_BUCKETS = {"cpu": (4_096, 16_384)}
OTHER_DEVICES_BUCKETS = (4_096, 16_384, 65_536, 131_072)
# A column of a mask of 28 rows, framed by zeros, has at most 15 runs, but hardly ever more than one or two.
_RUNS_PER_COLUMN = 4
_MOST_RUNS_PER_COLUMN = 15
_INT32_END = 2**31


@dataclass(frozen=True)
class MaskRuns:
    """The runs of foreground of N masks, on the host; plain arrays, so that another process can encode them.

    begins, ends [R], run_counts [N] and sizes [N, 2] are the arguments of `rle.encode_runs_of_sizes`.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    run_counts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def encode(self) -> list[Rle]:
        """Encode the masks; numpy only."""
        return encode_runs_of_sizes(self.begins, self.ends, self.run_counts, self.sizes)


class PendingRuns:
    """Runs that the device finds and copies to the host, while the caller does other work."""

    def __init__(
        self, table: PieceTable, total_columns: int, sizes: NDArray[np.int64], *, runs_per_column: int
    ) -> None:
        """Start the work; see `find_runs`."""
        self._table = table
        self._total_columns = total_columns
        self._sizes = sizes
        self._runs_per_column = runs_per_column
        device = table.slot_bounds.device
        buckets = COLUMN_BUCKETS.get(device.type, OTHER_DEVICES_BUCKETS)
        most_pixels = int((sizes[:, 0] * sizes[:, 1]).max(initial=0))
        dtype = torch.int32 if most_pixels < _INT32_END else torch.int64
        found = []
        self._rooms = []
        start = 0
        while start < total_columns:
            columns = next((bucket for bucket in buckets if bucket >= total_columns - start), buckets[-1])
            self._rooms.append(columns * runs_per_column)
            found.append(find_runs_of_columns(table, start, columns, self._rooms[-1], dtype))
            start += columns
        self._copy = _to_host(torch.cat(found)) if found else torch.zeros(0, dtype=dtype)
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> MaskRuns:
        """Wait for the copy, and return the runs."""
        if self._event is not None:
            self._event.synchronize()
        masks, values = len(self._sizes), self._copy.numpy()
        counts, begins, ends = [], [], []
        start = 0
        for room in self._rooms:
            run_counts, borders = values[start : start + masks].astype(np.int64), values[start + masks :]
            start += masks + 2 * room
            runs = int(run_counts.sum())
            if runs > room:
                again = PendingRuns(
                    self._table, self._total_columns, self._sizes, runs_per_column=_MOST_RUNS_PER_COLUMN
                )
                return again.wait()
            counts.append(run_counts)
            begins.append(borders[:runs])
            ends.append(borders[room : room + runs])
        return _join(counts, begins, ends, self._sizes)


@torch.no_grad()
def find_runs(
    mask_probs: Tensor,
    boxes_xyxy: Tensor,
    sizes: Sequence[tuple[int, int]],
    total_columns: int | None = None,
    *,
    threshold: float = MASK_THRESHOLD,
    runs_per_column: int = _RUNS_PER_COLUMN,
) -> PendingRuns:
    """Find the runs of the masks that `encode.encode_masks` would encode, of instances of several images.

    Args:
        mask_probs: [N, M, M] float32 in [0, 1].
        boxes_xyxy: [N, 4] float32; a box without width or height gives an empty mask, without cost.
        sizes: N x (height, width) of each instance's image.
        total_columns: `count_columns` of the same boxes, if the host knows it; else it is read.
        threshold: in (0, 1].
        runs_per_column: how many there is room for at first, on average.

    Returns:
        The work under way.
    """
    on_host = torch.tensor(list(sizes), dtype=torch.int64).reshape(-1, 2)
    on_device = on_host
    if mask_probs.device.type == "cuda":
        on_device = on_host.pin_memory().to(mask_probs.device, non_blocking=True)
    table = PieceTable(mask_probs, boxes_xyxy, on_device, threshold)
    if total_columns is None:
        total_columns = int(table.slot_bounds[-1])
    return PendingRuns(table, total_columns, on_host.numpy(), runs_per_column=runs_per_column)


def find_runs_of_columns(table: PieceTable, start: int, columns: int, room: int, dtype: torch.dtype) -> Tensor:
    """Find the runs in a fixed number of column slots; those beyond the last slot have none.

    Args:
        table: of N instances, N at least 1.
        start: the first slot.
        columns: how many slots.
        room: for how many runs.
        dtype: int32 or int64, of the result.

    Returns:
        [N + 2 * room]: the number of runs of each instance, the begins, the ends. Runs that touch across columns are
        merged. If the numbers' sum is above `room`, the last runs are missing.
    """
    device = table.slot_bounds.device
    instances = len(table.slot_bounds) - 1
    slots = torch.arange(start, start + columns, device=device)
    is_column = slots < table.slot_bounds[-1]
    owner = (torch.searchsorted(table.slot_bounds, slots, right=True) - 1).clamp(max=instances - 1)
    x = table.first_x[owner] + slots - table.slot_bounds[owner]
    profile, is_first_set, is_last_set = table.sample_columns(owner, x)
    before, after = _neighbours(table)
    # Pieces without pixel rows are passed over: a run goes on from the piece before them.
    is_set_before = _take_or_false(is_last_set, before.index_select(0, owner))
    is_set_after = _take_or_false(is_first_set, after.index_select(0, owner))
    has_run = (is_first_set | is_last_set) & is_column[:, None]
    opens = has_run & ~(is_first_set & is_set_before)
    closes = has_run & ~(is_last_set & is_set_after)
    owners, pieces = owner[:, None], torch.arange(table.side + 1, device=device)[None]
    ends = profile[:, :-1], profile[:, 1:]
    top = table.piece_top.index_select(0, owner)
    open_row = torch.where(is_first_set, top[:, :-1], table.find_crossings(owners, pieces, ends, is_opening=True))
    close_row = torch.where(is_last_set, top[:, 1:], table.find_crossings(owners, pieces, ends, is_opening=False))
    height = table.height[owner]
    # A run that ends at the bottom of a column and begins at the top of the next is one run.
    is_at_bottom, is_at_top = closes & (close_row == height[:, None]), opens & (open_row == 0)
    is_joined = is_at_bottom[:-1].any(dim=1) & is_at_top[1:].any(dim=1) & (owner[1:] == owner[:-1])
    opens &= ~(is_at_top & torch.nn.functional.pad(is_joined, (1, 0))[:, None])
    closes &= ~(is_at_bottom & torch.nn.functional.pad(is_joined, (0, 1))[:, None])
    column_start = (x * height)[:, None]
    run_counts = torch.zeros(instances, dtype=torch.int64, device=device).index_add(0, owner, opens.sum(dim=1))
    buffers = [
        _compact(is_border, column_start + row, room) for is_border, row in ((opens, open_row), (closes, close_row))
    ]
    return torch.cat([run_counts, *buffers]).to(dtype)


def count_columns(boxes_xyxy: Tensor, sizes: Tensor) -> Tensor:
    """Count the column slots of boxes [N, 4] in images of `sizes` [N, 2]: [] int64, on their device."""
    empty = boxes_xyxy.new_zeros(len(boxes_xyxy), 1, 1)
    return PieceTable(empty, boxes_xyxy, sizes, MASK_THRESHOLD).slot_bounds[-1]


def _neighbours(table: PieceTable) -> tuple[Tensor, Tensor]:
    """Find the nearest pieces with pixel rows before and after each piece: [N, M + 1] int64 each, -1 for none."""
    has_rows = table.piece_top[:, 1:] > table.piece_top[:, :-1]
    last = has_rows.shape[1] - 1
    numbers = torch.arange(last + 1, device=has_rows.device)
    up_to = torch.where(has_rows, numbers, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(up_to[:, :-1], (1, 0), value=-1)
    from_end = torch.where(has_rows, last - numbers, -1).flip(1).cummax(dim=1).values.flip(1)
    from_end = torch.nn.functional.pad(from_end[:, 1:], (0, 1), value=-1)
    return before, torch.where(from_end >= 0, last - from_end, -1)


def _take_or_false(values: Tensor, indices: Tensor) -> Tensor:
    """Gather [K, P] bool along the second dimension; False where the index is -1."""
    return values.gather(1, indices.clamp(min=0)) & (indices >= 0)


def _compact(is_chosen: Tensor, values: Tensor, room: int) -> Tensor:
    """Write the chosen values [K, P], in row-major order, to the front of [room]; what does not fit is dropped."""
    flat = is_chosen.flatten()
    place = torch.where(flat, flat.cumsum(0) - 1, room).clamp(max=room)
    return values.new_zeros(room + 1).scatter(0, place, values.flatten())[:room]


def _to_host(buffer: Tensor) -> Tensor:
    if buffer.device.type != "cuda":
        return buffer.cpu()
    return torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True).copy_(buffer, non_blocking=True)


def _join(
    counts: Sequence[NDArray[np.int64]],
    begins: Sequence[NDArray[np.integer]],
    ends: Sequence[NDArray[np.integer]],
    sizes: NDArray[np.int64],
) -> MaskRuns:
    """Concatenate the runs of consecutive chunks of columns, and merge runs that touch across chunks."""
    total = np.zeros(len(sizes), np.int64)
    for chunk in counts:
        total += chunk
    nothing = np.zeros(0, np.int64)  # also makes the concatenation int64
    all_begins, all_ends = np.concatenate([nothing, *begins]), np.concatenate([nothing, *ends])
    # The last run of a chunk and the first of a later one, where no chunk between them has runs.
    owners = [np.flatnonzero(chunk)[[0, -1]] for chunk in counts if chunk.any()]
    places = np.cumsum([len(chunk) for chunk in begins if len(chunk)])[:-1]
    is_kept = np.ones((2, len(all_begins)), bool)
    for place, left, right in zip(places, owners[:-1], owners[1:], strict=True):
        if left[1] == right[0] and all_ends[place - 1] == all_begins[place]:
            is_kept[0, place] = is_kept[1, place - 1] = False
            total[right[0]] -= 1
    return MaskRuns(all_begins[is_kept[0]], all_ends[is_kept[1]], total, sizes)
