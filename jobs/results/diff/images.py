"""What became of the images of a batch, by the rows of both sides."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.results.diff.rules import FATES, DiffRules, ImageFate

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class JoinedImages:
    """The images of a batch, those of A first, then those of B only.

    Args:
        a, b: the rows of each side in that order, null where the side has none; columns as `SideTables.images` yields.
        fate: [N] index in FATES.
        is_unversioned: [N] whether neither row says which version it is of.
    """

    a: pa.Table
    b: pa.Table
    fate: NDArray[np.int64]
    is_unversioned: Bools

    def __len__(self) -> int:
        return len(self.fate)

    def is_(self, fate: ImageFate) -> Bools:
        """Return which images have a fate, [N] bool."""
        return np.asarray(self.fate == FATES.index(fate))

    def text(self, column: str, place: int) -> Any:
        """Return a value of an image, of B where A has none."""
        value = self.a.column(column)[place].as_py()
        return self.b.column(column)[place].as_py() if value is None else value


def join_images(a: pa.Table, b: pa.Table, rules: DiffRules, *, is_same_output: bool, is_pending: Bools) -> JoinedImages:
    """Join the images of both sides by their key, and find out what became of each.

    Args:
        is_same_output: whether a row of the same run is the same row.
        is_pending: [2] whether an image that A (B) lacks may still come, because the run is not complete.
    """
    place_in_b = pc.index_in(a.column("key"), value_set=b.column("key").combine_chunks())
    only_b = pc.invert(pc.is_in(b.column("key"), value_set=a.column("key").combine_chunks()))
    new = np.flatnonzero(np.asarray(only_b)) if len(b) else np.zeros(0, np.int64)
    at_a = pa.array([*range(len(a)), *[None] * len(new)], pa.int64())
    at_b = pa.chunked_array([*place_in_b.cast(pa.int64()).chunks, pa.array(new, pa.int64())])
    left, right = a.take(at_a), b.take(at_b)
    return JoinedImages(left, right, *_fates(left, right, rules, is_same_output, is_pending))


def _fates(
    a: pa.Table, b: pa.Table, rules: DiffRules, is_same_output: bool, is_pending: Bools
) -> tuple[NDArray[np.int64], Bools]:
    in_a, in_b = _bools(pc.is_valid(a.column("key"))), _bools(pc.is_valid(b.column("key")))
    has_etags, same_etag = _both(a, b, "etag")
    has_bytes, same_bytes = _both(a, b, "bytes")
    # As incremental runs decide it: by the ETag where both are known, else by the size.
    is_other = np.where(has_etags, ~same_etag, has_bytes & ~same_bytes)
    is_same_status = _both(a, b, "status")[1]
    is_ok = is_same_status & _bools(pc.fill_null(pc.equal(a.column("status"), "ok"), False))
    is_same_size = _both(a, b, "width")[1] & _both(a, b, "height")[1]
    conditions = {
        ImageFate.PENDING: (~in_a & is_pending[0]) | (~in_b & is_pending[1]),
        ImageFate.ADDED: ~in_a,
        ImageFate.REMOVED: ~in_b,
        ImageFate.CARRIED_OVER: _both(a, b, "run")[1] & is_same_output,
        ImageFate.CONTENT_CHANGED: is_other & (not rules.is_changed_content_compared),
        ImageFate.OUTCOME_CHANGED: ~is_same_status,
        ImageFate.NOT_OK: ~is_ok,
        ImageFate.SIZE_CHANGED: ~is_same_size & _both(a, b, "width")[0],
    }
    numbers = [FATES.index(fate) for fate in conditions]
    fate = np.select(list(conditions.values()), numbers, FATES.index(ImageFate.COMPARED))
    return fate.astype(np.int64), in_a & in_b & ~has_etags & ~has_bytes


def _both(a: pa.Table, b: pa.Table, column: str) -> tuple[Bools, Bools]:
    """Return where both sides have a value, and where the two are equal."""
    equal = pc.equal(a.column(column), b.column(column))
    return _bools(pc.is_valid(equal)), _bools(pc.fill_null(equal, False))


def _bools(column: pa.ChunkedArray) -> Bools:
    return np.asarray(column, dtype=bool)
