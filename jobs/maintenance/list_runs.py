"""`htc runs`: state, size, publications and use of every run of an output."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobs.results.formats import json_value
from jobs.terminal.console import say, size_of, write_line, write_table
from pipeline.errors import DamagedFileError
from pipeline.maintenance.needed_runs import needed_runs
from pipeline.maintenance.survey import RunInfo, half_pruned, survey_runs
from pipeline.output.results import open_results
from pipeline.runs.last_failure import read_last_failure
from pipeline.runs.outcomes import in_words
from pipeline.storage.damage import warn
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

COLUMNS = (
    *("run", "created", "state", "model", "mode"),
    *("images", "ok", "failed", "instances", "files", "size"),
    *("current", "published"),
)
NUMBERS = frozenset({"images", "ok", "failed", "instances", "files", "size"})


def report_runs(output_uri: str, *, is_json: bool = False, storage_section: "StorageSection | None" = None) -> int:
    """List the runs, oldest first, as a table or as one JSON array.

    Returns:
        The exit code: 1 when files that it needs are damaged, else 0.

    Raises:
        InputError: the folder holds no run.
        StorageError: storage failed.
    """
    results = open_results(output_uri, Storage(storage_section))
    runs = survey_runs(results, report=say)
    needed: set[str] | None = None
    try:
        needed = needed_runs(results)
    except DamagedFileError as error:
        warn(error)
    code = 1 if needed is None or results.damaged_runs else 0
    unfinished = half_pruned(results.storage, results.output_uri)
    if is_json:
        described = [_described(each, is_needed=_is_in(each.run, needed)) for each in runs]
        # Iceberg's snapshot ids are beyond 2^53.
        write_line(json.dumps(json_value(described)))
        return code
    rows = [_cells(each, is_needed=_is_in(each.run, needed)) for each in runs]
    write_table(COLUMNS, rows, alignments=["right" if name in NUMBERS else "left" for name in COLUMNS])
    for each in runs:
        if each.reason:
            write_line(f"{each.run}: {each.reason}")
    if sentence := _describe_failure(results.storage, results.output_uri, runs[-1] if runs else None):
        write_line(sentence)
    for run in unfinished:
        write_line(f"The run {run} is half pruned; `htc prune {output_uri} --yes` finishes that.")
    return code


def _describe_failure(storage: Storage, output_uri: str, newest: RunInfo | None) -> str:
    """Return a sentence about the last attempt that could not begin or broke off; "" when a run has succeeded since."""
    failure = read_last_failure(storage, output_uri)
    if failure is None or (newest is not None and newest.state == "running"):
        return ""
    ended, run = datetime.fromisoformat(failure["ended"]), str(failure.get("run", ""))
    if newest is not None and (ended < newest.began or (run == newest.run and newest.state == "complete")):
        return ""
    what = (
        f"The run {run} broke off" if newest is not None and run == newest.run else "The last attempt could not begin"
    )
    exit_code, reason = failure["exit_code"], failure.get("reason", "")
    return f"{what} ({ended:%Y-%m-%d %H:%M} UTC, exit code {exit_code}): {reason}"


def _is_in(run: str, needed: set[str] | None) -> bool | None:
    return None if needed is None else run in needed


def mode_of(info: RunInfo) -> str:
    """Return whether a run was a full or an incremental one."""
    select = info.record.spec.get("select") or {}
    return str(select.get("mode", "full"))


def state_of(info: RunInfo) -> str:
    """Return the state of a run as text, with the holder of its lease."""
    if info.state == "running":
        return f"running ({info.holder})"
    if info.holder:
        return f"{in_words(info.state)}, held ({info.holder})"
    return in_words(info.state)


def _cells(info: RunInfo, *, is_needed: bool | None) -> list[str]:
    published = [str(each.snapshots.get("images", "not finished")) for each in info.publications]
    return [
        info.run,
        f"{info.began:%Y-%m-%d %H:%M}",
        state_of(info),
        info.record.model_name,
        mode_of(info),
        *(f"{number:,}" for number in (info.images, info.ok, info.failed, info.instances)),
        f"{info.files:,}",
        size_of(info.bytes),
        "unknown" if is_needed is None else "needed" * is_needed,
        ", ".join(published),
    ]


def _described(info: RunInfo, *, is_needed: bool | None) -> dict[str, Any]:
    return {
        "run": info.run,
        "created": info.record.created,
        "state": info.state,
        "is_whole": info.has_all_rows,
        "reason": info.reason,
        "holder": info.holder or None,
        "model": info.record.model_name or None,
        "weights_sha256": info.record.fingerprint.get("weights_sha256"),
        "mode": mode_of(info),
        "images": info.images,
        "images_done": info.images_done,
        "ok": info.ok,
        "failed": info.failed,
        "instances": info.instances,
        "files": info.files,
        "bytes": info.bytes,
        "is_needed_by_current": is_needed,
        "published": [asdict(each) for each in info.publications],
    }
