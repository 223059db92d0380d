"""SQL over an output's tables, through DuckDB, without torch.

The views are Arrow datasets over an explicit list of committed parts: half-written shards never show, no file
name is ever taken for a pattern, and remote storage needs none of DuckDB's downloadable extensions. Filters
and column choices still reach the Parquet reader.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from htc_model.rle import decode_rle
from jobs.answers import FORMATS, Answer, write_answer
from jobs.files import replaced_file
from jobs.interruptible import run_interruptibly
from pipeline.errors import SpecError
from pipeline.storage import Storage
from pipeline.tables import IMAGES_SCHEMA, INSTANCES_SCHEMA, open_results
from pipeline.uris import is_local

if TYPE_CHECKING:
    from pipeline.config import StorageSection
    from pipeline.results import Results

# Nothing a query does may touch what is not in the views. The lock comes last: it forbids further settings.
_CLOSED_SETTINGS = (
    "SET python_enable_replacements = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
FETCH_ROWS = 2048

_RUNS_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("created", pa.string()),
        ("input", pa.string()),
        ("model", pa.string()),
        ("weights_sha256", pa.string()),
        ("is_trained", pa.bool_()),
        ("images", pa.int64()),
        ("shards", pa.int64()),
        ("shards_committed", pa.int64()),
    ]
)


def query_output(
    output_uri: str,
    sql: str,
    *,
    output_format: str | None = None,
    output_file: Path | None = None,
    is_external_allowed: bool = False,
    storage_section: StorageSection | None = None,
) -> None:
    """Run SQL over an output folder and write the last statement's answer.

    Args:
        sql: one or more statements; "-" stands for the text on stdin.
        output_format: table, csv, json (an array of objects) or parquet; None: what the file's suffix says.
        output_file: None is stdout.

    Raises:
        SpecError: the SQL is wrong or not permitted, or the answer cannot be written.
        InputError: the folder holds no run.
    """
    chosen = _choose_format(output_format, output_file)
    text = sys.stdin.read() if sql == "-" else sql
    results = open_results(output_uri, Storage(storage_section))
    database = open_database(results, is_external_allowed=is_external_allowed)
    run_interruptibly(lambda: _execute(database, text, chosen, output_file), database.interrupt)


def _execute(database: duckdb.DuckDBPyConnection, sql: str, output_format: str, output_file: Path | None) -> None:
    """Run the SQL, write its last statement's answer, close the database."""
    with contextlib.closing(database), _sql_errors_in_words():
        if output_format == "parquet" and output_file is not None:
            _write_parquet(database, sql, output_file)
            return
        answer = database.execute(sql)
        if answer is None:
            raise SpecError("The SQL holds no statement.")
        columns = [(str(column[0]), str(column[1])) for column in answer.description or []]
        write_answer(Answer(columns, _rows(answer)), output_format, output_file)


def open_database(results: Results, *, is_external_allowed: bool = False) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database with the views `images`, `instances` and `runs`.

    Args:
        results: the output folder; what is committed now is what the views will hold.
        is_external_allowed: let SQL read and write files, attach databases and load extensions.
    """
    # DuckDB would otherwise spill into `.tmp` in the current folder.
    spill = Path(tempfile.gettempdir()) / f"htc-query-{os.getpid()}"
    connection = duckdb.connect(":memory:", config={"temp_directory": str(spill)})
    try:
        connection.register("images", open_dataset(results, "images"))
        connection.register("instances", open_dataset(results, "instances"))
        connection.register("runs", _runs_table(results))
        for setting in () if is_external_allowed else _CLOSED_SETTINGS:
            connection.execute(setting)
    except BaseException:
        connection.close()
        raise
    return connection


def open_dataset(results: Results, table: str, run: str | None = None) -> pads.Dataset:
    """Open "images" or "instances" as an Arrow dataset of committed parts, with a `run` column at the end."""
    schema = IMAGES_SCHEMA if table == "images" else INSTANCES_SCHEMA
    files = _filesystem(results)
    parquet = pads.ParquetFileFormat()
    fragments = []
    for name in results.runs() if run is None else [run]:
        parts = results.image_parts(name) if table == "images" else results.instance_parts(name)
        fragments += [parquet.make_fragment(part, files, pads.field("run") == name) for part in parts]
    return pads.FileSystemDataset(fragments, schema.append(pa.field("run", pa.string())), parquet, files)


def read_instances(results: Results, run: str, shard: int, image_id: int, uri: str) -> list[dict[str, Any]]:
    """Read one image's rows of `instances` from its shard's part, most confident first."""
    files = _filesystem(results)
    part = results.instances_part(run, shard)
    fragment = pads.ParquetFileFormat().make_fragment(part, files)
    # The number is a hash: the uri decides between two images that share one.
    wanted = (pads.field("image_id") == image_id) & (pads.field("uri") == uri)
    rows: list[dict[str, Any]] = fragment.to_table(schema=INSTANCES_SCHEMA, filter=wanted).to_pylist()
    return sorted(rows, key=lambda row: row["instance"])


def decode_mask(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode the mask of one row of `instances`.

    Args:
        row: the row as a mapping with the key "mask", or the mask itself: size [height, width] and counts.

    Returns:
        [H, W] bool, of the original image's size.

    Raises:
        ValueError: the row has no mask, as with a box-only model.
    """
    mask = row.get("mask", row if "counts" in row else None)
    if mask is None:
        raise ValueError("this row has no mask; box-only models write none")
    decoded: NDArray[np.bool_] = np.asarray(decode_rle(mask), dtype=bool)
    return decoded


