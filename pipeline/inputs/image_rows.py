"""The images of a shard as rows of the manifest, which cost little to cut out and to send; decoded on first use."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import pyarrow as pa

from pipeline.inputs.image_ref import ImageRef

# Of the manifest's columns, those that hold a field of `ImageRef` as it is.
PLAIN_COLUMNS = ("bytes", "etag", "offset", "row", "column", "problem", "failed_before")
# A worker's next shards wait in the driver's memory until their results are there: 256 S3 names of usual length take
# 14 KiB instead of 26, for 0.05 ms.
_COMPRESSION = pa.ipc.IpcWriteOptions(compression="lz4")


class ImageRows(Sequence[ImageRef]):
    """Images as a sequence; pickled as the rows' compressed Arrow bytes, whether decoded or not."""

    def __init__(self, rows: pa.Table) -> None:
        """`rows`: with the column `uri`, and of `uri_bytes`, `container`, `container_bytes` and PLAIN_COLUMNS those
        that hold any value, see `pipeline.planning.manifest.MANIFEST_SCHEMA`."""
        self._rows = rows
        self._refs: list[ImageRef] | None = None

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @overload
    def __getitem__(self, at: int) -> ImageRef: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ImageRef]: ...
    def __getitem__(self, at: int | slice) -> ImageRef | Sequence[ImageRef]:
        return self._decoded()[at]

    def __iter__(self) -> Iterator[ImageRef]:
        return iter(self._decoded())

    def __reduce__(self) -> tuple[Any, ...]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._rows.schema, options=_COMPRESSION) as stream:
            stream.write_table(self._rows)
        return _unpack, (sink.getvalue().to_pybytes(),)

    def is_filled(self, column: str) -> bool:
        """Return whether every image has a value in a column; decodes nothing."""
        return column in self._rows.column_names and self._rows.column(column).null_count == 0

    def _decoded(self) -> list[ImageRef]:
        # Threads that do this at the same time get equal lists.
        if self._refs is None:
            self._refs = refs_of(self._rows)
        return self._refs


def _unpack(payload: bytes) -> ImageRows:
    return ImageRows(pa.ipc.open_stream(payload).read_all())


def refs_of(table: pa.Table) -> list[ImageRef]:
    """Return the images of a part of a manifest, or of a slice of one; an absent column stands for nulls."""
    plain = zip(*(_values(table, name) for name in PLAIN_COLUMNS), strict=True)
    named = zip(names_of(table, "uri"), names_of(table, "container"), plain, strict=True)
    return [
        ImageRef(uri, size, etag, container, offset, row, column, problem, is_repeat)
        for uri, container, (size, etag, offset, row, column, problem, is_repeat) in named
    ]


def names_of(table: pa.Table, column: str) -> list[Any]:
    """Return the names of the column `uri` or `container`, with their own bytes where these are not valid UTF-8."""
    shown, odd = _values(table, column), f"{column}_bytes"
    if odd not in table.column_names or table.column(odd).null_count == len(table):
        return shown
    return [
        name if raw is None else raw.decode("utf-8", "surrogateescape")
        for name, raw in zip(shown, _values(table, odd), strict=True)
    ]


def _values(table: pa.Table, column: str) -> list[Any]:
    return list(table.column(column).to_pylist()) if column in table.column_names else [None] * len(table)
