"""Writes what was compared as Parquet: a row for each image, and one for each instance that counts."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.results.diff.rules import FATES, Kind
from jobs.results.folders import make_folder
from jobs.terminal.output_file import atomic_output

if TYPE_CHECKING:
    from contextlib import ExitStack

    from jobs.results.diff.totals import Batch

IMAGES = "images.parquet"
INSTANCES = "instances.parquet"
_IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("uri_a", pa.string()),
        ("uri_b", pa.string()),
        ("run_a", pa.string()),
        ("run_b", pa.string()),
        ("status_a", pa.string()),
        ("status_b", pa.string()),
        ("what", pa.string()),
        ("instances", pa.int32()),
        ("changed", pa.int32()),
    ]
)
_INSTANCES_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("instance_a", pa.int32()),
        ("instance_b", pa.int32()),
        ("category_a", pa.string()),
        ("category_b", pa.string()),
        ("score_a", pa.float32()),
        ("score_b", pa.float32()),
        ("iou", pa.float32()),
    ]
)


class TableWriter:
    """Writes batch by batch; the files appear when the block ends without an error.

    Raises:
        SpecError: the folder cannot be created, or a file not be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack: ExitStack | None = None

    def __enter__(self) -> "TableWriter":
        """Open both files."""
        from contextlib import ExitStack

        make_folder(self._folder)
        with ExitStack() as stack:
            self._images, self._instances = (
                stack.enter_context(
                    pq.ParquetWriter(
                        stack.enter_context(atomic_output(self._folder / name)), schema, compression="zstd"
                    )
                )
                for name, schema in ((IMAGES, _IMAGES_SCHEMA), (INSTANCES, _INSTANCES_SCHEMA))
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both files; they appear unless there was an error."""
        if self._stack is not None:
            self._stack.__exit__(kind, error, trace)

    def write(self, batch: "Batch") -> None:
        """Write the rows of a batch."""
        self._images.write_table(_image_rows(batch))
        self._instances.write_table(_instance_rows(batch))


def _image_rows(batch: "Batch") -> pa.Table:
    images = batch.images
    counts = np.bincount(batch.image, minlength=len(images)) + batch.lost
    changed = np.bincount(batch.image[batch.kind != Kind.SAME], minlength=len(images)) + batch.lost
    fates = pa.array([fate.value for fate in FATES]).take(pa.array(images.fate))
    ids = [side.column("image_id") for side in (images.a, images.b)]
    columns = [
        ids[0].to_numpy(zero_copy_only=False) if not ids[0].null_count else _first_of(ids),
        *(side.column(name) for name in ("uri", "run", "status") for side in (images.a, images.b)),
        fates,
        counts.astype(np.int32),
        changed.astype(np.int32),
    ]
    return pa.table(columns, schema=_IMAGES_SCHEMA)


def _first_of(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.coalesce(*columns)


def _instance_rows(batch: "Batch") -> pa.Table:
    kinds = pa.array([kind.label for kind in Kind]).take(pa.array(batch.kind))
    places = (_places(batch.place_a), _places(batch.place_b))
    of_sides = [
        table.column(name).take(at)
        for name in ("instance", "category", "score")
        for table, at in zip((batch.a, batch.b), places, strict=True)
    ]
    iou = pa.array(batch.iou.astype(np.float32), mask=np.isnan(batch.iou))
    image = pa.array(batch.image)
    columns = [batch.images.a.column(name).take(image) for name in ("image_id", "uri")]
    table = pa.table([*columns, kinds, *of_sides, iou], schema=_INSTANCES_SCHEMA)
    return table.take(pa.array(np.argsort(batch.image, kind="stable")))


def _places(places: NDArray[np.int64]) -> pa.Array:
    return pa.array(places, mask=places < 0)
