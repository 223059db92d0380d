"""Beginning a run, or going on with one: the lease, the record, the manifest, in the order that survives a kill."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, SpecError
from pipeline.job_spec.job import JobSpec
from pipeline.output.commit import committed_shards
from pipeline.output.layout import run_folder
from pipeline.output.run_record import (
    RunRecord,
    age_order,
    installed_versions,
    list_records,
    load_record,
    runs_with_file,
    write_record,
)
from pipeline.planning.background import BackgroundPlanner
from pipeline.planning.incremental import IncrementalPlan, NewRun
from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import Planner, clear_parts, require_input, sign_again
from pipeline.planning.resume_point import ResumePoint, find_resume_point
from pipeline.planning.shard_size import ShardSizing
from pipeline.runs.checks import check_matches, check_no_orphans, check_not_occupied, find_differences
from pipeline.runs.cleanup import remove_leftovers
from pipeline.runs.lease import Lease, RunHeldError, clear_dead_lease
from pipeline.runs.names import check_name_stays_text
from pipeline.runs.run import RunHandle
from pipeline.settings import NAME_PATTERN
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path

Hold = Callable[[str], Lease]
"""Takes the lease on the run of a name."""
Deferring = Callable[[], AbstractContextManager[None]]
"""Makes a context in which a request to stop is only remembered."""


class Opening:
    """What beginning a run and going on with one have in common."""

    def __init__(
        self,
        spec: JobSpec,
        fingerprint: Mapping[str, Any],
        storage: Storage,
        hold: Hold | None,
        patience_s: float | None,
        *,
        deferring: Deferring = nullcontext,
        workers: int | None = None,
    ) -> None:
        self._spec = spec
        self._fingerprint = fingerprint
        self._storage = storage
        self._hold = hold
        self._patience_s = patience_s
        self._deferring = deferring
        self._workers = workers
        self._passed_over = ""
        self._may_have_company = spec.select.mode == "full"

    def find(self, run: str | None, *, fresh: bool) -> RunRecord | None:
        """Find the run to go on with; None when one is to be begun."""
        output_uri = self._spec.output.uri
        if run is not None and not re.fullmatch(NAME_PATTERN, run):
            raise SpecError(f"A run's name is made of letters, digits, dots, dashes and underscores, not {run!r}.")
        check_not_occupied(self._storage, output_uri)
        self._may_have_company = self._may_have_company or fresh
        record = _find(self._storage, output_uri, run, fresh=fresh)
        if record is None:
            if run is not None:
                check_name_stays_text(run)
            return None
        if self._spec.select.mode == "full" and run is None:
            record = self._full_run_below(record)
        if self._spec.select.mode == "full" or run is not None:
            check_matches(record, self._spec, self._fingerprint)
            return record
        if self._is_unfinished(record):
            return record
        self._passed_over = "" if self._is_complete(record) else record.run
        return None

    def _full_run_below(self, newest: RunRecord) -> RunRecord:
        """Return the full run that complete incremental runs of this spec and model have kept up to date.

        It is the newest one itself when that is full; and also when it is of another kind, which is then refused.
        """
        for record in reversed(list_records(self._storage, self._spec.output.uri)):
            is_full = record.identity.get("select.mode", "full") == "full"
            if not is_full or record.run != newest.run:
                differences = find_differences(record, self._spec, self._fingerprint)
                is_ours = all(line.startswith("- select.mode:") for line in differences)
                if not is_ours or not self._is_complete(record):
                    return newest
            if is_full:
                return record
        return newest

    def _is_unfinished(self, record: RunRecord) -> bool:
        """Whether a run is of this very spec and model and has not come to its end."""
        if find_differences(record, self._spec, self._fingerprint):
            return False
        if not self._is_complete(record):
            return True
        # All is committed, and the driver died before it said so.
        return not self._storage.exists(join(run_folder(self._spec.output.uri, record.run), "summary.json"))

    def _is_complete(self, record: RunRecord) -> bool:
        """Whether a run is planned and all of it committed."""
        return _is_complete(record, committed_shards(self._storage, self._spec.output.uri, record.run))

    def begin(self, name: str, moment: datetime) -> RunHandle:
        """Begin a run, if its input holds an image."""
        storage, output_uri = self._storage, self._spec.output.uri
        check_no_orphans(storage, output_uri, name)
        if not self._may_have_company:
            self._refuse_company(name)
        moment = _later_than_all(list_records(storage, output_uri, damaged_runs={}), moment)
        folder = _manifest_folder(output_uri, name)
        planner = self._planner(name, incremental=self._look_back(moment.isoformat(), name))
        with ExitStack() as undo:
            lease = self._take_lease(name, undo)
            other = load_record(storage, output_uri, name) if lease else None
            if other is not None:
                # Another driver has begun it, and ended, since we looked.
                check_matches(other, self._spec, self._fingerprint)
                return self._resume(other, lease, None, undo)
            # A release that wrote run.json last may have left some.
            clear_parts(storage, folder)
            try:
                planning = self._plan(self._new_record(name, moment, planner.manifest), planner, undo)
            except InputError:
                # Nothing has been worked on: a run that cannot be planned need not be in the way of the next try.
                self._forget(name)
                raise
            undo.pop_all()
            begun = RunHandle(storage, output_uri, name, planning, is_new=True, done=set(), lease=lease)
            begun.passed_over = self._passed_over
            return begun

    def _refuse_company(self, name: str) -> None:
        """Refuse a night beside a run that is going on: it would do again what that one has not done yet."""
        output_uri = self._spec.output.uri
        for other in runs_with_file(self._storage, output_uri, "lease.json"):
            record = load_record(self._storage, output_uri, other)
            # A complete run is held by who compacts it, and not in the way.
            if self._hold is None or other == name or (record is not None and self._is_complete(record)):
                continue
            try:
                # To be had when its driver is dead.
                self._hold(other).release()
            except RunHeldError as error:
                raise RunHeldError(
                    f"{str(error).split('; ')[0]}, and a night beside it would do the same images again; wait for it, "
                    "stop it, or begin a night all the same with --fresh."
                ) from error

    def go_on(self, record: RunRecord) -> RunHandle:
        """Go on with a run; one that is complete is only looked at."""
        done = committed_shards(self._storage, self._spec.output.uri, record.run)
        is_complete = _is_complete(record, done)
        if is_complete and self._hold is not None:
            # Of a driver that died when all was committed.
            clear_dead_lease(self._storage, self._spec.output.uri, record.run)
        with ExitStack() as undo:
            lease = None if is_complete else self._take_lease(record.run, undo)
            if lease is not None:
                # The driver before us may have gone further since we looked.
                found = load_record(self._storage, self._spec.output.uri, record.run)
                if found is None:
                    raise InputError(f"The run {record.run} was removed meanwhile; the same command begins another.")
                record = found
            return self._resume(record, lease, done, undo)

    def _resume(self, record: RunRecord, lease: Lease | None, done: set[int] | None, undo: ExitStack) -> RunHandle:
        storage, output_uri = self._storage, self._spec.output.uri
        if lease is not None:
            remove_leftovers(storage, output_uri, record.run)
        manifest = Manifest.from_dict(record.manifest)
        planning = manifest if manifest.is_planned else self._plan_on(record, undo)
        if lease is not None and manifest.is_planned and manifest.signed:
            sign_again(self._spec.input, storage, output_uri)
        run = RunHandle(storage, output_uri, record.run, planning, is_new=False, done=done, lease=lease)
        undo.pop_all()
        return run

    def _plan_on(self, record: RunRecord, undo: ExitStack) -> Manifest | BackgroundPlanner:
        """Go on with a planning that was cut off."""
        folder = _manifest_folder(self._spec.output.uri, record.run)
        planned = find_resume_point(self._storage, folder, recorded_images=int(record.manifest.get("image_count", 0)))
        if planned is not None and planned.manifest.is_planned:
            # Only the last word about it is missing.
            write_record(self._storage, self._spec.output.uri, replace(record, manifest=planned.manifest.to_dict()))
            return planned.manifest
        incremental = self._look_back(*age_order(record))
        return self._plan(record, self._planner(record.run, planned=planned, incremental=incremental), undo)

    def _planner(
        self, name: str, *, planned: ResumePoint | None = None, incremental: IncrementalPlan | None = None
    ) -> Planner:
        spec = self._spec
        sizing = ShardSizing.of(spec.compute, self._workers)
        folder = _manifest_folder(spec.output.uri, name)
        return Planner(
            spec.input,
            self._storage,
            spec.output.uri,
            folder,
            sizing=sizing,
            planned=planned,
            incremental=incremental,
        )

    def _look_back(self, created: str, name: str) -> IncrementalPlan | None:
        if self._spec.select.mode == "full":
            return None
        # Minutes of reading are not spent on a misspelt input.
        spec, output_uri = self._spec, self._spec.output.uri
        require_input(spec.input, self._storage, output_uri)
        run = NewRun(created, name, self._fingerprint, spec.identity())
        return IncrementalPlan(spec.input, spec.select, self._storage, output_uri, run=run)

    def _plan(self, record: RunRecord, planner: Planner, undo: ExitStack) -> BackgroundPlanner:
        def keep(manifest: Manifest) -> None:
            write_record(self._storage, self._spec.output.uri, replace(record, manifest=manifest.to_dict()))

        planner.record = {name: value for name, value in asdict(record).items() if name != "manifest"}
        planning = BackgroundPlanner(planner, keep)
        if self._patience_s is None:
            planning.run()
            return planning
        undo.callback(planning.stop)
        # A run that has its record gets a summary as well, which needs it opened.
        with self._deferring():
            planning.start()
            planning.wait(self._patience_s)
        planning.check()
        return planning

    def _forget(self, name: str) -> None:
        folder = run_folder(self._spec.output.uri, name)
        clear_parts(self._storage, join(folder, "manifest"))
        self._storage.delete(join(folder, "run.json"))
        if is_local(folder):
            with suppress(OSError):
                Path(local_path(folder), "manifest").rmdir()

    def _take_lease(self, name: str, undo: ExitStack) -> Lease | None:
        if self._hold is None:
            return None
        lease = self._hold(name)
        undo.callback(lease.release)
        return lease

    def _new_record(self, name: str, moment: datetime, manifest: Manifest) -> RunRecord:
        return RunRecord(
            run=name,
            created=moment.isoformat(),
            spec=self._spec.to_dict(),
            identity=self._spec.identity(),
            fingerprint=dict(self._fingerprint),
            versions=installed_versions(),
            manifest=manifest.to_dict(),
        )


def _manifest_folder(output_uri: str, name: str) -> str:
    return join(run_folder(output_uri, name), "manifest")


def _find(storage: Storage, output_uri: str, run: str | None, *, fresh: bool) -> RunRecord | None:
    if run is not None:
        record = load_record(storage, output_uri, run)
        if record is not None and fresh:
            raise SpecError(
                f"The run {run} exists in {output_uri}; leave out --fresh to go on with it, or name another."
            )
        return record
    if fresh:
        return None
    records = list_records(storage, output_uri)
    return records[-1] if records else None


def _is_complete(record: RunRecord, done: set[int]) -> bool:
    manifest = Manifest.from_dict(record.manifest)
    return manifest.is_planned and done.issuperset(range(manifest.shard_count))


def _later_than_all(records: Sequence[RunRecord], moment: datetime) -> datetime:
    """Return the moment, or one after the newest run's: a clock that was set back must not make a new run old."""
    newest = max((datetime.fromisoformat(record.created) for record in records), default=moment)
    return max(moment, newest + timedelta(microseconds=1)) if records else moment
