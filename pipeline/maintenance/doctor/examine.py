"""Examines an output for damaged, missing, foreign and left-over files, and changes nothing."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import AccessDeniedError, DamagedFileError, InputError, NotFoundError
from pipeline.maintenance.doctor.findings import Finding, Kind, Repair
from pipeline.maintenance.doctor.rebuild import rebuild_record
from pipeline.maintenance.doctor.run_tables import RunTables, reason_of, said_by
from pipeline.maintenance.publications import NOTE, read_publications
from pipeline.output.deletions import DELETIONS_SCHEMA, has_deletions
from pipeline.output.layout import COMMIT_ORDER, TABLES, TOMBSTONE, TableName, run_folder
from pipeline.output.part_files import open_part
from pipeline.output.parts import Part, parse_part
from pipeline.output.run_record import ENDED, RunRecord, read_record
from pipeline.planning.manifest import Manifest, manifest_uris
from pipeline.runs.cleanup import TEMP_NAME
from pipeline.runs.cost import load_cost
from pipeline.runs.lease import LeaseHolder, lease_uri
from pipeline.runs.shard_counts import COUNTS_NAME, list_counts, read_counts
from pipeline.runs.state import has_all_rows
from pipeline.runs.summary import load_summary
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, is_local, join, local_path

ATTEMPTS = 3
_KNOWN = re.compile(
    r"(?:run|lease|progress|summary|cost|published|pruned)\.json|manifest/part-\d{5,}\.parquet|errors/error-\d+\.txt"
    rf"|counts/{COUNTS_NAME.pattern}"
)
_OWN_FOLDERS = frozenset({"manifest", "errors", "counts"})
_DELETIONS_PART = re.compile(r"part-\d{5,}\.parquet")


@dataclass(frozen=True)
class RunReport:
    """Findings of a run.

    shards_left: planned shards that have no images part. is_held: whether a driver or another command works on the
    run; then the files that may still change were not examined.
    """

    run: str
    findings: tuple[Finding, ...]
    shards_left: int = 0
    is_held: bool = False


@dataclass(frozen=True)
class Report:
    """Findings of an output.

    others: about files of no run. files: how many files there are.
    """

    output_uri: str
    runs: tuple[RunReport, ...]
    others: tuple[Finding, ...]
    files: int

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings."""
        return (*(finding for run in self.runs for finding in run.findings), *self.others)


