"""A run's folder: begin it, find it again, and know what is left to do.

The output folder is the only memory. A run exists when its run.json is there, which is written before everything
else; its shards are those of the manifest's parts; a shard is done when its images part is there. Killed at any
instant, the same command goes on, also with the planning.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from pipeline.job_spec.job import JobSpec
from pipeline.output.layout import run_folder
from pipeline.runs.begin import Deferring, Hold, Opening
from pipeline.runs.cleanup import remove_dead_beginnings
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage


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
    deferring: Deferring = nullcontext,
    workers: int | None = None,
) -> RunHandle:
    """Begin a run, or find the one to go on with.

    Args:
        model_fingerprint: preset, weights_sha256, config_sha256, trained; see `records.RunRecord`.
        run: go on with this run, or begin it; None takes the newest one, if there is any. An incremental spec takes
            that only when it is one of its own and not at its end, and begins a new run otherwise.
        fresh: begin a new run even so.
        now: the time that names a new run, UTC; the clock's when None.
        hold: takes the run's lease, before anything is written; not called for a complete run.
        patience_s: how long to wait for the end of the listing; afterwards planning goes on in a thread until
            `RunHandle.close`. None plans all of it before returning.
        deferring: makes a context for that wait, in which KeyboardInterrupt is not raised.
        workers: how many the run will have, for shards of automatic size; None for as many as this machine takes.

    Raises:
        OutputOccupiedError: the output folder holds something that is not ours.
        RunMismatchError: the run was started with another model or spec.
        SpecError: `fresh` with the name of a run that exists, a name that cannot be a folder's, or a new one that
            readers would take for a number, a date or another type.
        InputError: a new run, and the input holds no image, or cannot be listed.
        RunHeldError: another driver works on the run.
        StorageError: storage failed.
    """
    opening = Opening(spec, model_fingerprint, storage, hold, patience_s, deferring=deferring, workers=workers)
    found = opening.find(run, fresh=fresh)
    if found is not None:
        return opening.go_on(found)
    if hold is not None:
        remove_dead_beginnings(storage, spec.output.uri)
    moment = now or datetime.now(UTC)
    return opening.begin(run or _free_name(storage, spec, moment), moment)


def find_run(
    spec: JobSpec,
    model_fingerprint: Mapping[str, Any],
    storage: Storage,
    *,
    run: str | None = None,
    fresh: bool = False,
) -> RunHandle | None:
    """Find the run that `open_run` would go on with; None when it would begin one. Arguments and errors are its."""
    opening = Opening(spec, model_fingerprint, storage, None, None)
    found = opening.find(run, fresh=fresh)
    return None if found is None else opening.go_on(found)


def _free_name(storage: Storage, spec: JobSpec, moment: datetime) -> str:
    base = f"{spec.name or 'run'}-{moment.astimezone(UTC):%Y%m%d-%H%M%S}"
    name, number = base, 1
    while storage.exists(run_folder(spec.output.uri, name)):
        number += 1
        name = f"{base}-{number}"
    return name
