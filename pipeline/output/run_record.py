"""run.json: what a run is, written once, when its manifest is complete."""

import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pipeline.errors import DamagedFileError, NotFoundError, SpecError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.output.json_files import read_json, write_json
from pipeline.output.layout import TOMBSTONE, run_folder, tombstone_uri
from pipeline.output.schema import SCHEMA_VERSION
from pipeline.storage.damage import damaged, missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

PACKAGES = ("htc-batch", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow", "fsspec", "s3fs")
ENDED = frozenset({"summary.json", "published.json"})
"""Files that a run has only after its run.json: one that lacks that has lost it."""
READ_THREADS = 16


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    created: UTC, ISO 8601. spec: the resolved job spec. identity: by dotted key, what must not change when
    the run is resumed. fingerprint: preset, weights_sha256, config_sha256, trained. versions: of Python and
    the packages.
    manifest: what `plan.Manifest` knows of the frozen input.
    """

    run: str
    created: str
    spec: dict[str, Any]
    identity: dict[str, Any]
    fingerprint: dict[str, Any]
    versions: dict[str, str]
    manifest: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @property
    def image_count(self) -> int:
        """Images in the manifest."""
        return int(self.manifest["image_count"])

    @property
    def shard_count(self) -> int:
        """Shards in the manifest."""
        return int(self.manifest["shard_count"])

    @property
    def is_planned(self) -> bool:
        """Whether the input is listed to its end; until then the counts grow."""
        return bool(self.manifest.get("is_planned", True))


def write_record(storage: Storage, output_uri: str, record: RunRecord) -> None:
    """Write run.json; from here on the run can be resumed."""
    write_json(storage, join(run_folder(output_uri, record.run), "run.json"), asdict(record))


def load_record(storage: Storage, output_uri: str, run: str) -> RunRecord | None:
    """Read a run's run.json; None when planning never got that far.

    Raises:
        SpecError: the run is being pruned.
        DamagedFileError: it is damaged.
        StorageError: it is of a later version of this program.
    """
    if storage.exists(tombstone_uri(output_uri, run)):
        raise SpecError(f"The run {run} is half pruned; `htc prune {output_uri} --yes` finishes that.")
    return read_record(storage, output_uri, run)


def read_record(storage: Storage, output_uri: str, run: str) -> RunRecord | None:
    """Read a run's record as it is written, whether the run is being pruned or not; None when it is not there.

    Raises:
        DamagedFileError: it is damaged.
        StorageError: it is of a later version of this program, or storage failed.
    """
    uri = join(run_folder(output_uri, run), "run.json")
    content = read_json(storage, uri)
    if content is None:
        return None
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StorageError(f"{uri} was written by a later version of htc (schema {version}); update htc-batch.")
    return record_from(uri, content, run)


def record_from(uri: str, content: Mapping[str, Any], run: str) -> RunRecord:
    """Check a record that was read, and return it.

    Raises:
        DamagedFileError: the file at `uri` holds no record of the run.
    """
    try:
        known = {name: content[name] for name in RunRecord.__dataclass_fields__}
    except KeyError as error:
        raise damaged(uri, f"it has no {error}") from None
    _check_record(uri, known, run)
    return RunRecord(**known)


def _check_record(uri: str, content: Mapping[str, Any], run: str) -> None:
    """Make sure of what everything else relies on."""
    if content["run"] != run:
        raise damaged(uri, f"it is of the run {content['run']}")
    for name in ("spec", "identity", "fingerprint", "manifest"):
        if not isinstance(content[name], dict):
            raise damaged(uri, f"its {name} is no JSON object")
    counts = [content["manifest"].get(name) for name in ("image_count", "shard_count")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise damaged(uri, "its manifest does not say how many images and shards there are")
    if not isinstance(content["created"], str) or not content["created"]:
        raise damaged(uri, "it does not say when the run was created")


def list_records(
    storage: Storage, output_uri: str, *, damaged_runs: dict[str, DamagedFileError] | None = None
) -> list[RunRecord]:
    """Read all runs' records, oldest first.

    Left out are runs without run.json, which were never planned, and those that are half pruned.

    Args:
        damaged_runs: takes the error of each run whose run.json is damaged, by its name; the others are returned.

    Raises:
        DamagedFileError: a run.json is damaged or missing, and `damaged_runs` was not given.
        StorageError: one is of a later version, or storage failed.
    """
    try:
        found = [each.uri.split("/")[-2:] for each in storage.list(join(output_uri, "runs"), glob="*/*.json")]
    except NotFoundError:
        return []
    pruned = {run for run, name in found if name == TOMBSTONE}
    whole = [run for run, name in found if name == "run.json" and run not in pruned]
    lost = sorted({run for run, name in found if name in ENDED} - {*pruned, *whole})

    def read(run: str) -> RunRecord | DamagedFileError | None:
        try:
            record = read_record(storage, output_uri, run)
        except DamagedFileError as error:
            return error
        if record is None and run in lost:
            return missing(join(run_folder(output_uri, run), "run.json"), "the files beside it are of a run")
        return record

    names = [*whole, *lost]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        outcomes = dict(zip(names, pool.map(read, names), strict=True))
    for run, outcome in outcomes.items():
        if isinstance(outcome, DamagedFileError):
            if damaged_runs is None:
                raise outcome
            damaged_runs[run] = outcome
    return sorted((record for record in outcomes.values() if isinstance(record, RunRecord)), key=age_order)


def held_runs(storage: Storage, output_uri: str) -> list[str]:
    """Return the names of the runs with a lease, be its holder alive or dead."""
    try:
        return [each.uri.split("/")[-2] for each in storage.list(join(output_uri, "runs"), glob="*/lease.json")]
    except NotFoundError:
        return []


def age_order(record: RunRecord) -> tuple[str, str]:
    """Return what runs are sorted by, the oldest first."""
    return record.created, record.run


def is_of_input(record: RunRecord, spec: JobSpec) -> bool:
    """Tell whether a run listed the spec's input, up to a limit or not."""
    is_same_uri = str(record.identity.get("input.uri")).rstrip("/") == spec.input.uri.rstrip("/")
    return is_same_uri and record.identity.get("input.glob") == spec.input.glob


def began(record: RunRecord) -> datetime:
    """Return when a run began, UTC.

    Raises:
        StorageError: its record is damaged.
    """
    try:
        moment = datetime.fromisoformat(record.created)
    except (TypeError, ValueError):
        raise StorageError(f"The record of the run {record.run} is damaged: created is {record.created!r}.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the results, without importing any."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
