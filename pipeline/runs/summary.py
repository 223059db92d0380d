"""RunSummary: how a run ended, for summary.json, the exit code and the last lines of output."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import DamagedFileError
from pipeline.job_spec.job import RetrySection
from pipeline.messages import ImageFailure
from pipeline.output.json_files import read_json
from pipeline.output.layout import run_folder
from pipeline.runs.bottleneck import Bottleneck
from pipeline.runs.error_budget import allowed_errors
from pipeline.runs.outcomes import OUTCOMES, Outcome, exit_code_of
from pipeline.runs.row_counts import RowCounts
from pipeline.storage.damage import damaged, warn
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.text import count_of

_NUMBERS = ("images", "images_done", "instances")


@dataclass(frozen=True)
class RunSummary:
    """The outcome of one session of a run; totals are of the whole run, earlier sessions included.

    run: the run's name.
    status: see `outcomes`.
    exit_code: 0 for complete, 1 for everything else; see `outcomes`.
    reason: one sentence for the user when the status is not "complete", else empty.
    images: input images; `images_done` of them have their row.
    statuses: rows by status.
    errors: rows that are not ok and count against the error budget. repeated_errors: the other rows that are not ok,
        of an incremental run's images that were not ok before.
    error_rate: `errors` by `images`, 0 to 1; `max_error_rate` is the budget, `max_errors` its floor.
    instances: rows in `instances`.
    session_images, seconds, images_per_s: of this session alone, start-up included.
    stage_shares: shares of the stages' busy time, adding up to 1; this session. Stages overlap: how long each was busy
        does not show what the run waited for.
    worker_time_s: the workers' wall time by what their models did or waited for, see `messages.CAUSES`; this session.
    bottleneck: what held the run up by that account: name, share of the time, sentence with the remedy; None when no
        worker ran.
    start_up_s: seconds from the beginning of this session's command until each part of its start was done, see
        `start_up.PARTS`.
    failure_reasons: rows by reason, the most frequent first, capped.
    failure_examples: the first failures met in this session, capped: uri, status, reason.
    retries, workers_started, workers_lost: attempts that failed, workers that loaded the model, that died;
        this session. device: what the workers ran on, "" when none was needed; precision: what the network computed
        in there, and why. fast_path: "on", "off (reason)" (of any worker), "" where there is none. model: its name in
        the tables.
    began, ended: UTC, ISO 8601: when this session opened the run and when it ended; "" where that is not known.
    notifications: by channel of `notify:`, "delivered" or why the report of the end could not be delivered.
    is_trained: False when the weights are the untrained ones. has_bug: whether a shard failed with an unexpected
        exception, in any session. error_log: the folder of the tracebacks of unexpected exceptions, None without any.
    machine: the CPU or GPU that the workers ran on, "" when none was needed.
    worker_use: seconds of all workers in this session: `running_s` while their processes ran, `ready_s` with their
        model, `busy_s` with a shard; `write_s_per_shard` of writing the tables; `images_per_s` of one busy worker in
        equal parts of the session. cost: of the whole run, see `pipeline.runs.cost`: `worker_hours`, `amount` (None
        without a price), `currency`, `price_per_worker_hour`, `max_cost`.
    deadline: UTC, ISO 8601, None without one; is_late: whether the session ended after it. stopped_by: "deadline" or
        "max_cost" when the run stopped by itself there, else "".
    """

    run: str
    status: Outcome
    exit_code: int
    reason: str
    images: int
    images_done: int
    statuses: Mapping[str, int]
    error_rate: float
    max_error_rate: float
    instances: int
    session_images: int
    seconds: float
    images_per_s: float
    errors: int = 0
    repeated_errors: int = 0
    max_errors: int = 0
    stage_shares: Mapping[str, float] = field(default_factory=dict)
    worker_time_s: Mapping[str, float] = field(default_factory=dict)
    bottleneck: Bottleneck | None = None
    start_up_s: Mapping[str, float] = field(default_factory=dict)
    failure_reasons: Mapping[str, int] = field(default_factory=dict)
    failure_examples: tuple[ImageFailure, ...] = ()
    retries: int = 0
    workers_lost: int = 0
    workers_started: int = 0
    device: str = ""
    precision: str = ""
    fast_path: str = ""
    model: str = ""
    is_trained: bool = True
    has_bug: bool = False
    error_log: str | None = None
    machine: str = ""
    worker_use: Mapping[str, object] = field(default_factory=dict)
    cost: Mapping[str, object] = field(default_factory=dict)
    deadline: str | None = None
    is_late: bool = False
    stopped_by: str = ""
    began: str = ""
    ended: str = ""
    notifications: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-able values, for summary.json."""
        values = asdict(self)
        values["failure_examples"] = [
            {"uri": failure.uri, "status": failure.status, "reason": failure.reason}
            for failure in self.failure_examples
        ]
        return values


@dataclass(frozen=True)
class SessionNumbers:
    """What one session did; the fields of `RunSummary` of these names."""

    session_images: int = 0
    seconds: float = 0.0
    images_per_s: float = 0.0
    stage_shares: Mapping[str, float] = field(default_factory=dict)
    worker_time_s: Mapping[str, float] = field(default_factory=dict)
    bottleneck: Bottleneck | None = None
    start_up_s: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0
    workers_lost: int = 0
    workers_started: int = 0
    device: str = ""
    precision: str = ""
    fast_path: str = ""
    error_log: str | None = None
    machine: str = ""
    worker_use: Mapping[str, object] = field(default_factory=dict)
    cost: Mapping[str, object] = field(default_factory=dict)
    deadline: str | None = None
    is_late: bool = False
    stopped_by: str = ""
    began: str = ""
    ended: str = ""


