"""The state of a run, from its tables, its record, its lease and its last summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pipeline.output.results import Results
    from pipeline.output.run_record import RunRecord
    from pipeline.output.shard_set import ShardSet
from pipeline.runs.outcomes import OUTCOMES, Outcome, State

_DRIVER_DIED = "Its driver ended without a summary"


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    has_all_rows: whether its input is listed to the end and every image has its row.
    reason: one sentence for the user, empty for a plain "complete" and for "running".
    summary: the summary.json if it describes the run as it is now; None when its rows have to be counted.
    """

    state: State
    has_all_rows: bool
    reason: str = ""
    summary: Mapping[str, Any] | None = field(default=None, repr=False)


class _Planned(Protocol):
    """A run's record, manifest or handle."""

    @property
    def is_planned(self) -> bool: ...

    @property
    def shard_count(self) -> int: ...


def has_all_rows(run: _Planned, committed: "ShardSet") -> bool:
    """Return whether every image of a run has its row: its input is listed to the end, and all shards are committed.

    Args:
        run: its record, manifest or handle.
        committed: the committed shards.
    """
    return run.is_planned and committed.covers(run.shard_count)


def has_all_rows_in(results: "Results", record: "RunRecord") -> bool:
    """Return whether every image of a run has its row, see `has_all_rows`, by the parts that `results` has listed."""
    from pipeline.output.parts import shards_of

    return has_all_rows(record, shards_of(results.committed(record.run)))


def find_run_state(
    results: "Results",
    record: "RunRecord",
    *,
    is_held: bool,
    has_progress: bool,
    has_lease: bool,
    summary: Mapping[str, Any] | None,
) -> RunState:
    """Find out the state of a run.

    | rows    | lease alive | last summary                       | state                                |
    |---------|-------------|------------------------------------|--------------------------------------|
    | missing | yes         | any                                | running                              |
    | all     | yes         | any; and there is a progress.json  | running                              |
    | all     |             | of all rows, not "interrupted"     | its status                           |
    | all     |             | any other                          | judged by the rows                   |
    | missing | no          | none, or of an earlier session     | incomplete                           |
    | missing | no          | "complete"                         | incomplete: rows are missing         |
    | missing | no          | any other                          | its status                           |

    Args:
        is_held: whether its lease is alive. Maintenance commands hold the leases of runs with all rows, and write no
            progress.
        has_progress: whether there is a progress.json: while a driver works, and after one that was killed.
        has_lease: whether there is a lease, its holder alive or dead.
        summary: the last one that a session wrote, which may not have been the last session; None without any.

    Raises:
        StorageError: the tables have to be counted, and cannot be read.
    """
    is_all = has_all_rows_in(results, record)
    if is_held and (has_progress or not is_all):
        return RunState("running", is_all)
    if is_all:
        return _state_with_all_rows(results, record, summary)
    outcome = _outcome_in(summary)
    if summary is None or outcome is None or has_progress or has_lease:
        # A summary would be of an earlier session.
        return RunState("incomplete", is_all, f"{_DRIVER_DIED}; run the same command again to resume.")
    if outcome == "complete":
        reason = "Its summary says complete, but rows are missing; run the same command again to write them."
        return RunState("incomplete", is_all, reason)
    return RunState(outcome, is_all, str(summary.get("reason") or ""), summary)


def _state_with_all_rows(results: "Results", record: "RunRecord", summary: Mapping[str, Any] | None) -> RunState:
    outcome = _outcome_in(summary)
    is_final = outcome is not None and outcome != "interrupted"
    if summary is not None and is_final and summary.get("images_done", record.image_count) == record.image_count:
        return RunState(outcome or "incomplete", True, str(summary.get("reason") or ""), summary)
    judged, reason = _judge_rows(results, record, has_bug=bool((summary or {}).get("has_bug")))
    missing = f"{_DRIVER_DIED}, and all images have their rows; run the same command again to write the summary."
    return RunState(judged, True, f"{reason} {missing}".strip())


def _outcome_in(summary: Mapping[str, Any] | None) -> Outcome | None:
    return next((outcome for outcome in OUTCOMES if summary and summary.get("status") == outcome), None)


def _judge_rows(results: "Results", record: "RunRecord", *, has_bug: bool) -> tuple[Outcome, str]:
    """Judge a run with all rows by these and its spec, as its driver would."""
    from pipeline.job_spec.job import RetrySection
    from pipeline.output.parts import shards_of
    from pipeline.planning.manifest import Manifest
    from pipeline.planning.repeated_failures import RepeatedFailures
    from pipeline.runs.counting import count_run
    from pipeline.runs.summary import judge

    repeats = RepeatedFailures(results.storage, results.output_uri, record.run)
    rows = count_run(
        results.storage,
        results.output_uri,
        record.run,
        shard_count=record.shard_count,
        find_repeats=lambda: repeats.image_ids(Manifest.from_dict(record.manifest)),
        committed=shards_of(results.committed(record.run)),
    )
    # A record of another release may hold keys that this one does not know.
    wanted: Mapping[str, Any] = record.spec.get("retry") or {}
    retry = RetrySection(**{key: value for key, value in wanted.items() if key in ("max_error_rate", "max_errors")})
    return judge(
        images=record.image_count,
        images_done=rows.images,
        errors=rows.new_errors,
        max_error_rate=retry.max_error_rate,
        max_errors=retry.max_errors,
        is_any_ok=rows.is_any_ok,
        has_bug=has_bug,
        is_interrupted=False,
    )
