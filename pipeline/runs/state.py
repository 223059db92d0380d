"""How a run stands: from its tables, its record, its lease and its last summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.output.results import Results
    from pipeline.output.run_record import RunRecord
from pipeline.runs.outcomes import OUTCOMES, Outcome, State


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    is_whole: whether its input is listed to the end and every image has its row.
    reason: one sentence for a person, empty for a plain "complete" and for "running".
    summary: the summary.json that speaks of the run as it is now; None when its rows have to be counted.
    """

    state: State
    is_whole: bool
    reason: str = ""
    summary: Mapping[str, Any] | None = field(default=None, repr=False)


def find_run_state(
    results: "Results",
    record: "RunRecord",
    *,
    is_held: bool,
    has_progress: bool,
    has_lease: bool,
    summary: Mapping[str, Any] | None,
) -> RunState:
    """Find out how a run stands.

    Args:
        is_held: whether its lease is alive; housekeepers hold those of whole runs, and write no progress.
        has_progress: whether there is a progress.json: while a driver works, and after one that ended without a word.
        has_lease: whether there is a lease, be its holder alive or dead.
        summary: what the last session that came to its end wrote, which may not be the last one; None without any.

    Raises:
        StorageError: the tables have to be counted, and cannot be read.
    """
    is_whole = has_all_rows(results, record)
    if is_held and (has_progress or not is_whole):
        return RunState("running", is_whole)
    if is_whole:
        return _state_of_whole(results, record, summary)
    outcome = _outcome_in(summary)
    if summary is None or outcome is None or has_progress or has_lease:
        # What an earlier session wrote is not what there is now.
        return RunState("incomplete", is_whole, "Its driver ended without a word: the same command resumes.")
    if outcome == "complete":
        reason = "Its summary says that it is complete, but rows are gone since; the same command does them again."
        return RunState("incomplete", is_whole, reason)
    return RunState(outcome, is_whole, str(summary.get("reason") or ""), summary)


def has_all_rows(results: "Results", record: "RunRecord") -> bool:
    """Tell whether every image has its row, and all are planned."""
    is_planned = bool(record.manifest.get("is_planned", True))
    return is_planned and results.committed_shards(record.run) >= record.shard_count


def _state_of_whole(results: "Results", record: "RunRecord", summary: Mapping[str, Any] | None) -> RunState:
    outcome = _outcome_in(summary)
    is_final = outcome is not None and outcome != "interrupted"
    if summary is not None and is_final and summary.get("images_done", record.image_count) == record.image_count:
        return RunState(outcome or "incomplete", True, str(summary.get("reason") or ""), summary)
    judged, reason = _judge_rows(results, record, has_bug=bool((summary or {}).get("has_bug")))
    missing = "Its driver ended without a word: all images have their row; the same command writes the summary."
    return RunState(judged, True, f"{reason} {missing}".strip())


def _outcome_in(summary: Mapping[str, Any] | None) -> Outcome | None:
    return next((outcome for outcome in OUTCOMES if summary and summary.get("status") == outcome), None)


def _judge_rows(results: "Results", record: "RunRecord", *, has_bug: bool) -> tuple[Outcome, str]:
    """Judge a whole run by its rows and its spec, as its driver would."""
    import numpy as np
    import pyarrow.compute as pc

    from pipeline.job_spec.job import RetrySection
    from pipeline.planning.manifest import Manifest
    from pipeline.planning.repeated_failures import RepeatedFailures
    from pipeline.runs.summary import judge

    table = results.images(record.run, ["image_id", "status"])
    bad = table.filter(pc.not_equal(table.column("status"), "ok")).column("image_id").to_numpy()
    repeats = 0
    if len(bad):
        numbers = RepeatedFailures(results.storage, results.output_uri, record.run).image_ids(
            Manifest.from_dict(record.manifest)
        )
        repeats = int(np.isin(bad, numbers).sum())
    # Of the keys that a release of another time wrote, those that are known here.
    wanted: Mapping[str, Any] = record.spec.get("retry") or {}
    retry = RetrySection(**{key: value for key, value in wanted.items() if key in ("max_error_rate", "max_errors")})
    return judge(
        images=record.image_count,
        images_done=len(table),
        errors=len(bad) - repeats,
        max_error_rate=retry.max_error_rate,
        max_errors=retry.max_errors,
        is_any_ok=len(bad) < len(table),
        has_bug=has_bug,
        is_interrupted=False,
    )
