"""Checks before a run begins or is resumed: occupied output, rows without a record, another spec or model."""

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pipeline.errors import OutputOccupiedError, RunMismatchError
from pipeline.job_spec.job import JobSpec
from pipeline.output.parts import committed_shards
from pipeline.output.run_record import RunRecord
from pipeline.storage.damage import advice
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

SHARD_SIZE = "compute.shard_images"
SELECTING = ("select.retry", "select.where")


def check_not_occupied(storage: Storage, output_uri: str) -> None:
    """Refuse an output folder that holds files, but no run of htc."""
    kind = storage.kind(output_uri)
    if kind == "absent":
        return
    if kind == "file":
        raise OutputOccupiedError(f"The output {output_uri} is a file; name a folder.")
    # A run whose planning was interrupted may have a manifest only.
    for glob in ("*/*.json", "*/manifest/*.parquet"):
        if next(storage.list(join(output_uri, "runs"), glob, missing_ok=True), None):
            return
    others = [listed.uri for listed in islice(storage.list(output_uri), 3)]
    if others:
        names = ", ".join(others)
        raise OutputOccupiedError(
            f"The output {output_uri} holds files that htc did not write ({names}); name an empty folder."
        )


def check_no_orphans(storage: Storage, output_uri: str, name: str) -> None:
    """Refuse a new run whose partition holds rows: parts of a run that lost its record would count as committed."""
    if committed_shards(storage, output_uri, name):
        raise OutputOccupiedError(
            f"The output {output_uri} holds images of a run {name} whose runs/{name}/run.json is gone; name another "
            f"run, or restore that file: {advice(output_uri)}"
        )


def check_matches(record: RunRecord, spec: JobSpec, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to resume a run with another model or spec; the message has each key with both values."""
    differences = find_differences(record, spec, fingerprint)
    if differences:
        raise RunMismatchError(
            "\n".join(
                [
                    f"The run {record.run} in {spec.output.uri} was started with another spec or model:",
                    *differences,
                    "Start a new run with --fresh or --run NAME, or go back to the old values.",
                ]
            )
        )


def find_differences(record: RunRecord, spec: JobSpec, fingerprint: Mapping[str, Any]) -> list[str]:
    """Return how a run differs from this spec and model, a line per key; empty when it does not."""
    # Full runs do not record the mode, nor do runs of releases that had no other.
    mode = {"select.mode": "full"}
    before, now = _settled_shard_size(mode | record.identity, mode | spec.identity(), record)
    if before["select.mode"] != now["select.mode"]:
        # The other keys of the section belong to the mode.
        before, now = ({k: v for k, v in side.items() if k not in SELECTING} for side in (before, now))
    differences = _differing(before, now)
    if not any(line.startswith("- model.") for line in differences):
        # A changed preset or threshold changes the model's hash too; only the cause is reported.
        differences += _differing(_by_line(record.fingerprint), _by_line(fingerprint))
    return differences


def _by_line(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint's values by what a line about them begins with; of an ensemble those of its members."""
    members = fingerprint.get("members") or ()
    if not members:
        return {f"model fingerprint, {key}": value for key, value in fingerprint.items()}
    return {
        f"model fingerprint, ensemble member {number} ({member.get('preset')}), {key}": value
        for number, member in enumerate(members)
        for key, value in member.items()
    }


def _settled_shard_size(
    before: dict[str, Any], now: dict[str, Any], record: RunRecord
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Replace an automatic number of images per shard by the other side's: a run keeps the one it was planned with."""
    if now[SHARD_SIZE] == "auto":
        return before, {**now, SHARD_SIZE: before.get(SHARD_SIZE)}
    if before.get(SHARD_SIZE) == "auto":
        return {**before, SHARD_SIZE: record.manifest.get("shard_images")}, now
    return before, now


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"- {key}: {_shown(then.get(key))} then, {_shown(now.get(key))} now"
        for key in [*then, *(key for key in now if key not in then)]
        if then.get(key) != now.get(key)
    ]


def _shown(value: object) -> str:
    # 12 characters are enough to distinguish two sha256, and fit a line.
    is_digest = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return f"{value}"[:12] + "…" if is_digest else f"{value}"
