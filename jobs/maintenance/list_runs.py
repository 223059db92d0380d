"""`htc runs`: every run of an output, how far it is, what it takes, and what still needs it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.results.formats import json_value
from jobs.terminal.console import say, size_of, write_line, write_table
from pipeline.errors import DamagedFileError
from pipeline.maintenance.needed_runs import needed_runs
from pipeline.maintenance.survey import RunInfo, half_pruned, survey_runs
from pipeline.output.results import open_results
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
        The exit code: 1 when files that it needed are damaged, else 0.

    Raises:
        InputError: the folder holds no run.
        StorageError: storage failed.
    """
    results = open_results(output_uri, Storage(storage_section))
    standings = survey_runs(results, report=say)
    needed: set[str] | None = None
    try:
        needed = needed_runs(results)
    except DamagedFileError as error:
        warn(error)
    code = 1 if needed is None or results.damaged_runs else 0
    unfinished = half_pruned(results.storage, results.output_uri)
    if is_json:
        described = [_described(each, is_needed=_is_in(each.run, needed)) for each in standings]
        # Iceberg's snapshot ids are beyond 2^53.
        write_line(json.dumps(json_value(described)))
        return code
    rows = [_cells(each, is_needed=_is_in(each.run, needed)) for each in standings]
    write_table(COLUMNS, rows, alignments=["right" if name in NUMBERS else "left" for name in COLUMNS])
    for each in standings:
        if each.reason:
            write_line(f"{each.run}: {each.reason}")
    for run in unfinished:
        write_line(f"The run {run} is half pruned; `htc prune {output_uri} --yes` finishes that.")
    return code


def _is_in(run: str, needed: set[str] | None) -> bool | None:
    return None if needed is None else run in needed


def mode_of(standing: RunInfo) -> str:
    """Say whether a run was over the whole input or over what had changed."""
    select = standing.record.spec.get("select") or {}
    return str(select.get("mode", "full"))


def state_of(standing: RunInfo) -> str:
    """Say how far a run is, and who works on it."""
    if standing.state == "running":
        return f"running ({standing.holder})"
    if standing.holder:
        return f"{in_words(standing.state)}, held ({standing.holder})"
    return in_words(standing.state)


def _cells(standing: RunInfo, *, is_needed: bool | None) -> list[str]:
    published = [str(each.snapshots.get("images", "not finished")) for each in standing.publications]
    return [
        standing.run,
        f"{standing.began:%Y-%m-%d %H:%M}",
        state_of(standing),
        str(standing.record.fingerprint.get("preset", "")),
        mode_of(standing),
        *(f"{number:,}" for number in (standing.images, standing.ok, standing.failed, standing.instances)),
        f"{standing.files:,}",
        size_of(standing.bytes),
        "unknown" if is_needed is None else "needed" * is_needed,
        ", ".join(published),
    ]


def _described(standing: RunInfo, *, is_needed: bool | None) -> dict[str, Any]:
    return {
        "run": standing.run,
        "created": standing.record.created,
        "state": standing.state,
        "is_whole": standing.has_all_rows,
        "reason": standing.reason,
        "holder": standing.holder or None,
        "model": standing.record.fingerprint.get("preset"),
        "weights_sha256": standing.record.fingerprint.get("weights_sha256"),
        "mode": mode_of(standing),
        "images": standing.images,
        "images_done": standing.images_done,
        "ok": standing.ok,
        "failed": standing.failed,
        "instances": standing.instances,
        "files": standing.files,
        "bytes": standing.bytes,
        "is_needed_by_current": is_needed,
        "published": [asdict(each) for each in standing.publications],
    }
