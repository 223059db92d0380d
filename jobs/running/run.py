"""`htc run`: run the job, then report its outcome and the next commands."""

import shlex
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from jobs.notifications.announcer import RunAnnouncer
from jobs.terminal.console import say, write_json, write_line, write_table
from pipeline.errors import HtcError
from pipeline.job_spec.deadline import local_text
from pipeline.job_spec.job import JobSpec
from pipeline.logs import is_json as is_json_logged
from pipeline.runs.bottleneck import shares_in_words, shares_of
from pipeline.runs.error_budget import allowed_errors
from pipeline.runs.outcomes import in_words
from pipeline.runs.start_up import PARTS, Part, StartUp
from pipeline.runs.summary import RunSummary
from pipeline.signals import StopRequest, interruptible
from pipeline.text import count_of, format_duration

START_PARTS: dict[Part, str] = {
    "imports": "the program was loaded",
    "weights": "the model was identified, its weights fetched and hashed",
    "listing": "the first images were listed",
    "ray": "Ray was running",
    "worker": "the first worker had its model",
    "shard": "the first shard was committed",
}
MAX_REASONS = 8
MAX_EXAMPLES = 10
SQL = "SELECT category, count(*) AS n FROM instances GROUP BY category ORDER BY n DESC"


def run_and_report(
    spec: JobSpec, *, run: str | None, fresh: bool, is_json: bool = False, is_verbose: bool = False
) -> int:
    """Run the job, report its outcome and return the exit code.

    Args:
        is_json: write the summary to stdout as JSON, as summary.json has it, instead of text.
        is_verbose: also report how long each part of the start took.
    """
    start_up = StartUp(time.monotonic() - _process_age_s())
    with interruptible(StopRequest()) as stop, stop:
        # Imported in the block, because the import takes a second in which Ctrl-C must be quiet.
        from pipeline.driver import run_job as driver

    announcer = RunAnnouncer(spec)
    try:
        summary = driver.run(spec, run=run, fresh=fresh, start_up=start_up, on_begin=announcer.begun)
    except HtcError as error:
        announcer.failed(error, run)
        raise
    if is_json:
        write_json(summary.to_dict())
    else:
        report_summary(summary, spec, is_verbose=is_verbose)
    announcer.ended(summary)
    return summary.exit_code


def _process_age_s() -> float:
    import psutil

    began: float = psutil.Process().create_time()
    return max(0.0, time.time() - began)


def report_summary(summary: RunSummary, spec: JobSpec, *, is_verbose: bool = False) -> None:
    """Write the run's outcome to stdout, and the reason why it is not complete to stderr.

    Args:
        is_verbose: also write how long each part of the start took, and how busy the stages were.
    """
    write_line()
    write_table(["", ""], list(_outcome(summary, spec)), has_header=False)
    if is_verbose:
        _report_stages(summary)
    if is_verbose and summary.start_up_s:
        write_line("Start, seconds after the command began:")
        rows = [(f"{seconds:.1f}", START_PARTS[part]) for part, seconds in _by_time(summary.start_up_s)]
        write_table(["", ""], rows, has_header=False, alignments=["right", "left"])
    if summary.failure_reasons:
        _report_failures(summary)
    for command in _next_commands(summary, spec):
        write_line(command)
    if summary.reason and not is_json_logged():
        # In the JSON log, the event `run_ended` has it.
        say(summary.reason)
    if summary.error_log:
        say(f"The tracebacks of unexpected failures are in {summary.error_log}.")


def _report_stages(summary: RunSummary) -> None:
    shares = sorted(summary.stage_shares.items(), key=lambda pair: -pair[1])
    if busy := [f"{stage} {share:.0%}" for stage, share in shares if share >= 0.005]:
        write_line(f"Busy time of the stages, which run side by side: {', '.join(busy)}")


def _by_time(start_up_s: Mapping[str, float]) -> list[tuple[Part, float]]:
    return sorted(((part, start_up_s[part]) for part in PARTS if part in start_up_s), key=lambda pair: pair[1])


