"""SQL functions for masks: vectorised over Arrow, computed from the runs, without drawing a mask.

A mask is the struct of the column `mask`: COCO's compressed run lengths. Of NULL every function returns NULL; so do
those of two masks where the two are of different sizes. A mask whose code is damaged is an error that names the
function; `mask_is_valid` finds such masks.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks.many_runs import (
    ForegroundRuns,
    RunLengths,
    decode_counts,
    intersect,
    intersection_areas,
    unite,
)
from htc_model.masks.outlines import multipolygon_wkt, trace_outlines
from pipeline.output.schema import MASK_TYPE

MASK = "STRUCT(size INTEGER[], counts VARCHAR)"
BOX = "STRUCT(x DOUBLE, y DOUBLE, width DOUBLE, height DOUBLE)"
POINT = "STRUCT(x DOUBLE, y DOUBLE)"
# The arrays of so many masks stay in the processor's cache, and the allocator keeps them: with 2,048 rows at once every
# array is new memory from the system, and areas take twice as long (benchmarks/mask_functions.py).
PIECE_ROWS = 256
_BOX_NAMES = ("x", "y", "width", "height")


@dataclass(frozen=True)
class MaskFunction:
    """A function of SQL.

    Args:
        name: what SQL calls it.
        parameters: DuckDB's types of its parameters.
        result: DuckDB's type of its result.
        compute: takes an Arrow array for each parameter, all of one length and without nulls, and returns one.
        summary: one line for people.
    """

    name: str
    parameters: tuple[str, ...]
    result: str
    compute: Callable[..., pa.Array]
    summary: str

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """What messages and tables call its parameters."""
        masks = iter("ab" if self.parameters.count(MASK) > 1 else ["mask"])
        return tuple(next(masks) if parameter == MASK else "bbox" for parameter in self.parameters)


def register_mask_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the functions known to a connection, which must be closed before the process ends."""
    for function in MASK_FUNCTIONS:
        connection.create_function(
            function.name,
            _of_arrow(function),
            [*function.parameters],
            function.result,
            type=PythonUDFType.ARROW,
            # By default no function may return NULL.
            null_handling=FunctionNullHandling.SPECIAL,
        )


def _of_arrow(function: MaskFunction) -> Callable[..., pa.Array]:
    """Return the function as DuckDB calls it, which asks for the number of parameters and would not find it in *args.

    DuckDB gives up to 2,048 rows at once, a constant too as often as there are rows.
    """

    def in_pieces(*columns: pa.ChunkedArray) -> pa.Array:
        arrays = [column.combine_chunks() for column in columns]
        rows = range(0, len(arrays[0]), PIECE_ROWS)
        pieces = [_of_present(function, [array.slice(at, PIECE_ROWS) for array in arrays]) for at in rows]
        return pa.concat_arrays(pieces)

    def of_one(a: pa.ChunkedArray) -> pa.Array:
        return in_pieces(a)

    def of_two(a: pa.ChunkedArray, b: pa.ChunkedArray) -> pa.Array:
        return in_pieces(a, b)

    return of_one if len(function.parameters) == 1 else of_two


def _of_present(function: MaskFunction, columns: list[pa.Array]) -> pa.Array:
    """Compute of the rows in which nothing is null; the others are null in the result."""
    is_present = np.logical_and.reduce([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])
    if is_present.all():
        return function.compute(*columns)
    kept = np.flatnonzero(is_present)
    return _spread(function.compute(*(column.take(kept) for column in columns)), kept, len(is_present))


def _spread(values: pa.Array, places: NDArray[np.int64], rows: int) -> pa.Array:
    """Put values to their places among rows; the other rows are null."""
    at = np.full(rows, -1, np.int64)
    at[places] = np.arange(len(places))
    return values.take(pa.array(at, mask=at < 0))


