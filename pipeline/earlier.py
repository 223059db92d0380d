"""The rows of earlier runs, as events of `history`, read in pieces; and the names of images found again."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.ahead import read_ahead
from pipeline.deletions import DELETIONS_SCHEMA, deletion_parts
from pipeline.errors import StorageError
from pipeline.history import DELETED, EVENT, KINDS, History, hash_etags
from pipeline.parts import parse_part
from pipeline.uris import base_name, is_local

if TYPE_CHECKING:
    from pipeline.records import RunRecord
    from pipeline.results import Results

# From a local disk decoding is the longer part, and that is done one after the other in any case.
LOCAL_THREADS = 2
# A shard has at most 100,000 images; compacted files are read in pieces of so many rows.
PIECE_ROWS = 65_536
_COLUMNS = ["image_id", "etag", "bytes", "status"]


class EarlierRows:
    """What runs have committed, part by part.

    Attributes:
        records: the runs', oldest first: the `order` of an event is the place here. runs: their names.
    """

    def __init__(self, results: "Results", *, records: "Sequence[RunRecord] | None" = None) -> None:
        """`records`: only these runs', oldest first; by default all of them."""
        self.records = results.records if records is None else tuple(records)
        self.runs = [record.run for record in self.records]
        self._results = results
        self._parts: list[tuple[int, str]] = []
        is_here = is_local(results.output_uri)
        self._threads = LOCAL_THREADS if is_here else results.storage.read_concurrency(results.output_uri)

    def events(self) -> Iterator[NDArray[Any]]:
        """Read all rows and all marks of deletion; arrays of `history.EVENT`.

        Raises:
            StorageError: a part cannot be read.
        """
        self._parts = [(order, uri) for order, run in enumerate(self.runs) for uri in self._results.image_parts(run)]
        numbered = [(number, order, uri) for number, (order, uri) in enumerate(self._parts)]
        small = [each for each in numbered if not _is_compacted(each[2])]
        for pieces in read_ahead(self._threads, lambda each: list(self._events_of(*each)), small):
            yield from pieces
        for each in numbered:
            if _is_compacted(each[2]):
                yield from self._events_of(*each)
        yield from self.marks()

    def marks(self) -> Iterator[NDArray[Any]]:
        """Read the marks of deletion alone."""
        for order, run in enumerate(self.runs):
            for uri in deletion_parts(self._results, run):
                for piece in self._pieces(uri, ["image_id"]):
                    marks = np.zeros(len(piece), EVENT)
                    marks["image_id"], marks["order"], marks["kind"] = piece.column("image_id"), order, DELETED
                    yield marks

    def tell_names(self, history: History, places: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Find the names of images of a history that was built of these events.

        Yields:
            tables of `deletions.DELETIONS_SCHEMA`.
        """
        newest = history.entries["newest"]
        places = places[np.argsort(newest["part"][places], kind="stable")]
        numbers, starts = np.unique(newest["part"][places], return_index=True)
        by_part = zip(numbers.tolist(), starts, [*starts[1:], len(places)], strict=False)
        wanted = [(number, places[start:stop]) for number, start, stop in by_part]
        yield from read_ahead(self._threads, lambda each: self._names_in(history, *each), wanted)

    def _names_in(self, history: History, number: int, places: NDArray[np.int64]) -> pa.Table:
        order, uri = self._parts[number]
        ok_order = dict(zip(history.ids[places].tolist(), history.entries["ok"]["order"][places].tolist(), strict=True))
        ids: list[int] = []
        uris: list[str] = []
        for piece in self._pieces(uri, ["image_id", "uri"]):
            found = np.flatnonzero(np.isin(np.asarray(piece.column("image_id")), history.ids[places]))
            ids += piece.column("image_id").take(found).to_pylist()
            uris += piece.column("uri").take(found).to_pylist()
        oks = [self.runs[ok_order[number]] if ok_order[number] >= 0 else None for number in ids]
        columns = {"image_id": ids, "uri": uris, "last_run": [self.runs[order]] * len(ids), "last_ok_run": oks}
        return pa.table(columns, schema=DELETIONS_SCHEMA)

    def _events_of(self, number: int, order: int, uri: str) -> Iterator[NDArray[Any]]:
        for piece in self._pieces(uri, _COLUMNS):
            events = np.zeros(len(piece), EVENT)
            events["image_id"] = piece.column("image_id")
            events["etag"] = hash_etags(piece.column("etag").to_pylist(), len(piece))
            events["bytes"] = piece.column("bytes").fill_null(-1)
            events["order"], events["part"] = order, number
            status = piece.column("status").dictionary_encode()
            kinds = np.array([KINDS[each] for each in status.dictionary.to_pylist()], np.uint8)
            events["kind"] = kinds[np.asarray(status.indices)]
            yield events

    def _pieces(self, uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._read_pieces(uri, columns)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} is damaged: it is no whole Parquet file of ours.") from error

    def _read_pieces(self, uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        storage = self._results.storage
        if not _is_compacted(uri):
            # Small: one request for all of it is quicker than one for each column.
            whole = pa.BufferReader(storage.read(uri))
            yield from pq.ParquetFile(whole).iter_batches(PIECE_ROWS, columns=columns, use_threads=False)
            return
        with storage.reading(uri) as file:
            yield from pq.ParquetFile(file).iter_batches(PIECE_ROWS, columns=columns)


def _is_compacted(uri: str) -> bool:
    part = parse_part(base_name(uri))
    return part is not None and part.is_compacted
