"""A run's folder: begin it, find it again, and know what is left to do.

The output folder is the only memory. A run exists when its run.json is there, which is written before everything
else; its shards are those of the manifest's parts; a shard is done when its images part is there. Killed at any
instant, the same command goes on, also with the planning.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.active_run import Run, RunState
from pipeline.config import NAME_PATTERN, JobSpec
from pipeline.errors import InputError, SpecError
from pipeline.lease import Lease, clear_dead_lease
from pipeline.leftovers import remove_dead_beginnings, remove_leftovers
from pipeline.manifest import Manifest
from pipeline.plan import Planner, clear_parts
from pipeline.planned import find_planned
from pipeline.planning import Planning
from pipeline.records import RunRecord, installed_versions, list_records, load_record, run_folder, write_record
from pipeline.refusals import refuse_mismatch, refuse_occupied, refuse_orphans
from pipeline.storage import Storage, join
from pipeline.tables import committed_shards
from pipeline.uris import is_local, local_path

__all__ = ["Hold", "Run", "RunRecord", "RunState", "open_run"]

Hold = Callable[[str], Lease]
"""Takes the lease on the run of a name."""


def open_run(
    spec: JobSpec,
    model_fingerprint: Mapping[str, Any],
    storage: Storage,
    *,
    run: str | None = None,
    fresh: bool = False,
    now: datetime | None = None,
    hold: Hold | None = None,
    patience_s: float | None = None,
) -> Run:
    """Begin a run, or find the one to go on with.

    Args:
        model_fingerprint: preset, weights_sha256, config_sha256, trained; see `records.RunRecord`.
        run: go on with this run, or begin it; None takes the newest one, if there is any.
        fresh: begin a new run even so.
        now: the time that names a new run, UTC; the clock's when None.
        hold: takes the run's lease, before anything is written; not called for a complete run.
        patience_s: how long to wait for the end of the listing; afterwards planning goes on in a thread until
            `Run.close`. None plans all of it before returning.

    Raises:
        OutputOccupiedError: the output folder holds something that is not ours.
        RunMismatchError: the run was started with another model or spec.
        SpecError: `fresh` with the name of a run that exists, or a name that cannot be a folder's.
        InputError: a new run, and the input holds no image, or cannot be listed.
        RunHeldError: another driver works on the run.
        StorageError: storage failed.
    """
    output_uri = spec.output.uri
    if run is not None and not re.fullmatch(NAME_PATTERN, run):
        raise SpecError(f"A run's name is made of letters, digits, dots, dashes and underscores, not {run!r}.")
    refuse_occupied(storage, output_uri)
    opening = _Opening(spec, model_fingerprint, storage, hold, patience_s)
    record = _find(storage, output_uri, run, fresh=fresh)
    if record is None:
        if hold is not None:
            remove_dead_beginnings(storage, output_uri)
        moment = now or datetime.now(UTC)
        return opening.begin(run or _free_name(storage, spec, moment), moment)
    refuse_mismatch(record, spec, model_fingerprint)
    return opening.go_on(record)


class _Opening:
    """What beginning a run and going on with one have in common."""

    def __init__(
        self,
        spec: JobSpec,
        fingerprint: Mapping[str, Any],
        storage: Storage,
        hold: Hold | None,
        patience_s: float | None,
    ) -> None:
        self._spec = spec
        self._fingerprint = fingerprint
        self._storage = storage
        self._hold = hold
        self._patience_s = patience_s

    def begin(self, name: str, moment: datetime) -> Run:
        """Begin a run, if its input holds an image."""
        storage, output_uri = self._storage, self._spec.output.uri
        refuse_orphans(storage, output_uri, name)
        folder = _manifest_folder(output_uri, name)
        planner = Planner(self._spec, storage, folder)
        with ExitStack() as undo:
            lease = self._take_lease(name, undo)
            other = load_record(storage, output_uri, name) if lease else None
            if other is not None:
                # Another driver has begun it, and ended, since we looked.
                refuse_mismatch(other, self._spec, self._fingerprint)
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
            return Run(storage, output_uri, name, planning, is_new=True, done=set(), lease=lease)

    def go_on(self, record: RunRecord) -> Run:
        """Go on with a run; one that is complete is only looked at."""
        done = committed_shards(self._storage, self._spec.output.uri, record.run)
        manifest = Manifest.from_dict(record.manifest)
        is_complete = manifest.is_planned and done.issuperset(range(manifest.shard_count))
        if is_complete and self._hold is not None:
            # Of a driver that died when all was committed.
            clear_dead_lease(self._storage, self._spec.output.uri, record.run)
        with ExitStack() as undo:
            lease = None if is_complete else self._take_lease(record.run, undo)
            if lease is not None:
                # The driver before us may have gone further since we looked.
                record = load_record(self._storage, self._spec.output.uri, record.run) or record
            return self._resume(record, lease, done, undo)

    def _resume(self, record: RunRecord, lease: Lease | None, done: set[int] | None, undo: ExitStack) -> Run:
        storage, output_uri = self._storage, self._spec.output.uri
        if lease is not None:
            remove_leftovers(storage, output_uri, record.run)
        manifest = Manifest.from_dict(record.manifest)
        planning = manifest if manifest.is_planned else self._plan_on(record, undo)
        run = Run(storage, output_uri, record.run, planning, is_new=False, done=done, lease=lease)
        undo.pop_all()
        return run

    def _plan_on(self, record: RunRecord, undo: ExitStack) -> Manifest | Planning:
        """Go on with a planning that was cut off."""
        folder = _manifest_folder(self._spec.output.uri, record.run)
        planned = find_planned(self._storage, folder)
        if planned is not None and planned.manifest.is_planned:
            # Only the last word about it is missing.
            write_record(self._storage, self._spec.output.uri, replace(record, manifest=planned.manifest.to_dict()))
            return planned.manifest
        return self._plan(record, Planner(self._spec, self._storage, folder, planned=planned), undo)

    def _plan(self, record: RunRecord, planner: Planner, undo: ExitStack) -> Planning:
        def keep(manifest: Manifest) -> None:
            write_record(self._storage, self._spec.output.uri, replace(record, manifest=manifest.to_dict()))

        planning = Planning(planner, keep)
        if self._patience_s is None:
            planning.run()
            return planning
        undo.callback(planning.stop)
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


def _free_name(storage: Storage, spec: JobSpec, moment: datetime) -> str:
    base = f"{spec.name or 'run'}-{moment.astimezone(UTC):%Y%m%d-%H%M%S}"
    name, number = base, 1
    while storage.exists(run_folder(spec.output.uri, name)):
        number += 1
        name = f"{base}-{number}"
    return name
