"""EarlierRuns: reads the rows of earlier runs as events for `history`, and looks up the uris of their images."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.concurrency import read_ahead
from pipeline.errors import NotFoundError
from pipeline.output.deletions import DELETIONS_SCHEMA, deletion_parts
from pipeline.output.part_files import open_part, read_part
from pipeline.output.parts import Part, parse_part, part_uri
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.planning.history import DELETED, EVENT, KINDS, History, build_history, hash_etags
from pipeline.storage.damage import damaged
from pipeline.storage.uris import base_name, is_local

if TYPE_CHECKING:
    from pipeline.output.results import Results
    from pipeline.output.run_record import RunRecord

# From a local disk decoding takes most of the time, and more threads do not make it faster.
LOCAL_THREADS = 2
# A shard has at most 100,000 images; compacted parts are read in pieces of PIECE_ROWS rows.
PIECE_ROWS = 65_536
_COLUMNS = ["image_id", "etag", "bytes", "status"]


def read_history(results: "Results", *, records: "Sequence[RunRecord] | None" = None) -> tuple["EarlierRuns", History]:
    """Read what earlier runs know of each image; reads again when parts were compacted or pruned meanwhile.

    Args:
        records: of the runs to read, oldest first; None for all runs.

    Raises:
        DamagedFileError: a part is damaged or missing.
        StorageError: a part cannot be read.
    """
    rows = EarlierRuns(results, records=records)
    return rows, results.retry_moved(lambda: build_history(rows.events()))


class EarlierRuns:
    """The committed rows and the deletion records of earlier runs.

    Attributes:
        records: of the runs, oldest first; the `order` of an event is an index into it. runs: their names.
    """

    def __init__(self, results: "Results", *, records: "Sequence[RunRecord] | None" = None) -> None:
        """`records`: of the runs to read, oldest first; None for all runs."""
        self.records = results.records if records is None else tuple(records)
        self.runs = [record.run for record in self.records]
        self._results = results
        # By part number: the order of its run, and the part as it was when its rows were read.
        self._parts: list[tuple[int, Part]] = []
        is_here = is_local(results.output_uri)
        self._threads = LOCAL_THREADS if is_here else results.storage.read_concurrency(results.output_uri)

    def events(self) -> Iterator[NDArray[Any]]:
        """Yield all rows and deletion records as arrays of `history.EVENT`.

        Raises:
            DamagedFileError: a part is damaged.
            NotFoundError: a part is gone; call this through `Results.retry_moved`.
            StorageError: a part cannot be read.
        """
        self._parts = [(order, part) for order, run in enumerate(self.runs) for part in self._results.committed(run)]
        numbered = [(number, order, self._address(order, part)) for number, (order, part) in enumerate(self._parts)]
        small = [each for each in numbered if not _is_compacted(each[2])]
        for pieces in read_ahead(self._threads, lambda each: list(self._events_of(*each)), small):
            yield from pieces
        for each in numbered:
            if _is_compacted(each[2]):
                yield from self._events_of(*each)
        yield from self.deletion_events()

    def deletion_events(self) -> Iterator[NDArray[Any]]:
        """Yield the deletion records only, as arrays of `history.EVENT`; errors as for `events`."""
        for order, run in enumerate(self.runs):
            for uri in deletion_parts(self._results, run):
                for piece in self._pieces(uri, ["image_id"], DELETIONS_SCHEMA):
                    events = np.zeros(len(piece), EVENT)
                    events["image_id"], events["order"], events["kind"] = piece.column("image_id"), order, DELETED
                    yield events

    def resolve_uris(self, history: History, places: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Look up the uris of images in the history that was built from these events.

        The rows may be in other parts by now, because listing takes hours and runs are compacted meanwhile. Images
        whose run was pruned are left out.

        Args:
            places: [N] int64, indices into the history.

        Yields:
            Tables of `deletions.DELETIONS_SCHEMA`.

        Raises:
            DamagedFileError: a part is damaged, or missing.
            StorageError: a part cannot be read.
        """
        newest = history.entries["newest"]
        places = places[np.argsort(newest["part"][places], kind="stable")]
        numbers, starts = np.unique(newest["part"][places], return_index=True)
        by_part = zip(numbers.tolist(), starts, [*starts[1:], len(places)], strict=False)
        wanted = {number: places[start:stop] for number, start, stop in by_part}
        while wanted:
            done = yield from self._find_uris(history, wanted)
            left = [number for number in wanted if number not in done]
            self._results.retry_moved(partial(self._require_parts, left))
            wanted = {number: wanted[number] for number in left if self._address_now(*self._parts[number])}

    def _find_uris(self, history: History, wanted: dict[int, NDArray[np.int64]]) -> Generator[pa.Table, None, set[int]]:
        """Yield the rows of the wanted images from the files that exist; return the part numbers that were found."""
        by_file: dict[tuple[int, str], list[int]] = defaultdict(list)
        for number in wanted:
            order, part = self._parts[number]
            uri = self._address_now(order, part)
            if uri is not None:
                by_file[order, uri].append(number)
        done: set[int] = set()

        def find(each: tuple[tuple[int, str], list[int]]) -> tuple[list[int], pa.Table | None]:
            (order, uri), numbers = each
            try:
                return numbers, self._rows_in(history, order, uri, np.concatenate([wanted[n] for n in numbers]))
            except NotFoundError:
                return numbers, None

        for numbers, table in read_ahead(self._threads, find, list(by_file.items())):
            if table is not None:
                done.update(numbers)
                yield table
        return done

    def _require_parts(self, numbers: list[int]) -> None:
        """Raise NotFoundError when one of the parts has moved."""
        for number in numbers:
            uri = self._address_now(*self._parts[number])
            if uri is not None:
                self._results.storage.stat(uri)

    def _address_now(self, order: int, part: Part) -> str | None:
        """Return the file that holds the rows of a part now: its own or a compacted one; None when they are pruned."""
        present = self._results.committed(self.runs[order])
        place = bisect_right(present, part.first, key=lambda each: each.first) - 1
        if place < 0 or present[place].last < part.last:
            return None
        return self._address(order, present[place])

    def _address(self, order: int, part: Part) -> str:
        return part_uri(self._results.output_uri, "images", self.runs[order], part)

    def _rows_in(self, history: History, order: int, uri: str, places: NDArray[np.int64]) -> pa.Table:
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
            unknown = [each for each in status.dictionary.to_pylist() if each not in KINDS]
            if unknown:
                raise damaged(uri, f"its column status holds {unknown[0]!r}, which htc does not write")
            kinds = np.array([KINDS[each] for each in status.dictionary.to_pylist()], np.uint8)
            events["kind"] = kinds[np.asarray(status.indices)]
            yield events

    def _pieces(self, uri: str, columns: list[str], schema: pa.Schema = IMAGES_SCHEMA) -> Iterator[pa.RecordBatch]:
        storage = self._results.storage
        if not _is_compacted(uri):
            # A small part: one request for the whole file is faster than one per column.
            yield from read_part(storage, uri, schema, columns).to_batches(PIECE_ROWS)
            return
        with open_part(storage, uri, schema) as file:
            yield from file.iter_batches(PIECE_ROWS, columns=columns)


def _is_compacted(uri: str) -> bool:
    part = parse_part(base_name(uri))
    return part is not None and part.is_compacted
