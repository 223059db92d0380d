"""An Iceberg table over the files that runs have written: which files it names, and how runs are added and dropped."""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record

from jobs.maintenance.iceberg.schema import PROPERTIES, SCHEMAS, iceberg_schema, missing_columns, partition_by_run
from pipeline.errors import NotFoundError, SpecError, StorageError
from pipeline.output.part_files import check_columns, parquet_errors
from pipeline.output.schema import RUN_NAME
from pipeline.storage.damage import missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

if TYPE_CHECKING:
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

    from jobs.maintenance.iceberg.catalog import OpenCatalog

RUN_PROPERTY = "htc.run"
OUTPUT_PROPERTY = "htc.output"
MAPPING_PROPERTY = "schema.name-mapping.default"
FOOTERS_AT_ONCE = 16
ATTEMPTS = 5


class IcebergTable:
    """A table of an output in a catalog; `name` is "images", "deletions" or another table's.

    Raises:
        SpecError: the table of this name is of another output.
    """

    def __init__(self, opened: "OpenCatalog", namespace: str, name: str, output_uri: str, storage: Storage) -> None:
        self._opened = opened
        self._identifier = f"{namespace}.{name}"
        self.name = name
        self._output_uri = output_uri
        self._storage = storage
        self._table = self._load()
        # The files that the snapshot of this number names.
        self._listed: tuple[int, Mapping[str, Mapping[str, DataFile]]] | None = None

    @property
    def exists(self) -> bool:
        """Whether the catalog has it."""
        return self._table is not None

    def make(self) -> None:
        """Create the table if it is missing, and add the columns that it lacks."""
        if self._table is None:
            # Another publisher may have been quicker.
            with suppress(TableAlreadyExistsError, NamespaceAlreadyExistsError):
                self._create()
            self._table = self._load()
        self._repeated(self._add_columns)

    def files(self) -> Mapping[str, Mapping[str, DataFile]]:
        """Return the files that the table names now, by run and uri."""
        snapshot = None if self._table is None else self._table.current_snapshot()
        if self._table is None or snapshot is None:
            return {}
        if self._listed is None or self._listed[0] != snapshot.snapshot_id:
            found: dict[str, dict[str, DataFile]] = defaultdict(dict)
            for each in self._table.scan().plan_files():
                found[str(each.file.partition[0])][each.file.file_path] = each.file
            self._listed = snapshot.snapshot_id, found
        return self._listed[1]

    def snapshot_of(self, run: str) -> int | None:
        """Return the newest snapshot that added a run; None when there is none, or it has expired."""
        snapshots = [] if self._table is None else self._table.metadata.snapshots
        for snapshot in reversed(snapshots):
            summary = snapshot.summary
            if summary is not None and summary.additional_properties.get(RUN_PROPERTY) == run:
                return snapshot.snapshot_id
        return None

    def has(self, run: str, wanted: Sequence[str]) -> bool:
        """Return whether the table names exactly these files of a run; a run without files must have its snapshot."""
        return set(self.files().get(run, {})) == set(wanted) and (bool(wanted) or self.snapshot_of(run) is not None)

    def put(self, run: str, wanted: Sequence[str], properties: Mapping[str, str], check: Callable[[], None]) -> bool:
        """Make the table name exactly these files of a run, in one snapshot.

        Args:
            check: raises when the run's lease is lost.

        Returns:
            Whether that needed a snapshot.

        Raises:
            StorageError: a file cannot be read, or other writers committed first in every attempt.
        """

        def step() -> bool:
            if self.has(run, wanted):
                return False
            named, uris = self.files().get(run, {}), set(wanted)
            added = self._describe(run, [uri for uri in wanted if uri not in named])
            check()
            self._commit(
                added, [file for uri, file in named.items() if uri not in uris], {RUN_PROPERTY: run, **properties}
            )
            return True

        return self._repeated(step)

    def drop(self, run: str, check: Callable[[], None]) -> bool:
        """Remove all files of a run from the table; return whether it named any."""

        def step() -> bool:
            named = self.files().get(run)
            if not named:
                return False
            check()
            self._commit([], list(named.values()), {"htc.withdrawn": run})
            return True

        return self.exists and self._repeated(step)

    def _commit(self, added: Sequence[DataFile], removed: Sequence[DataFile], properties: dict[str, str]) -> None:
        with self._existing_table().transaction() as transaction:
            update = transaction.update_snapshot(snapshot_properties=properties)
            with update.overwrite() if removed else update.merge_append() as snapshot:
                for file in removed:
                    snapshot.delete_data_file(file)
                for file in added:
                    snapshot.append_data_file(file)

    def _repeated(self, step: Callable[[], bool]) -> bool:
        """Repeat a step on the reloaded table when another writer has committed first."""
        for _ in range(ATTEMPTS):
            try:
                return step()
            except CommitFailedException:
                self._table = self._load()
        raise StorageError(
            f"Other writers keep changing the table {self._identifier}; publish again when they have finished."
        )

    def _describe(self, run: str, wanted: Sequence[str]) -> list[DataFile]:
        """Return Iceberg's descriptions of files, with the statistics from their footers."""
        metadata = self._existing_table().metadata
        schema = metadata.schema()
        plan = compute_statistics_plan(schema, metadata.properties)
        numbers = {**parquet_path_to_id_mapping(schema), RUN_NAME.name: schema.find_field("run").field_id}

        known = {*schema.column_names, RUN_NAME.name}

        def describe(uri: str) -> DataFile:
            footer, size = _read_footer(self._storage, uri, self.name)
            unknown = [name for name in footer.schema.to_arrow_schema().names if name not in known]
            if unknown:
                raise StorageError(f"{uri} has columns that this version does not know; update htc-batch.")
            statistics = data_file_statistics_from_parquet_metadata(
                parquet_metadata=footer, stats_columns=plan, parquet_column_mapping=numbers
            )
            return DataFile.from_args(
                content=DataFileContent.DATA,
                file_path=uri,
                file_format=FileFormat.PARQUET,
                # Not from the file's statistics, as in pyiceberg's add_files: `run` is only in the folder's name.
                partition=Record(run),
                file_size_in_bytes=size,
                sort_order_id=None,
                spec_id=metadata.default_spec_id,
                equality_ids=None,
                key_metadata=None,
                **statistics.to_serialized_dict(),
            )

        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            return list(pool.map(describe, wanted))

    def _create(self) -> None:
        schema = iceberg_schema(SCHEMAS[self.name])
        namespace, place = self._identifier.rpartition(".")[0], self._opened.location
        self._opened.catalog.create_namespace_if_not_exists(namespace)
        self._opened.catalog.create_table(
            self._identifier,
            schema=schema,
            location=None if place is None else join(place, namespace, self.name),
            partition_spec=partition_by_run(schema),
            properties={**PROPERTIES, OUTPUT_PROPERTY: self._output_uri, MAPPING_PROPERTY: _mapping_of(schema)},
        )

    def _add_columns(self) -> bool:
        """Add new columns; return whether there were any."""
        table = self._existing_table()
        added = missing_columns(table.schema(), SCHEMAS[self.name])
        if added.names:
            with table.update_schema() as update:
                update.union_by_name(added)
        # The files have no numbers of columns, only names.
        mapping = _mapping_of(table.schema())
        if table.properties.get(MAPPING_PROPERTY) != mapping:
            with table.transaction() as transaction:
                transaction.set_properties({MAPPING_PROPERTY: mapping})
        return bool(added.names)

    def _load(self) -> "Table | None":
        try:
            table = self._opened.catalog.load_table(self._identifier)
        except NoSuchTableError:
            return None
        owner = table.properties.get(OUTPUT_PROPERTY)
        if owner != self._output_uri:
            whose = "was not made by htc" if owner is None else f"is of the output {owner}"
            raise SpecError(f"The table {self._identifier} {whose}; name another --catalog-namespace.")
        return table

    def _existing_table(self) -> "Table":
        if self._table is None:
            raise StorageError(f"The table {self._identifier} was removed meanwhile; publish again.")
        return self._table


def _mapping_of(schema: "Schema") -> str:
    """Return the mapping from column names in files to columns of the table; `run` is also read from `run_name`."""
    mapping = schema.name_mapping.model_dump()
    for field in mapping:
        if field["names"] == ["run"]:
            field["names"] = ["run", RUN_NAME.name]
    return json.dumps(mapping)


def _read_footer(storage: Storage, uri: str, table: str) -> tuple[pq.FileMetaData, int]:
    """Return a file's footer and its size in bytes."""
    try:
        with parquet_errors(uri), storage.open(uri) as file:
            footer = pq.ParquetFile(file).metadata
            check_columns(uri, footer.schema.to_arrow_schema(), SCHEMAS[table])
            return footer, file.seek(0, io.SEEK_END)
    except NotFoundError as error:
        # The lease is held: no other process has moved it.
        raise missing(uri, "its shard is committed") from error
