"""Reads the state of an output as of a run from its tables, sorted by image, in batches.

The state as of a full run is its rows. As of an incremental run, it is the newest row of each image in the runs up to
it, without the images that have been found deleted since that row. "current" is the state as of the newest run, read
in the same way whether that run is full or not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from jobs.results.diff.result import RunSide
from pipeline.errors import InputError, SpecError, StorageError
from pipeline.machine_limits import usable_memory
from pipeline.output.results import ATTEMPTS, Results
from pipeline.output.views import check_parts, open_database, translated_sql_errors
from pipeline.runs.state import has_all_rows_in

if TYPE_CHECKING:
    from pipeline.output.run_record import RunRecord

CURRENT = "current"
BATCH_IMAGES = 1024
BATCH_INSTANCES = 8192
# Two databases sort at the same time; what does not fit is sorted on disk (TMPDIR).
SORT_MEMORY_BYTES = 256 << 20
SORT_MEMORY_SHARE = 0.25
# So few are looked up by the statistics of row groups; a table of them is joined with all rows.
MAX_LITERALS = 100
T = TypeVar("T")

# Of each image the newest row in the runs up to a position, unless a later one of them has a deletion record of it.
_STATE = """
CREATE TABLE {name} AS
WITH newest AS (
    SELECT image_id, max(position) AS position FROM images JOIN runs USING (run)
    WHERE position <= {position} GROUP BY image_id
), gone AS (
    SELECT image_id, max(position) AS position FROM deletions JOIN runs USING (run)
    WHERE position <= {position} GROUP BY image_id
)
SELECT newest.image_id, runs.run
FROM newest JOIN runs ON runs.position = newest.position LEFT JOIN gone ON gone.image_id = newest.image_id
WHERE gone.position IS NULL OR gone.position <= newest.position
"""
_IMAGES = """
SELECT {key} AS key, uri, image_id, run, status, etag, bytes, width, height FROM images AS rows
WHERE {chosen} ORDER BY key, uri
"""
_INSTANCES = """
SELECT {key} AS key, uri, image_id, instance, category, score, bbox, area, mask FROM instances AS rows
WHERE {chosen} ORDER BY key, uri, instance
"""


@dataclass(frozen=True)
class Side:
    """One of the two runs, before it is read.

    results: its output. run: its name, or "current". record: of the run; of the newest one for "current".
    is_cumulative: whether rows of earlier runs belong to its state.
    """

    results: Results
    run: str
    record: "RunRecord"
    is_cumulative: bool

    @property
    def position(self) -> int:
        """The run's place among those of its output, 0 for the oldest."""
        return self.results.records.index(self.record)

    @property
    def input_uri(self) -> str:
        """What the run listed."""
        return str(self.record.spec.get("input", {}).get("uri") or "").rstrip("/")

    @property
    def is_complete(self) -> bool:
        """Whether every image of the run has its row."""
        return has_all_rows_in(self.results, self.record)

    def described(self, images: int) -> RunSide:
        """Return what is reported of it."""
        record = self.record
        mode = str(record.spec.get("select", {}).get("mode", "full"))
        return RunSide(
            self.results.output_uri, self.run, record.created, record.model_name, mode, self.is_complete, images
        )


def choose_side(results: Results, run: str) -> Side:
    """Find a run of an output.

    Raises:
        InputError: there is none of this name.
        DamagedFileError: its record is damaged.
    """
    if run == CURRENT and CURRENT not in results.runs():
        return Side(results, run, results.records[-1], is_cumulative=True)
    results.check_run(run)
    record = next(each for each in results.records if each.run == run)
    return Side(results, run, record, is_cumulative=record.spec.get("select", {}).get("mode") == "incremental")


def previous_run(results: Results, run: str) -> str:
    """Return the newest run with images before one.

    Raises:
        InputError: there is none.
    """
    names = results.runs()
    place = names.index(run) if run in names else len(names)
    before = [record.run for record in results.records[:place] if record.image_count]
    if not before:
        raise InputError(
            f"{results.output_uri} has no run with images before {run}; name two runs, or another output with --other."
        )
    return before[-1]


def read_sides(outputs: Sequence[Results], read: Callable[[], T]) -> T:
    """Read tables of outputs; read again when parts were compacted or pruned meanwhile.

    Raises:
        DamagedFileError: a part is damaged or missing.
        StorageError: parts were compacted or pruned at each of ATTEMPTS attempts.
    """
    for _ in range(ATTEMPTS):
        try:
            with translated_sql_errors():
                return read()
        except (SpecError, StorageError) as error:
            if not any(results.has_moved() for results in outputs):
                for results in outputs:
                    check_parts(results, error)
                raise
            for results in outputs:
                results.refresh()
    raise outputs[0].moved_error()


