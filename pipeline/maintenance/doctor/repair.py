"""Repairs an output: derives files again where possible, and sets aside those that cannot be read; deletes no row.

Files that are set aside are moved to OUTPUT/quarantine/<moment>/, under the name that they had in the output. A run is
repaired under its lease, and examined again once the lease is held, so that no file of a live driver is moved.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import DamagedFileError, NotFoundError
from pipeline.maintenance.doctor.examine import examine_run
from pipeline.maintenance.doctor.findings import Finding
from pipeline.maintenance.doctor.rebuild import derive_summary, rebuild_record
from pipeline.output.commit import encode_table
from pipeline.output.deletions import DELETIONS_SCHEMA, deletions_folder
from pipeline.output.json_files import write_json
from pipeline.output.layout import COMMIT_ORDER
from pipeline.output.part_files import open_part
from pipeline.output.parts import table_of
from pipeline.output.run_record import read_record, write_record
from pipeline.output.schema import TABLE_SCHEMAS
from pipeline.planning.manifest import Manifest
from pipeline.planning.repeated_failures import RepeatedFailures
from pipeline.runs.cleanup import remove_leftovers
from pipeline.runs.counting import record_unrecorded
from pipeline.runs.lease import Lease
from pipeline.runs.shard_counts import list_counts
from pipeline.runs.summary import summary_uri
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path

QUARANTINE = "quarantine"
# First the record, then the tables that it describes, then what is derived from these, then once more as a check.
ROUNDS = 4
ORDER = (
    "restore_record",
    "forget_deletions",
    "redo",
    "write_empty",
    "set_aside",
    "recount",
    "remove",
    "derive_summary",
)


class RunRepair:
    """Repairs one run, whose lease the caller holds; or files of no run."""

    def __init__(self, storage: Storage, output_uri: str, moment: datetime, check: Callable[[], None]) -> None:
        """`moment`: UTC, names the folder of files that are set aside. `check`: raises when the lease is lost."""
        self._storage = storage
        self._output_uri = output_uri
        self._quarantine = join(output_uri, QUARANTINE, f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}")
        self._check = check
        self.done: list[str] = []

    def set_aside(self, uri: str) -> None:
        """Move a file below quarantine/; no error when it does not exist.

        Raises:
            StorageError: storage failed; the file is where it was, or in both places.
        """
        self._check()
        target = join(self._quarantine, uri.removeprefix(self._output_uri).lstrip("/"))
        with suppress(NotFoundError):
            if is_local(uri):
                self._storage.call(lambda: _rename(local_path(uri), local_path(target)), uri, "write")
            else:
                self._storage.write(target, self._storage.read(uri))
                self._storage.delete(uri)
            self.done.append(f"{uri} was moved to {target}.")

    def repair(self, finding: Finding) -> None:
        """Repair a finding.

        Raises:
            RunError: the lease is lost.
            StorageError: storage failed; the next repair finishes.
        """
        match finding.repair:
            case "set_aside":
                self.set_aside(finding.file)
            case "redo":
                self._redo(finding)
            case "restore_record":
                self._restore_record(finding)
            case "derive_summary":
                self._derive_summary(finding)
            case "forget_deletions":
                self._forget_deletions(finding)
            case "write_empty":
                self.set_aside(finding.file)
                table = table_of(finding.file)
                self._storage.write(finding.file, encode_table(TABLE_SCHEMAS[table].empty_table(), finding.run))
                self.done.append(f"{finding.file} was written: its images have no rows in {table}.")
            case "recount":
                self._recount(finding)
            case "remove":
                self._check()
                self._storage.delete(finding.file)
                self.done.append(f"{finding.file} was removed.")
            case "none":
                pass

    def _redo(self, finding: Finding) -> None:
        name = finding.file.rpartition("/")[2]
        # The images part first: from then on the shard is not committed, and readers ignore its other rows.
        for table in reversed(COMMIT_ORDER):
            self.set_aside(join(self._output_uri, table, f"run={finding.run}", name))
        # It may say that the run is complete.
        self.set_aside(summary_uri(self._output_uri, finding.run))

    def _restore_record(self, finding: Finding) -> None:
        record = rebuild_record(self._storage, self._output_uri, finding.run)
        if record is None:
            return
        self.set_aside(finding.file)
        self._check()
        write_record(self._storage, self._output_uri, record)
        self.done.append(f"{finding.file} was restored from the manifest.")

    def _derive_summary(self, finding: Finding) -> None:
        record = read_record(self._storage, self._output_uri, finding.run)
        if record is None:
            return
        self.set_aside(finding.file)
        try:
            summary = derive_summary(self._storage, self._output_uri, record)
        except DamagedFileError:
            # Damaged parts are set aside in the same repair; the next session writes the summary.
            return
        self._check()
        write_json(self._storage, finding.file, summary, is_redacted=True)
        self.done.append(f"{finding.file} was derived from the tables.")

    def _recount(self, finding: Finding) -> None:
        record = read_record(self._storage, self._output_uri, finding.run)
        if record is None:
            return
        files = list_counts(self._storage, self._output_uri, finding.run)
        for file in [each for each in files if each.uri == finding.file and each.is_void]:
            # It may void any shard of the older files.
            for older in reversed(files[files.index(file) + 1 :]):
                self.set_aside(older.uri)
        self.set_aside(finding.file)
        repeats = RepeatedFailures(self._storage, self._output_uri, finding.run)
        manifest = Manifest.from_dict(record.manifest)
        try:
            record_unrecorded(
                self._storage,
                self._output_uri,
                finding.run,
                shard_count=manifest.shard_count,
                find_repeats=lambda: repeats.image_ids(manifest),
                check_lease=self._check,
            )
        except DamagedFileError:
            # Damaged parts are set aside in the same repair; the next session counts the rows.
            return
        self.done.append(f"The rows of {finding.file} were counted again.")

    def _forget_deletions(self, finding: Finding) -> None:
        record = read_record(self._storage, self._output_uri, finding.run)
        if record is None:
            return
        if finding.file.endswith(".parquet"):
            self.set_aside(finding.file)
        count = 0
        with suppress(NotFoundError):
            for listed in self._storage.list(deletions_folder(self._output_uri, finding.run)):
                with suppress(DamagedFileError), open_part(self._storage, listed.uri, DELETIONS_SCHEMA) as part:
                    count += part.metadata.num_rows
        selection = {**record.manifest.get("selection", {}), "deleted": count}
        self._check()
        manifest = {**record.manifest, "selection": selection}
        write_record(self._storage, self._output_uri, replace(record, manifest=manifest))
        self.done.append(f"The run {finding.run} counts {count} deleted images now.")


def repair_run(
    storage: Storage, output_uri: str, run: str, lease: Lease, moment: datetime
) -> tuple[list[str], list[Finding]]:
    """Repair a run.

    Args:
        lease: on the run.
        moment: UTC.

    Returns:
        What was done, a sentence each, and the findings that are left for the user.

    Raises:
        RunError: the lease is lost.
        StorageError: storage failed; the next repair finishes.
    """
    repair = RunRepair(storage, output_uri, moment, lease.check)
    remove_leftovers(storage, output_uri, run)
    # Each restored file lets the next round find more.
    for _ in range(ROUNDS):
        findings = examine_run(storage, output_uri, run, now=moment, is_ours=True).findings
        todo = [finding for finding in findings if finding.repair != "none"]
        if not todo:
            break
        for finding in sorted(todo, key=lambda each: ORDER.index(each.repair)):
            repair.repair(finding)
    left = examine_run(storage, output_uri, run, now=moment, is_ours=True).findings
    return repair.done, list(left)


def _rename(path: str, target: str) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(path).rename(target)