def decode_masks(masks: pa.StructArray) -> RunLengths:
    """Decode a column of masks, none of which is null; a mask that lacks its size or counts is not valid.

    Args:
        masks: structs with the fields `size` [height, width] and `counts`.
    """
    sizes, has_size = _sizes(masks.field("size"))
    counts = masks.field("counts")
    if pa.types.is_string(counts.type):
        counts = counts.cast(pa.large_string())
    counts = counts.fill_null("")
    _, offset_bytes, data = counts.buffers()
    offsets = np.frombuffer(offset_bytes, np.int64)[counts.offset : counts.offset + len(counts) + 1]
    texts = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.zeros(0, np.uint8)
    decoded = decode_counts(texts, offsets - offsets[0], sizes)
    return RunLengths(decoded.lengths, decoded.first, sizes, decoded.is_valid & has_size)


def _sizes(sizes: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return [N, 2] (height, width), and whether there are two numbers [N]."""
    if pa.types.is_fixed_size_list(sizes.type):
        sizes = sizes.cast(pa.list_(sizes.type.value_type))
    numbers = sizes.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = sizes.flatten()
    plain = np.asarray(values.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    has_size = numbers == 2
    result = np.zeros((len(sizes), 2), np.int64)
    result[has_size] = plain[np.repeat(has_size, numbers)].reshape(-1, 2)
    return result, has_size


def _runs(masks: pa.StructArray, name: str) -> ForegroundRuns:
    return _valid(masks, name).runs()


def _valid(masks: pa.StructArray, name: str) -> RunLengths:
    """Decode masks.

    Raises:
        ValueError: a mask is damaged.
    """
    decoded = decode_masks(masks)
    if not decoded.is_valid.all():
        wrong = int(np.flatnonzero(~decoded.is_valid)[0])
        height, width = decoded.sizes[wrong]
        raise ValueError(
            f"{name}: a mask of {height} x {width} pixels is damaged, its counts do not fill its size; "
            "WHERE NOT mask_is_valid(mask) finds such rows"
        )
    return decoded


def _encoded(masks: ForegroundRuns) -> pa.StructArray:
    sizes = pa.array(masks.sizes.tolist(), MASK_TYPE.field("size").type)
    return pa.StructArray.from_arrays([sizes, pa.array(masks.encode(), pa.string())], fields=list(MASK_TYPE))


def mask_is_valid(masks: pa.StructArray) -> pa.Array:
    """Return of each mask whether its counts can be read and fill its size."""
    return pa.array(decode_masks(masks).is_valid)


def mask_area(masks: pa.StructArray) -> pa.Array:
    """Count the foreground pixels, as `pycocotools.mask.area` does."""
    return pa.array(_valid(masks, "mask_area").areas())


def mask_bbox(masks: pa.StructArray) -> pa.Array:
    """Return the box around each mask in pixels, as `pycocotools.mask.toBbox` does; zeros for an empty mask."""
    boxes = _runs(masks, "mask_bbox").boxes_xywh()
    return pa.StructArray.from_arrays([pa.array(boxes[:, i].copy()) for i in range(4)], names=list(_BOX_NAMES))


def mask_centroid(masks: pa.StructArray) -> pa.Array:
    """Return the mean of each mask's pixel centres; null for an empty mask. The first pixel's centre is (0.5, 0.5)."""
    points = _runs(masks, "mask_centroid").centroids()
    is_empty = np.isnan(points[:, 0])
    x, y = (pa.array(points[:, i].copy()) for i in range(2))
    return pa.StructArray.from_arrays([x, y], names=["x", "y"], mask=pa.array(is_empty))


def mask_perimeter(masks: pa.StructArray) -> pa.Array:
    """Return the length of the outline along the pixels' edges, holes' too."""
    return pa.array(_runs(masks, "mask_perimeter").perimeters())


def mask_polygons(masks: pa.StructArray) -> pa.Array:
    """Return each mask's outline as a WKT MULTIPOLYGON in pixels; holes are kept."""
    return pa.array(map(multipolygon_wkt, trace_outlines(_runs(masks, "mask_polygons"))), pa.string())


def mask_png(masks: pa.StructArray) -> pa.Array:
    """Return each mask as a PNG of 8-bit grey, 255 is foreground."""
    decoded = _valid(masks, "mask_png")
    pictures = []
    for mask, (height, width) in enumerate(decoded.sizes.tolist()):
        lengths = decoded.lengths[decoded.first[mask] : decoded.first[mask + 1]]
        values = np.where(np.arange(len(lengths)) % 2, 255, 0).astype(np.uint8)
        pixels = np.repeat(values, lengths).reshape(width, height).T
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
        pictures.append(file.getvalue())
    return pa.array(pictures, pa.binary())


def mask_crop(masks: pa.StructArray, boxes: pa.StructArray) -> pa.Array:
    """Cut each mask to a box, grown to whole pixels and clipped to the image."""
    sides = [np.asarray(boxes.field(name).to_numpy(zero_copy_only=False), np.float64) for name in _BOX_NAMES]
    runs = _runs(masks, "mask_crop")
    try:
        return _encoded(runs.crop(np.stack(sides, axis=1)))
    except ValueError as error:
        raise ValueError(f"mask_crop: {error}") from error


def mask_intersection_area(a: pa.StructArray, b: pa.StructArray) -> pa.Array:
    """Count the pixels that two masks share."""
    return _of_pairs(a, b, "mask_intersection_area", lambda a, b: pa.array(intersection_areas(a, b)))


def mask_iou(a: pa.StructArray, b: pa.StructArray) -> pa.Array:
    """Return shared pixels over pixels of either mask, as `pycocotools.mask.iou` does; 0 for two empty masks."""

    def ious(a: ForegroundRuns, b: ForegroundRuns) -> pa.Array:
        shared = intersection_areas(a, b)
        return pa.array(shared / np.maximum(a.areas() + b.areas() - shared, 1))

    return _of_pairs(a, b, "mask_iou", ious)


def mask_intersection(a: pa.StructArray, b: pa.StructArray) -> pa.Array:
    """Return the mask of the pixels in both masks."""
    return _of_pairs(a, b, "mask_intersection", lambda a, b: _encoded(intersect(a, b)))


def mask_union(a: pa.StructArray, b: pa.StructArray) -> pa.Array:
    """Return the mask of the pixels in either mask."""
    return _of_pairs(a, b, "mask_union", lambda a, b: _encoded(unite(a, b)))


def _of_pairs(
    a: pa.StructArray,
    b: pa.StructArray,
    name: str,
    compute: Callable[[ForegroundRuns, ForegroundRuns], pa.Array],
) -> pa.Array:
    """Compute of pairs of masks of one size; null where the two sizes differ."""
    decoded_a, decoded_b = _valid(a, name), _valid(b, name)
    is_same = (decoded_a.sizes == decoded_b.sizes).all(axis=1)
    if is_same.all():
        return compute(decoded_a.runs(), decoded_b.runs())
    kept = np.flatnonzero(is_same)
    return _spread(compute(_runs(a.take(kept), name), _runs(b.take(kept), name)), kept, len(is_same))


MASK_FUNCTIONS = (
    MaskFunction("mask_area", (MASK,), "BIGINT", mask_area, "foreground pixels"),
    MaskFunction("mask_bbox", (MASK,), BOX, mask_bbox, "the box around the mask, in pixels"),
    MaskFunction("mask_centroid", (MASK,), POINT, mask_centroid, "the mean of the pixels' centres"),
    MaskFunction("mask_crop", (MASK, BOX), MASK, mask_crop, "the mask cut to a box"),
    MaskFunction("mask_intersection", (MASK, MASK), MASK, mask_intersection, "the pixels in both masks"),
    MaskFunction(
        "mask_intersection_area", (MASK, MASK), "BIGINT", mask_intersection_area, "how many pixels two masks share"
    ),
    MaskFunction("mask_iou", (MASK, MASK), "DOUBLE", mask_iou, "shared pixels over pixels of either mask"),
    MaskFunction("mask_is_valid", (MASK,), "BOOLEAN", mask_is_valid, "whether the counts fill the size"),
    MaskFunction("mask_perimeter", (MASK,), "BIGINT", mask_perimeter, "length of the outline along pixel edges"),
    MaskFunction("mask_png", (MASK,), "BLOB", mask_png, "a PNG, 255 is foreground"),
    MaskFunction("mask_polygons", (MASK,), "VARCHAR", mask_polygons, "a WKT MULTIPOLYGON in pixels, holes kept"),
    MaskFunction("mask_union", (MASK, MASK), MASK, mask_union, "the pixels in either mask"),
)
"""The functions, by name."""
