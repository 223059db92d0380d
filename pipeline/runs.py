"""A run's folder: begin it, find it again, and know what is left to do.

The output folder is the only memory. A run is planned when its run.json is there, because that file is
written after the manifest; a shard is done when its images part is there. Killed at any instant, the same
command goes on.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from pipeline.config import NAME_PATTERN, JobSpec
from pipeline.errors import NotFoundError, OutputOccupiedError, RunMismatchError, SpecError
from pipeline.plan import Manifest, ManifestReader, Shard, plan_run
from pipeline.records import (
    RunRecord,
    installed_versions,
    list_records,
    load_record,
    read_json,
    run_folder,
    write_json,
    write_record,
)
from pipeline.storage import Storage, join
from pipeline.tables import committed_shards

__all__ = ["Run", "RunRecord", "RunState", "open_run"]

RunState = Literal["new", "resumed", "complete"]


class Run:
    """One run, ready to be worked on.

    Attributes:
        name: the run's name and its partition in the tables.
        output_uri: the folder of the tables.
        state: "new", "resumed", or "complete" when every shard was committed before.
        record: what run.json says.
        manifest: what is known of the frozen input.
    """

    def __init__(self, storage: Storage, output_uri: str, record: RunRecord, *, is_new: bool) -> None:
        self.name = record.run
        self.output_uri = output_uri
        self.record = record
        self.manifest = Manifest.from_dict(record.manifest)
        self._storage = storage
        self._folder = run_folder(output_uri, record.run)
        self._reader = ManifestReader(storage, join(self._folder, "manifest"), self.manifest)
        self.state: RunState = "new" if is_new else ("resumed" if self.todo() else "complete")
        self._told_shards = 0

    @property
    def image_count(self) -> int:
        """Images in the manifest."""
        return self.manifest.image_count

    @property
    def shard_count(self) -> int:
        """Shards in the manifest."""
        return self.manifest.shard_count

    def todo(self) -> list[int]:
        """Return the shards that are not committed now, ascending; a listing each time."""
        committed = committed_shards(self._storage, self.output_uri, self.name)
        return [index for index in range(self.shard_count) if index not in committed]

    @property
    def is_planned(self) -> bool:
        """Whether all shards are known; until then the counts grow."""
        return True

    def new_shards(self) -> list[int]:
        """Return the shards planned since the last call that are not committed, ascending.

        Raises:
            InputError: the input cannot be listed.
            StorageError: the manifest cannot be written.
        """
        first, self._told_shards = self._told_shards, self.shard_count
        return [index for index in self.todo() if index >= first] if first < self.shard_count else []

    def read_shard(self, index: int) -> Shard:
        """Read one shard's images from the manifest."""
        return self._reader.read_shard(index)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json; an earlier session's is replaced."""
        write_json(self._storage, join(self._folder, "summary.json"), summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Read summary.json; None when no session came to its end."""
        return read_json(self._storage, join(self._folder, "summary.json"))


def open_run(
    spec: JobSpec,
    model_fingerprint: Mapping[str, Any],
    storage: Storage,
    *,
    run: str | None = None,
    fresh: bool = False,
    now: datetime | None = None,
) -> Run:
    """Begin a run, or find the one to go on with.

    Args:
        model_fingerprint: preset, weights_sha256, config_sha256, trained; see `records.RunRecord`.
        run: go on with this run, or begin it; None takes the newest one, if there is any.
        fresh: begin a new run even so.
        now: the time that names a new run, UTC; the clock's when None.

    Raises:
        OutputOccupiedError: the output folder holds something that is not ours.
        RunMismatchError: the run was started with another model or spec.
        SpecError: `fresh` with the name of a run that exists, or a name that cannot be a folder's.
        InputError: a new run, and the input holds no image.
        StorageError: storage failed.
    """
    output_uri = spec.output.uri
    if run is not None and not re.fullmatch(NAME_PATTERN, run):
        raise SpecError(f"A run's name is made of letters, digits, dots, dashes and underscores, not {run!r}.")
    _refuse_occupied(storage, output_uri)
    record = _find(storage, output_uri, run, fresh=fresh)
    if record is not None:
        _refuse_mismatch(record, spec, model_fingerprint)
        return Run(storage, output_uri, record, is_new=False)
    moment = now or datetime.now(UTC)
    name = run or _free_name(storage, spec, moment)
    _refuse_orphans(storage, output_uri, name)
    # The manifest first, run.json last: a run without run.json was cut off while planning and is planned
    # anew.
    manifest = plan_run(spec, storage, join(run_folder(output_uri, name), "manifest"))
    record = RunRecord(
        run=name,
        created=moment.isoformat(),
        spec=spec.to_dict(),
        identity=spec.identity(),
        fingerprint=dict(model_fingerprint),
        versions=installed_versions(),
        manifest=manifest.to_dict(),
    )
    write_record(storage, output_uri, record)
    return Run(storage, output_uri, record, is_new=True)


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


def _refuse_occupied(storage: Storage, output_uri: str) -> None:
    """Refuse an output folder that holds files, but none of our runs."""
    kind = storage.kind(output_uri)
    if kind == "absent":
        return
    if kind == "file":
        raise OutputOccupiedError(f"The output {output_uri} is a file; name a folder.")
    try:
        # A run whose planning was cut off has a manifest only, and that much is ours already.
        if next(storage.list(join(output_uri, "runs"), glob="*/*.json"), None):
            return
        if next(storage.list(join(output_uri, "runs"), glob="*/manifest/*.parquet"), None):
            return
    except NotFoundError:
        # No folder of runs: whatever else is there is not ours.
        pass
    others = [listed.uri for listed in islice(storage.list(output_uri), 3)]
    if others:
        names = ", ".join(others)
        raise OutputOccupiedError(
            f"The output {output_uri} holds files that htc did not write ({names}); name an empty folder."
        )


def _refuse_orphans(storage: Storage, output_uri: str, name: str) -> None:
    """Refuse a new run whose partition is taken: parts of a run that lost its record would count as done."""
    if committed_shards(storage, output_uri, name):
        raise OutputOccupiedError(
            f"The output {output_uri} holds images of a run {name} whose runs/{name}/run.json is gone; "
            "name another run, or remove its two partitions."
        )


def _refuse_mismatch(record: RunRecord, spec: JobSpec, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to go on with another model or spec, and name each key with both values."""
    differences = _differing(record.identity, spec.identity())
    if not any(line.startswith("- model.") for line in differences):
        # A changed preset or threshold changes the model's hash too; the cause is worth a line, its effect is
        # not.
        then = {f"model fingerprint, {key}": value for key, value in record.fingerprint.items()}
        differences += _differing(then, {f"model fingerprint, {key}": value for key, value in fingerprint.items()})
    if differences:
        raise RunMismatchError(
            "\n".join(
                [
                    f"The run {record.run} in {spec.output.uri} was started with something else:",
                    *differences,
                    "Start a new run with --fresh or --run NAME, or go back to the old values.",
                ]
            )
        )


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"- {key}: {_shown(then.get(key))} then, {_shown(now.get(key))} now"
        for key in [*then, *(key for key in now if key not in then)]
        if then.get(key) != now.get(key)
    ]


def _shown(value: object) -> str:
    # 12 characters tell two sha256 apart and still fit a line.
    is_digest = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return f"{value}"[:12] + "…" if is_digest else f"{value}"