def summarise(
    run: str,
    rows: RowCounts,
    retry: RetrySection,
    *,
    images: int,
    is_planned: bool,
    model: str,
    is_trained: bool,
    has_bug: bool,
    is_interrupted: bool = False,
    stop_reason: str = "",
    limit: tuple[str, str] | None = None,
    session: SessionNumbers | None = None,
) -> RunSummary:
    """Judge a run by its rows; the arguments are those of `judge` and the fields of `RunSummary`."""
    session = session or SessionNumbers()
    status, reason = judge(
        images=images,
        images_done=rows.images,
        errors=rows.new_errors,
        max_error_rate=retry.max_error_rate,
        max_errors=retry.max_errors,
        is_any_ok=rows.is_any_ok,
        has_bug=has_bug,
        is_interrupted=is_interrupted,
        stop_reason=stop_reason,
        limit=limit,
        is_planned=is_planned,
    )
    return RunSummary(
        run=run,
        status=status,
        exit_code=exit_code_of(status),
        reason=reason,
        images=images,
        images_done=rows.images,
        statuses=rows.statuses,
        errors=rows.new_errors,
        repeated_errors=rows.repeats,
        error_rate=rows.new_errors / images if images else 0.0,
        max_error_rate=retry.max_error_rate,
        max_errors=retry.max_errors,
        instances=rows.instances,
        failure_reasons=rows.reasons,
        failure_examples=tuple(rows.examples),
        model=model,
        is_trained=is_trained,
        has_bug=has_bug,
        **vars(session),
    )


def summary_uri(output_uri: str, run: str) -> str:
    """Return the uri of a run's summary.json."""
    return join(run_folder(output_uri, run), "summary.json")


def read_summary(storage: Storage, output_uri: str, run: str) -> dict[str, Any] | None:
    """Read a run's summary.json; None when it does not exist, or is damaged, which is logged.

    Raises:
        StorageError: storage failed.
    """
    try:
        return load_summary(storage, output_uri, run)
    except DamagedFileError as error:
        warn(error)
        return None


def load_summary(storage: Storage, output_uri: str, run: str) -> dict[str, Any] | None:
    """Read a run's summary.json; None when it does not exist.

    Raises:
        DamagedFileError: it is damaged.
        StorageError: storage failed.
    """
    uri = summary_uri(output_uri, run)
    content = read_json(storage, uri)
    if content is None:
        return None
    if content.get("status") not in OUTCOMES:
        raise damaged(uri, "it does not say how the run ended")
    statuses, numbers = content.get("statuses", {}), [content.get(name, 0) for name in _NUMBERS]
    if not isinstance(statuses, dict) or not all(isinstance(each, int) for each in [*statuses.values(), *numbers]):
        raise damaged(uri, "its counts are not numbers")
    return content


def judge(
    *,
    images: int,
    images_done: int,
    errors: int,
    max_error_rate: float,
    has_bug: bool,
    is_interrupted: bool,
    stop_reason: str = "",
    limit: tuple[str, str] | None = None,
    is_planned: bool = True,
    max_errors: int = 0,
    is_any_ok: bool = True,
) -> tuple[Outcome, str]:
    """Decide how a run ended.

    Args:
        images: input images.
        images_done: images that have their row.
        errors: rows that are not ok and count against the error budget.
        max_error_rate: the budget, 0 to 1; a rate equal to it is within.
        has_bug: whether a shard failed with an unexpected exception.
        is_interrupted: whether the user or the system stopped the run.
        stop_reason: why it was stopped early, when it could not end within the budget.
        limit: the deadline or largest cost at which it stopped, as the beginning of a sentence, and the way out.
        is_planned: whether the input was listed to its end; until then the number of images is unknown.
        max_errors: the floor of the budget, see `error_budget.allowed_errors`.
        is_any_ok: whether any row is ok; without one there is no floor.

    Returns:
        The status and one sentence, empty for "complete".
    """
    if stop_reason and images_done < images:
        return "over_error_budget", stop_reason
    if limit is not None and (images_done < images or not is_planned):
        words, way_out = limit
        left = f"with {images - images_done:,} of {images:,} images to go"
        left = left if is_planned else f"with {images_done:,} images done, before the input was listed to its end"
        return "interrupted", f"{words}, {left}; {way_out}."
    if images_done < images or not is_planned:
        return "interrupted" if is_interrupted else "incomplete", _what_is_left(
            images, images_done, is_interrupted=is_interrupted, is_planned=is_planned
        )
    if has_bug:
        return "incomplete", "A shard failed with an exception of this program; its images are marked failed."
    floor = max_errors if is_any_ok else 0
    if errors > (allowed := allowed_errors(images, max_error_rate, floor)):
        # Of few images more may fail than the share of them, see `allowed_errors`.
        is_floor = allowed > allowed_errors(images, max_error_rate, 0)
        share = (
            f"{allowed} of so few (max_errors {max_errors}, and at most half)" if is_floor else f"{max_error_rate:.1%}"
        )
        reason = f"{errors:,} of {count_of(images, 'image')} failed ({errors / images:.1%}); allowed are {share}."
        return "over_error_budget", reason
    return "complete", ""


def _what_is_left(images: int, images_done: int, *, is_interrupted: bool, is_planned: bool) -> str:
    if not is_planned:
        # All planned images may be done, but the input may hold more.
        return (
            f"The input was not listed to its end; {images_done} images are done; run the same command again to resume."
        )
    left = images - images_done
    if is_interrupted:
        return f"Stopped with {left} of {images} images to go; run the same command again to resume."
    return f"{left} of {images} images are not done; run the same command again to resume."
