"""Reading a finished or unfinished output: committed parts only, whoever wrote the rest."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.records import RunRecord, list_records
from pipeline.storage import Storage
from pipeline.tables import (
    IMAGES_SCHEMA,
    INSTANCES_SCHEMA,
    committed_shards,
    images_part,
    instances_part,
)
from pipeline.uris import is_local, local_path

READ_THREADS = 8


class Results:
    """The tables of one output folder.

    What is committed is looked up once, when it is first needed; open it again to see a run's progress.
    """

    def __init__(self, output_uri: str, storage: Storage) -> None:
        self.output_uri = local_path(output_uri).rstrip("/") if is_local(output_uri) else output_uri.rstrip("/")
        self.storage = storage
        if not self.records:
            raise InputError(f"{output_uri} holds no run of htc; start one with `htc run INPUT {output_uri}`.")

    @cached_property
    def records(self) -> tuple[RunRecord, ...]:
        """The runs' records, oldest first."""
        return tuple(list_records(self.storage, self.output_uri))

    @cached_property
    def _committed(self) -> dict[str, list[int]]:
        return {
            record.run: sorted(committed_shards(self.storage, self.output_uri, record.run)) for record in self.records
        }

    def runs(self) -> list[str]:
        """Return the runs' names, oldest first."""
        return [record.run for record in self.records]

    def image_parts(self, run: str | None = None) -> list[str]:
        """Return the uris of the committed parts of `images`, of one run or of all."""
        return [images_part(self.output_uri, name, shard) for name, shard in self._parts(run)]

    def instance_parts(self, run: str | None = None) -> list[str]:
        """Return the uris of the parts of `instances` whose shard is committed, of one run or of all."""
        return [instances_part(self.output_uri, name, shard) for name, shard in self._parts(run)]

    def images(self, run: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read `images` with a `run` column at the end, in the order of run and shard.

        Raises:
            InputError: there is no run of this name.
        """
        return self._read(images_part, IMAGES_SCHEMA, run, columns)

    def instances(self, run: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read `instances` with a `run` column at the end, in the order of run and shard.

        Raises:
            InputError: there is no run of this name.
        """
        return self._read(instances_part, INSTANCES_SCHEMA, run, columns)

    def _parts(self, run: str | None) -> list[tuple[str, int]]:
        if run is not None and run not in self._committed:
            names = ", ".join(self.runs())
            raise InputError(f"There is no run {run} in {self.output_uri}; its runs are {names}.")
        names_read = [run] if run is not None else self.runs()
        return [(name, shard) for name in names_read for shard in self._committed[name]]

    def _read(
        self,
        part_uri: Callable[[str, str, int], str],
        schema: pa.Schema,
        run: str | None,
        columns: Sequence[str] | None,
    ) -> pa.Table:
        wanted = [name for name in schema.names if columns is None or name in columns]

        def read(part: tuple[str, int]) -> pa.Table:
            name, shard = part
            with self.storage.open_input(part_uri(self.output_uri, name, shard)) as file:
                table = pq.ParquetFile(file).read(columns=wanted)
            return table.append_column("run", pa.array([name] * len(table), pa.string()))

        with ThreadPoolExecutor(READ_THREADS) as pool:
            tables = list(pool.map(read, self._parts(run)))
        empty = pa.schema([schema.field(name) for name in wanted] + [pa.field("run", pa.string())])
        # Parts of an older release lack the columns that came later; they are null there.
        whole = pa.concat_tables([empty.empty_table(), *tables], promote_options="default")
        return whole.replace_schema_metadata(schema.metadata)