@dataclass
class _Files:
    """A listing: the parts by run and table, and the files of each run's folder by their names in it."""

    tables: dict[str, dict[str, list[ObjectInfo]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    folders: dict[str, dict[str, ObjectInfo]] = field(default_factory=lambda: defaultdict(dict))
    foreign: list[str] = field(default_factory=list)
    count: int = 0


def examine_output(storage: Storage, output_uri: str, *, now: datetime | None = None) -> Report:
    """Examine every file that htc wrote into an output, its content included.

    Args:
        now: UTC, to judge whether lease holders are alive; the clock's when None.

    Raises:
        InputError: there is no output.
        StorageError: storage failed.
    """
    output_uri = local_path(output_uri).rstrip("/") if is_local(output_uri) else output_uri.rstrip("/")
    files = _list_files(storage, output_uri, None)
    if not files.folders and not files.tables:
        raise InputError(f"{output_uri} holds no run of htc; start one with `htc run INPUT {output_uri}`.")
    reports = [examine_run(storage, output_uri, run, now=now) for run in sorted({*files.folders, *files.tables})]
    others = [_foreign(uri) for uri in files.foreign]
    return Report(output_uri, tuple(reports), tuple(others), files.count)


def examine_run(
    storage: Storage, output_uri: str, run: str, *, now: datetime | None = None, is_ours: bool = False
) -> RunReport:
    """Examine one run; begin again when its files are compacted or pruned meanwhile.

    Args:
        is_ours: whether the caller holds the lease.

    Raises:
        StorageError: storage failed.
    """
    moment = now or datetime.now(UTC)
    try:
        for _ in range(ATTEMPTS - 1):
            with suppress(NotFoundError):
                return _Examination(storage, output_uri, run, moment, is_ours=is_ours).report()
        return _Examination(storage, output_uri, run, moment, is_ours=is_ours).report()
    except AccessDeniedError as error:
        # The file may be valid: nothing of the run is moved.
        problem = str(error).partition(";")[0].rstrip(".")
        way_out = "give htc that permission, and run `htc doctor` again"
        return RunReport(run, (Finding(run_folder(output_uri, run), run, "unreadable", problem, "none", way_out),))


class _Examination:
    """One examination of one run."""

    def __init__(self, storage: Storage, output_uri: str, run: str, now: datetime, *, is_ours: bool) -> None:
        self._storage = storage
        self._output_uri = output_uri
        self._run = run
        self._now = now
        self._is_ours = is_ours
        self._folder = run_folder(output_uri, run)
        files = _list_files(storage, output_uri, run)
        self._files = files.folders.get(run, {})
        self._tables: Mapping[str, list[ObjectInfo]] = files.tables.get(run, {})
        self._findings: list[Finding] = [_foreign(uri) for uri in files.foreign]
        self._folders: set[str] = set()

    def report(self) -> RunReport:
        if TOMBSTONE in self._files:
            way_out = f"`htc prune {self._output_uri} --yes` finishes that"
            self._find(TOMBSTONE, "unfinished", "the run is half pruned", way_out=way_out)
            return RunReport(self._run, tuple(self._findings))
        self._find_folders()
        is_held = not self._is_ours and self._check_lease()
        record = self._record()
        if record is None:
            return RunReport(self._run, tuple(self._protected(self._findings)), is_held=is_held)
        self._check_folder(record, is_held=is_held)
        tables = RunTables(self._storage, self._output_uri, record, self._parts(), is_held=is_held)
        tables.check()
        self._findings += tables.findings
        self._check_deletions(record)
        if not is_held:
            self._check_counts(tables)
            self._check_summary(record, tables)
            self._find_unfinished_files()
        # Without its manifest a run cannot be resumed.
        left = record.shard_count - len(tables.committed) if tables.is_planned else 0
        return RunReport(self._run, tuple(self._protected(self._findings)), left, is_held)

    def _find(self, name: str, kind: Kind, problem: str, repair: Repair = "none", *, way_out: str = "") -> None:
        uri = name if name.startswith(self._output_uri) else join(self._folder, name)
        self._findings.append(Finding(uri, self._run, kind, problem, repair, way_out))

    def _protected(self, findings: list[Finding]) -> Iterator[Finding]:
        """Protect files that a catalog names from repair; and leave out findings that a misplaced folder explains."""
        findings = [finding for finding in findings if not self._is_explained(finding)]
        try:
            places = read_publications(self._storage, self._output_uri, self._run) if NOTE in self._files else ()
        except DamagedFileError as error:
            way_out = "check whether a catalog names the run's files, and remove it when none does"
            yield Finding(join(self._folder, NOTE), self._run, "damaged", reason_of(error), "none", way_out)
            places = ()
        for finding in findings:
            if places and finding.repair in ("redo", "forget_deletions", "write_empty"):
                way_out = (
                    f"it is published in {places[0].catalog}: withdraw it first with `htc publish {self._output_uri} "
                    f"--iceberg {places[0].catalog} --withdraw {self._run}`"
                )
                yield replace(finding, repair="none", way_out=way_out)
            else:
                yield finding

    def _is_explained(self, finding: Finding) -> bool:
        """Return whether a misplaced folder is, or holds, the file of another finding."""
        if finding.file in self._folders:
            return finding.kind != "foreign"
        return any(finding.file.startswith(f"{folder}/") for folder in self._folders)

    def _check_lease(self) -> bool:
        """Return whether another process works on the run."""
        if "lease.json" not in self._files:
            return False
        holder = None
        try:
            holder = LeaseHolder.parse(self._storage.read(lease_uri(self._output_uri, self._run)))
        except NotFoundError:
            # Released meanwhile.
            return False
        except DamagedFileError:
            # A link that leads nowhere.
            pass
        if holder is None:
            self._find("lease.json", "damaged", "it does not say who works on the run", "remove")
            # A driver may work on the run: see `lease.judge_holders`.
            return True
        # A driver whose clock is ahead of this one may be alive; nothing is watched here to find out.
        is_ahead = not holder.is_dead_here and holder.heartbeat_age_s(self._now) < 0
        return is_ahead or holder.is_alive(self._now)

    def _record(self) -> RunRecord | None:
        try:
            record = read_record(self._storage, self._output_uri, self._run)
            problem = "" if record is None else _manifest_problem(record)
        except DamagedFileError as error:
            record, problem = None, reason_of(error)
        if problem:
            self._find_lost_record("damaged", problem)
            return None
        is_run = not ENDED.isdisjoint(self._files) or any(name.startswith("manifest/") for name in self._files)
        if record is None and (is_run or any(self._tables.values())):
            self._find_lost_record("missing", "there are rows, a manifest or a summary of such a run")
        return record

    def _find_lost_record(self, kind: Kind, problem: str) -> None:
        if rebuild_record(self._storage, self._output_uri, self._run) is not None:
            self._find("run.json", kind, problem, "restore_record")
            return
        way_out = (
            f"restore it from a copy, or move runs/{self._run} and the folders run={self._run} out of the output; "
            "until then the run's rows are not read"
        )
        self._find("run.json", kind, problem, way_out=way_out)

    def _parts(self) -> dict[TableName, list[Part]]:
        found: dict[TableName, list[Part]] = {table: [] for table in COMMIT_ORDER}
        for table, parts in found.items():
            for listed in self._tables.get(table, []):
                part = parse_part(base_name(listed.uri))
                if part is not None:
                    parts.append(part)
        return found

    def _check_folder(self, record: RunRecord, *, is_held: bool) -> None:
        manifest = Manifest.from_dict(record.manifest)
        if manifest.is_planned:
            wanted = set(manifest_uris(join(self._folder, "manifest"), manifest))
            for name, listed in self._files.items():
                if name.startswith("manifest/") and listed.uri not in wanted:
                    self._find(name, "foreign", "the manifest has no such part", "set_aside")
        if "progress.json" in self._files and not is_held:
            self._find("progress.json", "leftover", "its driver has ended", "remove")
        if "cost.json" in self._files:
            try:
                load_cost(self._storage, self._output_uri, self._run)
            except DamagedFileError as error:
                self._find("cost.json", "damaged", reason_of(error), "set_aside")

    def _check_deletions(self, record: RunRecord) -> None:
        if not has_deletions(record):
            return
        noted, found, is_readable = int(record.manifest["selection"]["deleted"]), 0, True
        for listed in self._tables.get("deletions", []):
            try:
                with open_part(self._storage, listed.uri, DELETIONS_SCHEMA) as part:
                    found += sum(batch.num_rows for batch in part.iter_batches())
            except DamagedFileError as error:
                is_readable = False
                self._find(listed.uri, "damaged", reason_of(error), "forget_deletions")
        if is_readable and found != noted:
            folder = join(self._output_uri, "deletions", f"run={self._run}")
            problem = f"it holds {found} records of deleted images, and run.json says {noted}"
            self._find(folder, "mismatch" if found else "missing", problem, "forget_deletions")

    def _check_counts(self, tables: RunTables) -> None:
        """Compare the recorded counts with the rows; those of shards whose rows cannot be read are not judged."""
        known: set[int] = set()
        for file in list_counts(self._storage, self._output_uri, self._run):
            uri, counts = file.uri, None
            try:
                counts = read_counts(self._storage, uri)
            except DamagedFileError as error:
                self._find(uri, "damaged", reason_of(error), "recount")
            if counts is None and file.is_void:
                # Older files are not read any more.
                return
            if counts is None:
                continue
            for shard, images, found in said_by(counts):
                actual = tables.counted.get(shard)
                if shard not in known and images is not None and actual is not None and actual != found:
                    problem = f"of shard {shard} it counts other rows than there are"
                    self._find(uri, "mismatch", problem, "recount")
                    break
            known.update(counts.column("shard").to_pylist())

    def _check_summary(self, record: RunRecord, tables: RunTables) -> None:
        is_complete = has_all_rows(record, tables.committed)
        try:
            summary = load_summary(self._storage, self._output_uri, self._run)
        except DamagedFileError as error:
            self._find("summary.json", "damaged", reason_of(error), "derive_summary")
            return
        if summary is None:
            if is_complete:
                self._find("summary.json", "missing", "all images have their rows", "derive_summary")
            return
        if not is_complete and summary["status"] == "complete":
            missing = sorted(set(range(record.shard_count)) - tables.committed)
            shards = (
                f"{len(missing)} of its {record.shard_count} shards, such as {missing[0]}," if missing else "its end"
            )
            self._find("summary.json", "mismatch", f"it says complete, and {shards} has no images part", "set_aside")
        elif (
            is_complete
            and not tables.findings
            and sum((summary.get("statuses") or {}).values()) not in (0, tables.rows)
        ):
            self._find(
                "summary.json", "mismatch", f"it counts other rows than the {tables.rows} there are", "derive_summary"
            )

    def _find_folders(self) -> None:
        """Find folders where only files may be. In a bucket, they do not prevent a file of the same name."""
        if not is_local(self._output_uri):
            return
        places = [Path(local_path(join(self._output_uri, table, f"run={self._run}"))) for table in TABLES]
        folder = Path(local_path(self._folder))
        for place in (*places, folder, folder / "manifest", folder / "counts"):
            if not place.is_dir():
                continue
            for entry in sorted(place.iterdir()):
                if entry.is_dir() and not (place == folder and entry.name in _OWN_FOLDERS):
                    self._folders.add(str(entry))
                    self._find(str(entry), "foreign", "a folder in a place where htc writes only files", "set_aside")

    def _find_unfinished_files(self) -> None:
        if not is_local(self._output_uri):
            # Only their owner can list unfinished uploads, and the next run aborts them.
            return
        folders = [join(self._output_uri, table, f"run={self._run}") for table in TABLES] + [self._folder]
        for folder in folders:
            for parent, _, names in os.walk(local_path(folder)):
                for name in names:
                    if TEMP_NAME.fullmatch(name):
                        self._find(str(Path(parent, name)), "leftover", "a process died while writing it", "remove")


def _manifest_problem(record: RunRecord) -> str:
    try:
        manifest = Manifest.from_dict(record.manifest)
        datetime.fromisoformat(record.created)
    except (TypeError, ValueError) as error:
        return f"it lacks a required value ({error})"
    numbers = (manifest.image_count, manifest.shard_count, manifest.shard_images, manifest.part_shards)
    if not all(isinstance(number, int) for number in numbers) or min(manifest.shard_images, manifest.part_shards) < 1:
        return "its manifest does not say how the images are divided into shards"
    return ""


def _foreign(uri: str) -> Finding:
    return Finding(uri, "", "foreign", "htc does not write files of this name here", "set_aside")


def _list_files(storage: Storage, output_uri: str, run: str | None) -> _Files:
    """List the files of a run, or of all runs."""
    files = _Files()
    for table in TABLES:
        folder = join(output_uri, table) if run is None else join(output_uri, table, f"run={run}")
        for listed in storage.list(folder, missing_ok=True):
            files.count += 1
            path = listed.uri.removeprefix(join(output_uri, table)).lstrip("/").split("/")
            is_ours = len(path) == 2 and path[0].startswith("run=") and _is_part(table, path[1])
            if is_ours:
                files.tables[path[0].removeprefix("run=")][table].append(listed)
            elif run is not None or not path[0].startswith("run="):
                files.foreign.append(listed.uri)
            else:
                files.tables[path[0].removeprefix("run=")]
    folder = join(output_uri, "runs") if run is None else run_folder(output_uri, run)
    for listed in storage.list(folder, missing_ok=True):
        files.count += 1
        name, _, path_in = listed.uri.removeprefix(join(output_uri, "runs")).lstrip("/").partition("/")
        if _KNOWN.fullmatch(path_in):
            files.folders[name][path_in] = listed
        elif run is not None or not path_in:
            files.foreign.append(listed.uri)
        else:
            files.folders[name]
    return files


def _is_part(table: str, name: str) -> bool:
    return _DELETIONS_PART.fullmatch(name) is not None if table == "deletions" else parse_part(name) is not None