class SideTables:
    """The tables of one side, open; both readers can be used at the same time."""

    def __init__(self, side: Side, other: Side, *, uris: Sequence[str] | None, is_relative: bool) -> None:
        """Open a database of the side's output.

        Args:
            other: the other side; images whose row is the same in both are not read again as instances.
            uris: only these images.
            is_relative: images are named relative to the input of their run.
        """
        self._side = side
        self._has_parts = bool(side.results.image_parts())
        self._stack = ExitStack()
        self._database = self._stack.enter_context(closing(open_database(side.results, is_external_allowed=True)))
        memory = usable_memory() or SORT_MEMORY_BYTES / SORT_MEMORY_SHARE
        limit = min(SORT_MEMORY_BYTES, int(memory * SORT_MEMORY_SHARE))
        self._database.execute(f"SET memory_limit = '{limit >> 20}MiB'")
        self._key = _key_of(side) if is_relative else "uri"
        self._chosen = self._choose(side, "state")
        self._only = "true" if uris is None else self._among(uris)
        self._differs = "true"
        if side.results is other.results and (side.is_cumulative or other.is_cumulative):
            there = self._choose(other, "state_there")
            self._differs = f"NOT ({there})"

    def _choose(self, side: Side, name: str) -> str:
        """Return the SQL condition for the rows of a side's state."""
        if not side.is_cumulative:
            return f"rows.run = {_quoted(side.record.run)}"
        self._database.execute(_STATE.format(name=name, position=side.position))
        return f"EXISTS (FROM {name} WHERE {name}.image_id = rows.image_id AND {name}.run = rows.run)"

    def _among(self, uris: Sequence[str]) -> str:
        """Return the SQL condition for the rows of some images."""
        if 0 < len(uris) <= MAX_LITERALS:
            return f"rows.uri IN ({', '.join(map(_quoted, uris))})"
        self._database.execute("CREATE TABLE wanted (uri VARCHAR)")
        if uris:
            self._database.executemany("INSERT INTO wanted VALUES (?)", [[uri] for uri in uris])
        return "rows.uri IN (SELECT uri FROM wanted)"

    def close(self) -> None:
        """Close the database."""
        self._stack.close()

    def images(self) -> Iterator[pa.RecordBatch]:
        """Yield key, uri, image_id, run, status, etag, bytes, width and height of each image, sorted by key."""
        yield from self._sorted(_IMAGES, f"({self._chosen}) AND {self._only}", BATCH_IMAGES)

    def instances(self) -> Iterator[pa.RecordBatch]:
        """Yield the instances of the images whose row is not the same on both sides, sorted by key and instance."""
        yield from self._sorted(_INSTANCES, f"({self._chosen}) AND {self._only} AND {self._differs}", BATCH_INSTANCES)

    def _sorted(self, sql: str, chosen: str, rows: int) -> Iterator[pa.RecordBatch]:
        if not self._has_parts:
            return
        # A cursor of its own: another query would end the reader of the first one.
        cursor = self._database.cursor()
        self._stack.callback(cursor.close)
        yield from cursor.sql(sql.format(key=self._key, chosen=chosen)).to_arrow_reader(rows)


class SortedRows:
    """Rows sorted by the text column `key`, taken from batches up to a key at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._waiting: list[pa.RecordBatch] = []
        self.is_ended = False

    @property
    def last_key(self) -> str | None:
        """The last key that has been read and not taken; reads on when nothing waits. None at the end."""
        while not self._waiting and self._read():
            pass
        return self._waiting[-1].column("key")[-1].as_py() if self._waiting else None

    def take_through(self, key: str | None) -> list[pa.RecordBatch]:
        """Take the rows whose key is not after `key`; all that are left for None."""
        while (key is None or self._is_within(key)) and self._read():
            pass
        taken: list[pa.RecordBatch] = []
        while self._waiting:
            batch = self._waiting.pop(0)
            count = len(batch) if key is None else pc.sum(pc.less_equal(batch.column("key"), key)).as_py()
            taken.append(batch.slice(0, count))
            if count < len(batch):
                self._waiting.insert(0, batch.slice(count))
                break
        return taken

    def _is_within(self, key: str) -> bool:
        last = self.last_key
        return last is not None and last.encode() <= key.encode()

    def _read(self) -> bool:
        """Read one more batch; False at the end."""
        if self.is_ended:
            return False
        batch = next(self._batches, None)
        if batch is None:
            self.is_ended = True
        elif len(batch):
            self._waiting.append(batch)
        return batch is not None


def _key_of(side: Side) -> str:
    """Return the SQL for the name of an image relative to the input of the side's run; its uri outside of that."""
    root = _quoted(side.input_uri + "/")
    return f"CASE WHEN starts_with(uri, {root}) THEN substr(uri, length({root}) + 1) ELSE uri END"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