class _StorageFiles:
    """What pyarrow asks of an fsspec file system to read a file, answered by our own storage door."""

    protocol = "htc-storage"

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def isfile(self, path: str) -> bool:
        """Say yes: the listing has just named the path, and asking costs a request per part."""
        return bool(path)

    def open(self, path: str, mode: str) -> IO[bytes]:
        """Open a part for reading."""
        if mode != "rb":
            raise PermissionError(f"{path} is only read here")
        return self._storage.open_input(path)


def _filesystem(results: Results) -> pafs.FileSystem:
    if is_local(results.output_uri):
        return pafs.LocalFileSystem()
    return pafs.PyFileSystem(pafs.FSSpecHandler(_StorageFiles(results.storage)))


def _runs_table(results: Results) -> pa.Table:
    rows = [
        {
            "run": record.run,
            "created": record.created,
            "input": record.spec.get("input", {}).get("uri"),
            "model": record.fingerprint.get("preset"),
            "weights_sha256": record.fingerprint.get("weights_sha256"),
            "is_trained": record.fingerprint.get("trained"),
            "images": record.image_count,
            "shards": record.shard_count,
            "shards_committed": results.committed_shards(record.run),
        }
        for record in results.records
    ]
    return pa.Table.from_pylist(rows, schema=_RUNS_SCHEMA)


def _rows(answer: duckdb.DuckDBPyConnection) -> Iterator[Sequence[object]]:
    while rows := answer.fetchmany(FETCH_ROWS):
        yield from rows


def _choose_format(output_format: str | None, output_file: Path | None) -> str:
    suffix = output_file.suffix.lower().removeprefix(".") if output_file else ""
    chosen = output_format or (suffix if suffix in FORMATS else "table")
    if chosen == "parquet" and output_file is None:
        raise SpecError("Parquet is no text: name a file with --output FILE.")
    return chosen


def _write_parquet(database: duckdb.DuckDBPyConnection, sql: str, output_file: Path) -> None:
    relation = database.sql(sql)
    if relation is None:
        raise SpecError("The SQL has no answer to write: its last statement returns no rows.")
    batches = relation.to_arrow_reader(FETCH_ROWS)
    with (
        replaced_file(output_file) as sink,
        pq.ParquetWriter(sink, batches.schema, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


@contextlib.contextmanager
def _sql_errors_in_words() -> Iterator[None]:
    try:
        yield
    except duckdb.PermissionException as error:
        raise SpecError(f"{_one_sentence(error)} (--allow-external lets it).") from None
    except duckdb.Error as error:
        raise SpecError(f"{_one_sentence(error)}.") from None


def _one_sentence(error: duckdb.Error) -> str:
    """Keep DuckDB's message and its suggestion, drop the excerpt of the SQL with its caret."""
    message = str(error).split("\nLINE ")[0]
    return " ".join(message.split()).rstrip(".")
