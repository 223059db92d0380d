"""Derives files of a run's folder again: run.json from the manifest's parts, summary.json from the tables."""

from dataclasses import replace
from typing import Any

from pipeline.errors import DamagedFileError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.output.layout import run_folder
from pipeline.output.run_record import RunRecord, record_from
from pipeline.planning.manifest import Manifest, manifest_in, read_manifest_part, record_in
from pipeline.planning.repeated_failures import RepeatedFailures
from pipeline.runs.counting import count_run
from pipeline.runs.summary import load_summary, read_summary, summarise
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join


def rebuild_record(storage: Storage, output_uri: str, run: str) -> RunRecord | None:
    """Rebuild run.json from the copies in the manifest's parts; None when there are none.

    When it is unknown whether planning was finished, the record says that it was not: the next session finds out.

    Raises:
        StorageError: storage failed.
    """
    folder = run_folder(output_uri, run)
    parts = [each.uri for each in storage.list(join(folder, "manifest"), "part-*.parquet", missing_ok=True)]
    best: RunRecord | None = None
    for uri in parts:
        try:
            table = read_manifest_part(storage, uri)
            content, manifest = record_in(table), manifest_in(table)
            if content is None or manifest is None:
                continue
            record = record_from(uri, {**content, "manifest": manifest.to_dict()}, run)
        except DamagedFileError:
            continue
        if best is None or record.image_count > best.image_count:
            best = record
    return None if best is None else _completed(storage, output_uri, best)


def _completed(storage: Storage, output_uri: str, record: RunRecord) -> RunRecord:
    """Record that planning was finished where a summary says that the run is complete."""
    if record.manifest.get("is_planned", True):
        return record
    try:
        summary = load_summary(storage, output_uri, record.run)
    except DamagedFileError:
        return record
    if summary is None or summary["status"] != "complete" or summary.get("images") != record.image_count:
        return record
    return replace(record, manifest={**record.manifest, "is_planned": True})


def derive_summary(storage: Storage, output_uri: str, record: RunRecord) -> dict[str, object]:
    """Derive summary.json from the tables, as a session that found nothing to do would write it.

    Raises:
        DamagedFileError: a part of the tables is damaged or missing.
        StorageError: run.json is of another version, or storage failed.
    """
    spec = _spec_of(output_uri, record)
    manifest = Manifest.from_dict(record.manifest)
    repeats = RepeatedFailures(storage, output_uri, record.run)
    rows = count_run(
        storage,
        output_uri,
        record.run,
        shard_count=manifest.shard_count,
        find_repeats=lambda: repeats.image_ids(manifest),
    )
    return summarise(
        record.run,
        rows,
        spec.retry,
        images=manifest.image_count,
        is_planned=manifest.is_planned,
        model=record.model_name,
        is_trained=bool(record.fingerprint.get("trained", True)),
        has_bug=bool((read_summary(storage, output_uri, record.run) or {}).get("has_bug")),
    ).to_dict()


def _spec_of(output_uri: str, record: RunRecord) -> JobSpec:
    # The output may have been moved since.
    values: dict[str, Any] = {**record.spec, "output": {"uri": output_uri}}
    try:
        return JobSpec.model_validate(values)
    except ValueError as error:
        raise StorageError(
            f"The spec in run.json of {record.run} is of another version of htc, so that its summary cannot be "
            f"derived ({' '.join(str(error).split())[:120]}); the same `htc run` command writes it."
        ) from error
