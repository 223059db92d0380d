"""Results: reads the committed rows of an output, finished or not."""

import difflib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import pyarrow as pa

from pipeline.errors import DamagedFileError, InputError, NotFoundError, StorageError
from pipeline.output.layout import TableName
from pipeline.output.part_files import open_part
from pipeline.output.parts import Part, committed_parts_by_run, part_uri, run_of
from pipeline.output.run_record import RunRecord, age_order, list_records
from pipeline.output.schema import TABLE_SCHEMAS
from pipeline.storage.damage import advice, warn
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, local_path

READ_THREADS = 8
# Parts may be compacted or pruned while they are read.
ATTEMPTS = 3

# More names would hide the sentence.
MOST_RUNS_NAMED = 20

T = TypeVar("T")


class Results:
    """The tables of one output folder.

    The committed parts are listed once, when they are first needed; `refresh` or a new object lists them again.

    Attributes:
        damaged_runs: the errors of runs whose run.json is damaged or missing, by name; these runs are left out.
    """

    def __init__(self, output_uri: str, storage: Storage, *, before: tuple[str, str] | None = None) -> None:
        """Read the runs' records.

        Args:
            before: leave out the run with this `run_record.age_order` and later ones. There may be no run at all then,
                and none may be damaged, because an incremental run depends on every earlier one.

        Raises:
            InputError: there is no run.
            DamagedFileError: no run.json can be read, or with `before` one of them cannot.
        """
        self.output_uri = local_path(output_uri).rstrip("/") if is_local(output_uri) else output_uri.rstrip("/")
        self.storage = storage
        self._before = before
        self.damaged_runs: dict[str, DamagedFileError] = {}
        if before is None and not self.records:
            for error in self.damaged_runs.values():
                raise error
            raise InputError(f"{output_uri} holds no run of htc; start one with `htc run INPUT {output_uri}`.")
        for error in self.damaged_runs.values():
            warn(error)

    @cached_property
    def records(self) -> tuple[RunRecord, ...]:
        """The runs' records, oldest first; those in `damaged_runs` are left out."""
        damaged_runs = self.damaged_runs if self._before is None else None
        records = list_records(self.storage, self.output_uri, damaged_runs=damaged_runs)
        return tuple(record for record in records if self._before is None or age_order(record) < self._before)

    @cached_property
    def _committed(self) -> dict[str, list[Part]]:
        shard_counts = {record.run: record.shard_count for record in self.records}
        return committed_parts_by_run(self.storage, self.output_uri, shard_counts)

    def runs(self) -> list[str]:
        """Return the runs' names, oldest first."""
        return [record.run for record in self.records]

    def check_run(self, run: str) -> None:
        """Check that there is a run of this name.

        Raises:
            InputError: there is none.
            DamagedFileError: its record is damaged.
        """
        if run in self.damaged_runs:
            raise self.damaged_runs[run]
        if run not in self.runs():
            names = self.runs()
            nearest = difflib.get_close_matches(run, names, n=1)
            known = f"did you mean {nearest[0]}? Its runs are" if nearest else "its runs are"
            shown = ", ".join(names[-MOST_RUNS_NAMED:]) + (" and older ones" if len(names) > MOST_RUNS_NAMED else "")
            raise InputError(f"There is no run {run} in {self.output_uri}; {known} {shown}.")

    def newest_run(self) -> str:
        """Return the newest run that has images; the newest one when none has."""
        with_images = [record.run for record in self.records if record.image_count]
        return (with_images or self.runs())[-1]

    def committed(self, run: str) -> list[Part]:
        """Return a run's committed parts, in the order of shards."""
        self.check_run(run)
        return self._committed[run]

    def tables(self, run: str) -> tuple[TableName, ...]:
        """Return a run's tables of rows: `images`, `instances`, and those of maps that it was asked for."""
        self.check_run(run)
        return next(record.tables for record in self.records if record.run == run)

    def parts_of(self, table: TableName, run: str | None = None) -> list[str]:
        """Return the uris of the committed parts of a table, of one run or of all that have the table."""
        having = {record.run for record in self.records if table in record.tables}
        return [part_uri(self.output_uri, table, name, part) for name, part in self._parts(run) if name in having]

    def image_parts(self, run: str | None = None) -> list[str]:
        """Return the uris of the committed parts of `images`, of one run or of all."""
        return [part_uri(self.output_uri, "images", name, part) for name, part in self._parts(run)]

    def instance_parts(self, run: str | None = None) -> list[str]:
        """Return the uris of the parts of `instances` whose shard is committed, of one run or of all."""
        return [part_uri(self.output_uri, "instances", name, part) for name, part in self._parts(run)]

    def committed_shards(self, run: str) -> int:
        """Return the number of committed shards of a run."""
        return sum(len(part.shards) for _, part in self._parts(run))

    def has_moved(self) -> bool:
        """Return whether listed parts are gone, because they were compacted or pruned since."""
        now = Results(self.output_uri, self.storage, before=self._before)._committed
        return any(run not in now or not set(parts) <= set(now[run]) for run, parts in self._committed.items())

    def refresh(self) -> None:
        """List the committed parts again when they are needed next."""
        self.__dict__.pop("_committed", None)

    def retry_moved(self, read: Callable[[], T]) -> T:
        """Read parts; read again from the new ones when parts were compacted or pruned meanwhile.

        Args:
            read: takes the parts' uris from this object each time, and raises NotFoundError when a part is gone.

        Returns:
            What `read` returns.

        Raises:
            DamagedFileError: a part of a committed shard is missing, and was not compacted or pruned.
            StorageError: parts were compacted or pruned at each of ATTEMPTS attempts.
        """
        for _ in range(ATTEMPTS):
            try:
                return read()
            except NotFoundError as error:
                if not self.has_moved():
                    raise DamagedFileError(
                        f"{str(error).rstrip('.')}, although its shard is committed; {advice(self.output_uri)}"
                    ) from error
                self.refresh()
        raise self.moved_error()

    def moved_error(self) -> StorageError:
        """Return the error for parts that were compacted or pruned at each of ATTEMPTS attempts to read them."""
        return StorageError(
            f"{self.output_uri} was compacted or pruned again and again while it was read; run the command again."
        )

    def instances_part(self, run: str, shard: int) -> str:
        """Return the uri of the part of `instances` that holds a committed shard, alone or compacted with others.

        Raises:
            InputError: the shard is not committed.
        """
        for _, part in self._parts(run):
            if shard in part.shards:
                return part_uri(self.output_uri, "instances", run, part)
        raise InputError(f"Shard {shard} of the run {run} is not committed.")

    def images(self, run: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read `images` with a `run` column at the end, in the order of run and shard.

        Raises:
            InputError: there is no run of this name.
            DamagedFileError: a part is damaged or missing, or the run's record is.
        """
        return self._read("images", run, columns)

    def instances(self, run: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read `instances` with a `run` column at the end, in the order of run and shard.

        Raises:
            InputError: there is no run of this name.
            DamagedFileError: a part is damaged or missing, or the run's record is.
        """
        return self._read("instances", run, columns)

    def semantic(self, run: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read `semantic` with a `run` column at the end, in the order of run and shard; no rows where no run has it.

        Raises:
            InputError: there is no run of this name.
            DamagedFileError: a part is damaged or missing, or the run's record is.
        """
        return self._read("semantic", run, columns)

    def panoptic(self, run: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read `panoptic` with a `run` column at the end, in the order of run and shard; no rows where no run has it.

        Raises:
            InputError: there is no run of this name.
            DamagedFileError: a part is damaged or missing, or the run's record is.
        """
        return self._read("panoptic", run, columns)

    def _parts(self, run: str | None) -> list[tuple[str, Part]]:
        if run is not None:
            self.check_run(run)
        names_read = [run] if run is not None else self.runs()
        return [(name, part) for name in names_read for part in self._committed[name]]

    def _read(self, kind: TableName, run: str | None, columns: Sequence[str] | None) -> pa.Table:
        schema = TABLE_SCHEMAS[kind]
        wanted = [name for name in schema.names if columns is None or name in columns]

        def read(uri: str) -> pa.Table:
            with open_part(self.storage, uri, schema) as file:
                table = file.read(columns=wanted)
            return table.append_column("run", pa.array([run_of(uri)] * len(table), pa.string()))

        with ThreadPoolExecutor(READ_THREADS) as pool:
            tables = self.retry_moved(lambda: list(pool.map(read, self.parts_of(kind, run))))
        empty = pa.schema([schema.field(name) for name in wanted] + [pa.field("run", pa.string())])
        # Parts of an older release lack the columns that were added later; they are null there.
        table = pa.concat_tables([empty.empty_table(), *tables], promote_options="default")
        return table.replace_schema_metadata(schema.metadata)


def open_results(output_uri: str, storage: Storage | None = None) -> "Results":
    """Open an output folder for reading.

    Args:
        storage: how it is read; None for the default options.

    Raises:
        InputError: it holds no run.
        DamagedFileError: no run.json can be read.
    """
    return Results(output_uri, storage or Storage())
