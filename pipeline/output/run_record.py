"""run.json: RunRecord, what a run is and what is planned of it.

The file is written before everything else of a run, and again after each part of the manifest, until the whole input
is planned. A run exists when its run.json does.
"""

import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pipeline.errors import DamagedFileError, SpecError, StorageError
from pipeline.job_spec.job import InputSection
from pipeline.output.json_files import read_json, write_json
from pipeline.output.layout import TOMBSTONE, TableName, record_uri, tables_of, tombstone_uri
from pipeline.output.schema import SCHEMA_VERSION
from pipeline.storage.damage import damaged, missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.weights.naming import model_name

PACKAGES = ("htc-batch", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow", "fsspec", "s3fs")
ENDED = frozenset({"summary.json", "published.json"})
"""Files that are written after run.json only: a run that has one of these and no run.json has lost it."""
READ_THREADS = 16


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    created: UTC, ISO 8601. spec: the resolved job spec. identity: by dotted key, what must not change when the run is
        resumed; see `JobSpec.identity`. fingerprint: preset, weights_sha256, config_sha256, trained.
    versions: of Python and the packages. manifest: `planning.manifest.Manifest.to_dict`, as far as it is planned.
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
    def model_name(self) -> str:
        """The model's name, as in the tables' column `model`; "" where the run does not say."""
        # Records of the first release have no section; what they ran had the preset's name.
        weights = self.spec.get("model", {}).get("weights", "untrained")
        preset = self.fingerprint.get("preset")
        if self.fingerprint.get("is_callers"):
            # The spec's weights are not this model's.
            return str(preset)
        return model_name(preset, weights, self.fingerprint.get("weights_sha256", "")) if preset else ""

    @property
    def tables(self) -> tuple[TableName, ...]:
        """The run's tables of rows, in the order in which their parts are written."""
        return tables_of(self.spec)

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
    """Write run.json, or replace it as planning proceeds; from the first time on the run can be resumed."""
    write_json(storage, record_uri(output_uri, record.run), asdict(record))


def load_record(storage: Storage, output_uri: str, run: str) -> RunRecord | None:
    """Read a run's run.json; None when there is no such run.

    Raises:
        SpecError: the run is being pruned.
        DamagedFileError: the file is damaged.
        StorageError: a later version of this program wrote it, or storage failed.
    """
    if storage.exists(tombstone_uri(output_uri, run)):
        raise SpecError(f"The run {run} is half pruned; `htc prune {output_uri} --yes` finishes that.")
    return read_record(storage, output_uri, run)


def read_record(storage: Storage, output_uri: str, run: str) -> RunRecord | None:
    """Read a run's run.json even when the run is being pruned; None when it does not exist.

    Raises:
        DamagedFileError: the file is damaged.
        StorageError: a later version of this program wrote it, or storage failed.
    """
    uri = record_uri(output_uri, run)
    content = read_json(storage, uri)
    if content is None:
        return None
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StorageError(f"{uri} was written by a later version of htc (schema {version}); update htc-batch.")
    return record_from(uri, content, run)


def record_from(uri: str, content: Mapping[str, Any], run: str) -> RunRecord:
    """Check the content of a run.json, and return the record.

    Args:
        uri: the file's, for the error. content: its JSON object. run: the run that it must be of.

    Raises:
        DamagedFileError: the content is no record of the run.
    """
    try:
        known = {name: content[name] for name in RunRecord.__dataclass_fields__}
    except KeyError as error:
        raise damaged(uri, f"it has no {error}") from None
    _check_record(uri, known, run)
    return RunRecord(**known)


def _check_record(uri: str, content: Mapping[str, Any], run: str) -> None:
    """Check what the readers of a record rely on."""
    if content["run"] != run:
        raise damaged(uri, f"it is of the run {content['run']}")
    for name in ("spec", "identity", "fingerprint", "manifest"):
        if not isinstance(content[name], dict):
            raise damaged(uri, f"its {name} is not a JSON object")
    counts = [content["manifest"].get(name) for name in ("image_count", "shard_count")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise damaged(uri, "its manifest does not say how many images and shards there are")
    if not isinstance(content["created"], str) or not content["created"]:
        raise damaged(uri, "it does not say when the run was created")


def list_records(
    storage: Storage, output_uri: str, *, damaged_runs: dict[str, DamagedFileError] | None = None
) -> list[RunRecord]:
    """Read all runs' records, oldest first; runs that are being pruned are left out.

    Args:
        damaged_runs: filled with the error of each run whose run.json is damaged or missing, by the run's name; None
            raises the first of these errors.

    Raises:
        DamagedFileError: a run.json is damaged or missing, and `damaged_runs` was not given.
        StorageError: a later version of this program wrote one, or storage failed.
    """
    listed = storage.list(join(output_uri, "runs"), "*/*.json", missing_ok=True)
    found = [each.uri.split("/")[-2:] for each in listed]
    pruned = {run for run, name in found if name == TOMBSTONE}
    recorded = [run for run, name in found if name == "run.json" and run not in pruned]
    lost = sorted({run for run, name in found if name in ENDED} - {*pruned, *recorded})

    def read(run: str) -> RunRecord | DamagedFileError | None:
        try:
            record = read_record(storage, output_uri, run)
        except DamagedFileError as error:
            return error
        if record is None and run in lost:
            return missing(record_uri(output_uri, run), "the files beside it are of a run")
        return record

    names = [*recorded, *lost]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        outcomes = dict(zip(names, pool.map(read, names), strict=True))
    for run, outcome in outcomes.items():
        if isinstance(outcome, DamagedFileError):
            if damaged_runs is None:
                raise outcome
            damaged_runs[run] = outcome
    return sorted((record for record in outcomes.values() if isinstance(record, RunRecord)), key=age_order)


def runs_with_file(storage: Storage, output_uri: str, name: str) -> list[str]:
    """Return the runs whose folder holds a file of this name, such as "lease.json"; none when there is no output."""
    listed = storage.list(join(output_uri, "runs"), f"*/{name}", missing_ok=True)
    return [each.uri.split("/")[-2] for each in listed]


def age_order(record: RunRecord) -> tuple[str, str]:
    """Return the key that sorts runs, oldest first."""
    return record.created, record.run


def is_of_input(record: RunRecord, section: InputSection) -> bool:
    """Return whether a run listed this input, with any limit."""
    is_same_uri = str(record.identity.get("input.uri")).rstrip("/") == section.uri.rstrip("/")
    return is_same_uri and record.identity.get("input.glob") == section.glob


def began(record: RunRecord) -> datetime:
    """Return when a run began, UTC.

    Raises:
        StorageError: `created` is no date.
    """
    try:
        moment = datetime.fromisoformat(record.created)
    except (TypeError, ValueError):
        raise StorageError(f"The record of the run {record.run} is damaged: created is {record.created!r}.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results, without importing them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
