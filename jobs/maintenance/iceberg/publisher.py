"""Adds runs to the Iceberg tables of an output, and withdraws them.

A run is added to its tables of maps and to `instances` first, then to `deletions`, and to `images` last, as a worker
writes a shard: a query that begins at `images` finds all other rows. It is withdrawn in the opposite order. The next
call finishes what was interrupted in between.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.maintenance.iceberg.schema import SCHEMAS
from jobs.maintenance.iceberg.table import IcebergTable
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.maintenance.publications import Publication, forget_publication, note_publication, read_publications
from pipeline.output.deletions import deletion_parts
from pipeline.output.parts import committed_parts, part_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.maintenance.iceberg.catalog import OpenCatalog
    from pipeline.output.results import Results
    from pipeline.output.run_record import RunRecord
    from pipeline.runs.lease import Lease
    from pipeline.storage.storage import Storage


class Publisher:
    """The tables of one output in one namespace of a catalog.

    Raises:
        SpecError: the namespace holds tables of another output.
    """

    def __init__(self, opened: "OpenCatalog", namespace: str, output_uri: str, storage: "Storage") -> None:
        self.place = (opened.label, namespace)
        self._output_uri = output_uri
        self._storage = storage
        self._tables = {name: IcebergTable(opened, namespace, name, output_uri, storage) for name in SCHEMAS}

    def table(self, name: str) -> IcebergTable:
        """Return one of the tables."""
        return self._tables[name]

    def make(self, records: "Sequence[RunRecord]" = ()) -> None:
        """Create the tables that are missing, and add new columns to the others.

        Args:
            records: of the runs that will be published; a table of maps is made when one of them has it.
        """
        needed = {table for record in records for table in record.tables}
        for name, table in self._tables.items():
            if name not in MAP_TABLES or name in needed:
                table.make()

    def runs(self) -> set[str]:
        """Return the runs of which any of the tables names files."""
        return {run for table in self._tables.values() for run in table.files()}

    def has(self, results: "Results", run: str) -> bool:
        """Return whether a run is published as it is now, and recorded so in its folder."""
        noted = [each for each in read_publications(self._storage, self._output_uri, run) if each.place == self.place]
        if not noted or not noted[0].snapshots:
            return False
        wanted = self._files(results, run)
        return all(self._tables[name].has(run, files) for name, files in wanted.items())

    def add(self, results: "Results", record: "RunRecord", lease: "Lease") -> bool:
        """Publish a run; return whether anything was left to do.

        Raises:
            RunError: the lease is lost.
            StorageError: storage or the catalog failed.
        """
        run, moment = record.run, datetime.now(UTC).isoformat(timespec="seconds")
        # Recorded first: from here on, no command removes files that a table may name.
        note_publication(self._storage, self._output_uri, run, Publication(*self.place, moment))
        wanted, properties = self._files(results, run), _properties(record)
        changes = [self._tables[name].put(run, files, properties, lease.check) for name, files in wanted.items()]
        snapshots = {name: table.snapshot_of(run) for name, table in self._tables.items()}
        kept = {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}
        note_publication(self._storage, self._output_uri, run, Publication(*self.place, moment, kept))
        return any(changes)

    def withdraw(self, run: str, lease: "Lease | None") -> bool:
        """Withdraw a run from the tables; return whether it was there.

        Args:
            lease: on the run; None when the output no longer has such a run.
        """
        check = (lambda: None) if lease is None else lease.check
        changes = [table.drop(run, check) for table in reversed(self._tables.values())]
        if lease is not None:
            forget_publication(self._storage, self._output_uri, run, self.place)
        return any(changes)

    def _files(self, results: "Results", run: str) -> dict[str, list[str]]:
        """Return the run's files by table, of the tables that it has, in the order in which they are added."""
        shard_counts = {each.run: each.shard_count for each in results.records}
        parts = committed_parts(self._storage, self._output_uri, run, shard_count=shard_counts[run])
        found: dict[str, list[str]] = {"deletions": deletion_parts(results, run)}
        for table in results.tables(run):
            found[table] = [part_uri(self._output_uri, table, run, part) for part in parts]
        return {name: found[name] for name in SCHEMAS if name in found}


def _properties(record: "RunRecord") -> dict[str, str]:
    fingerprint = record.fingerprint
    properties = {
        "htc.created": record.created,
        "htc.model": record.model_name or None,
        "htc.weights-sha256": fingerprint.get("weights_sha256"),
        "htc.config-sha256": fingerprint.get("config_sha256"),
        "htc.images": record.image_count,
    }
    return {name: str(value) for name, value in properties.items() if value is not None}