def _outcome(summary: RunSummary, spec: JobSpec) -> Iterator[tuple[str, str]]:
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(summary.statuses.items()) if count)
    done = f"{count_of(summary.images_done, 'image')}"
    if summary.images_done < summary.images:
        done = f"{summary.images_done:,} of {count_of(summary.images, 'image')}"
    yield "run", f"{summary.run} ({in_words(summary.status)})"
    yield "images", f"{done}: {counts}" if counts else done
    yield "instances", f"{summary.instances:,}"
    if summary.session_images:
        speed = f"{summary.images_per_s:.2f} images/s"
        yield "speed", f"{speed}, {summary.session_images:,} in {format_duration(summary.seconds)}, start included"
    if times := ", ".join(shares_in_words(shares_of(summary.worker_time_s))):
        yield "workers' time", times
    if summary.bottleneck is not None:
        yield "bottleneck", summary.bottleneck.sentence
    if summary.device:
        # On a CPU nothing but fp32 is chosen without being asked for.
        is_shown = summary.precision and (summary.device != "cpu" or summary.precision.startswith("bf16"))
        yield "device", f"{summary.device} ({summary.precision})" if is_shown else summary.device
    if summary.retries or summary.workers_lost:
        yield "trouble", f"{summary.retries} retries, {summary.workers_lost} workers lost"
    amount, hours = summary.cost.get("amount"), summary.cost.get("worker_hours")
    if isinstance(amount, int | float) and isinstance(hours, int | float):
        limit = f" of at most {spec.budget.amount(spec.budget.max_cost)}" if spec.budget.max_cost else ""
        yield "cost", f"{spec.budget.amount(amount)}{limit}, {hours:.3g} worker-hours in all sessions"
    if summary.is_late and summary.deadline and not summary.stopped_by:
        deadline = local_text(datetime.fromisoformat(summary.deadline), spec.budget.deadline or "")
        yield "late", f"it ended after its deadline, {deadline}"
    trained = "" if summary.is_trained else ", untrained weights: the masks mean nothing"
    yield "model", f"{summary.model or spec.model.preset}{trained}"
    tables = ", ".join(f"{table}/" for table in ("images", "instances", *spec.model.map_tables))
    yield "tables", f"{spec.output.uri} ({tables}, runs/{summary.run}/)"


def _report_failures(summary: RunSummary) -> None:
    failed = sum(count for status, count in summary.statuses.items() if status != "ok")
    budget = f"{summary.error_rate:.2%} of the images; the error budget allows {summary.max_error_rate:.2%}"
    allowed = allowed_errors(summary.images, summary.max_error_rate, summary.max_errors)
    if summary.status == "complete" and allowed > summary.max_error_rate * summary.images:
        budget += f" and in any case {count_of(allowed, 'image')}"
    if summary.repeated_errors:
        budget = f"{summary.repeated_errors:,} failed before as well and do not count; the others are {budget}"
    write_line(f"{failed:,} of {count_of(sum(summary.statuses.values()), 'image')} failed ({budget}):")
    reasons = list(summary.failure_reasons.items())
    rows = [(f"{count:,}", reason) for reason, count in reasons[:MAX_REASONS]]
    write_table(["images", "reason"], rows, alignments=["right", "left"])
    if len(reasons) > MAX_REASONS:
        write_line(f"... and {count_of(len(reasons) - MAX_REASONS, 'more reason')}")
    for failure in summary.failure_examples[:MAX_EXAMPLES]:
        write_line(f"  {failure.status}  {failure.uri}  {failure.reason}")
    if failed > min(MAX_EXAMPLES, len(summary.failure_examples)):
        write_line("All of them: SELECT uri, status, error FROM images WHERE status <> 'ok'")
    write_line()


def _next_commands(summary: RunSummary, spec: JobSpec) -> Iterator[str]:
    folder = shlex.quote(_short_path(spec.output.uri))
    # An incremental run itself has the instances of a few images only.
    sql = SQL if spec.select.mode == "full" else SQL.replace("FROM instances", "FROM current_instances")
    if summary.instances:
        yield f'Next: htc query {folder} "{sql}"'
        yield f"      htc show {folder} --to overlays"


def _short_path(uri: str) -> str:
    """Return a folder below the current one as a relative path."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        # The current folder was removed during the run.
        return uri
    path = Path(uri)
    if path.is_absolute() and path.is_relative_to(here) and path != here:
        return str(path.relative_to(here))
    return uri
