"""Rows of the tables `panoptic` and `semantic`, image by image; a run has them only where it was asked for them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.errors import InputError
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.dataset import open_files
from pipeline.output.part_files import check_columns, open_part, parquet_errors
from pipeline.output.parts import part_uri
from pipeline.output.schema import MAP_SCHEMAS

if TYPE_CHECKING:
    from pipeline.output.parts import Part
    from pipeline.output.results import Results

# The column that numbers an image's rows.
ORDERED_BY: Mapping[MapTable, str] = {"panoptic": "segment", "semantic": "class_id"}
# At once as Python objects: a region of stuff may have thousands of runs.
_BATCH_ROWS = 256


class StoredImage(Protocol):
    """What finding an image's rows needs of its row of `images`."""

    @property
    def image_id(self) -> int:
        """Its id."""

    @property
    def uri(self) -> str:
        """Its uri."""

    @property
    def run(self) -> str:
        """The run that its rows are of."""

    @property
    def shard(self) -> int:
        """The shard that it is in."""


def check_table(results: "Results", run: str, table: MapTable) -> None:
    """Check that a run has one of the tables.

    Raises:
        InputError: it was not asked for.
    """
    if has_table(results, run, table):
        return
    record = next((each for each in results.records if each.run == run), None)
    if record is not None and record.identity.get("tiles") is not None:
        raise InputError(
            f"Run {run} has no {table} table, because it cut images into tiles, and maps of tiles are not joined; run "
            f"with --{table} and without --tiles, or name a run that has one with --run."
        )
    raise InputError(
        f"Run {run} has no {table} table, because it was not asked for one; run again with --incremental --{table}, "
        "which does the images without one, or name a run that has one with --run."
    )


def has_table(results: "Results", run: str, table: MapTable) -> bool:
    """Return whether a run was asked for one of the tables."""
    return any(record.run == run and table in record.tables for record in results.records)


def read_rows(results: "Results", table: MapTable, image: StoredImage) -> list[dict[str, Any]]:
    """Read one image's rows from its shard's part, in their order.

    Raises:
        DamagedFileError: the part is damaged or missing.
        InputError: the shard is not committed.
    """
    # The id is a hash: the URI decides between two images with the same id.
    wanted = (pads.field("image_id") == image.image_id) & (pads.field("uri") == image.uri)
    schema, files = MAP_SCHEMAS[table], open_files(results.output_uri, results.storage)

    def read() -> pa.Table:
        # Looked up each time: the part may be compacted with others meanwhile.
        part = next((each for each in results.committed(image.run) if image.shard in each.shards), None)
        if part is None:
            raise InputError(f"Shard {image.shard} of the run {image.run} is not committed.")
        path = part_uri(results.output_uri, table, image.run, part)
        fragment = pads.ParquetFileFormat().make_fragment(path, files)
        with parquet_errors(path):
            check_columns(path, fragment.physical_schema, schema)
            return fragment.to_table(schema=schema, filter=wanted)

    rows: list[dict[str, Any]] = results.retry_moved(read).to_pylist()
    return sorted(rows, key=lambda row: int(row[ORDERED_BY[table]]))


def rows_by_image(
    results: "Results",
    table: MapTable,
    run: str,
    image_ids: Collection[int],
    columns: Sequence[str],
    *,
    parts: "Sequence[Part] | None" = None,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield the rows of some images of a run, an image after another, those without a row left out.

    Parts are read in pieces, in the order of shards; memory holds one piece and the rows of one image.

    Args:
        columns: which to read, `image_id` among them.
        parts: of the run; None for all.

    Raises:
        DamagedFileError: a part is damaged or missing.
        NotFoundError: a part is gone, because it was compacted or pruned.
    """
    wanted = frozenset(image_ids)
    for part in results.committed(run) if parts is None else parts:
        rows = (row for row in _rows_of(results, table, run, part, columns) if row["image_id"] in wanted)
        for image_id, found in groupby(rows, key=lambda row: int(row["image_id"])):
            yield image_id, sorted(found, key=lambda row: int(row[ORDERED_BY[table]]))


def _rows_of(
    results: "Results", table: MapTable, run: str, part: "Part", columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    with open_part(results.storage, part_uri(results.output_uri, table, run, part), MAP_SCHEMAS[table]) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=[*dict.fromkeys([*columns, ORDERED_BY[table]])]):
            yield from batch.to_pylist()
