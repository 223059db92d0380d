"""How a run ended, in words and by field, for every channel of `notify:` in its job spec."""

import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.notifications.bodies import Report
from jobs.notifications.delivery import describe_counts
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.notify import RunEvent
from pipeline.messages import ImageFailure
from pipeline.redaction import redact
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_FAILED, in_words
from pipeline.runs.summary import RunSummary
from pipeline.text import format_duration


@dataclass(frozen=True)
class RunEnding:
    """How a run ended.

    run: its name, "" if it could not begin. outcome: see `pipeline.runs.outcomes`; "failed" without a summary.
    reason: one sentence, "" for a complete run. counts: images, images_done, instances, failed, seconds.
    images_per_s: of the last session, start-up included. bottleneck: what held the run up, where its summary says so.
    first_failure: one image that is not ok, as an example. is_stopped_early: whether it was stopped because it could
    not end within its error budget, or for another limit that its summary names as `stopped_by`.
    """

    run: str
    outcome: str
    exit_code: int
    reason: str
    counts: dict[str, float] = field(default_factory=dict)
    images_per_s: float | None = None
    bottleneck: str = ""
    first_failure: ImageFailure | None = None
    is_stopped_early: bool = False

    @property
    def event(self) -> RunEvent:
        """What `notify.events` calls it; failures include early stops."""
        if self.exit_code == EXIT_COMPLETE:
            return "end"
        return "early_stop" if self.is_stopped_early else "failure"


def ending_of_summary(summary: RunSummary) -> RunEnding | None:
    """Return how a session ended; None when the run was complete before, and there was nothing to report."""
    if summary.exit_code not in (EXIT_COMPLETE, EXIT_FAILED):
        return None
    if summary.exit_code == EXIT_COMPLETE and summary.images and not summary.session_images:
        return None
    values = summary.to_dict()
    counts = {
        "images": summary.images,
        "images_done": summary.images_done,
        "instances": summary.instances,
        "failed": sum(count for status, count in summary.statuses.items() if status != "ok"),
        "seconds": summary.seconds,
    }
    return RunEnding(
        summary.run,
        summary.status,
        summary.exit_code,
        summary.reason,
        counts,
        images_per_s=summary.images_per_s,
        bottleneck=_bottleneck_in(values),
        first_failure=next(iter(summary.failure_examples), None),
        is_stopped_early=bool(values.get("stopped_by"))
        or (summary.status == "over_error_budget" and summary.images_done < summary.images),
    )


def _bottleneck_in(summary: Mapping[str, object]) -> str:
    """Return the sentence about what held the run up; "" in a summary that has none."""
    found = summary.get("bottleneck")
    return str((found.get("sentence") if isinstance(found, Mapping) else found) or "")


def is_wanted(event: RunEvent, events: list[RunEvent]) -> bool:
    """Return whether an event is among those asked for; an early stop is a failure, too."""
    return event in events or (event == "early_stop" and "failure" in events)


def describe_ending(spec: JobSpec, ending: RunEnding) -> str:
    """Return the notification's text: job and run, outcome, counts, reason, speed, an example, the way on, output."""
    heading = "complete" if ending.exit_code == EXIT_COMPLETE else "FAILED"
    if ending.outcome not in ("complete", "failed"):
        heading += f" ({in_words(ending.outcome)})"
    lines = [f"htc {spec.name or 'run'}: {heading}"]
    if ending.run:
        lines.append(f"run {ending.run}")
    if ending.counts:
        lines.append(describe_counts(ending.counts))
    if ending.reason:
        lines.append(ending.reason)
    if ending.images_per_s:
        lines.append(f"{ending.images_per_s:.2f} images/s, {format_duration(ending.counts.get('seconds'))}")
    if ending.bottleneck:
        lines.append(f"bottleneck: {ending.bottleneck}")
    if ending.first_failure is not None and ending.exit_code != EXIT_COMPLETE:
        failure = ending.first_failure
        lines.append(f"for example {failure.uri}: {failure.status}, {failure.reason}")
    if command := next_command(spec, ending):
        lines.append(f"look further: {command}")
    lines.append(spec.output.uri)
    return redact("\n".join(lines))


def next_command(spec: JobSpec, ending: RunEnding) -> str:
    """Return the command that shows more about a run that is not complete; "" for one that is."""
    output = shlex.quote(spec.output.uri)
    if ending.exit_code == EXIT_COMPLETE:
        return ""
    if ending.outcome == "over_error_budget":
        sql = "SELECT status, error, count(*) AS n FROM images WHERE run = '{}' AND status <> 'ok' GROUP BY ALL"
        return f'htc query {output} "{sql.format(ending.run)} ORDER BY n DESC"'
    if not ending.run:
        return f"htc runs {output}"
    return f"htc status {output} --run {shlex.quote(ending.run)}"


def build_report(spec: JobSpec, ending: RunEnding) -> Report:
    """Build the notification of a run's end."""
    failure = ending.first_failure
    return Report(
        describe_ending(spec, ending),
        {
            **event_fields(spec, ending.event, ending.run),
            "outcome": ending.outcome,
            "exit_code": ending.exit_code,
            "reason": redact(ending.reason),
            "counts": dict(ending.counts),
            "images_per_s": ending.images_per_s,
            "seconds": ending.counts.get("seconds"),
            "bottleneck": ending.bottleneck or None,
            "first_failure": failure
            and {"uri": redact(failure.uri), "status": failure.status, "reason": redact(failure.reason)},
            "next_command": redact(next_command(spec, ending)) or None,
        },
    )


def event_fields(spec: JobSpec, event: RunEvent, run: str) -> dict[str, object]:
    """Return the fields that the report of every event has."""
    return {
        "event": event,
        "job": spec.name,
        "run": run,
        "output": redact(spec.output.uri),
        "host": socket.gethostname(),
    }


def hook_variables(spec: JobSpec, ending: RunEnding, *, text: str) -> dict[str, str]:
    """Return the environment variables of the exit hook."""
    variables = {
        **event_variables(spec, ending.event, ending.run, text),
        "HTC_STATUS": ending.outcome,
        "HTC_EXIT_CODE": str(ending.exit_code),
        "HTC_REASON": redact(ending.reason),
        "HTC_NEXT": redact(next_command(spec, ending)),
    }
    for name, count in ending.counts.items():
        variables[f"HTC_{name.upper()}"] = f"{count:g}" if name == "seconds" else f"{count:.0f}"
    if ending.images_per_s is not None:
        variables["HTC_IMAGES_PER_S"] = f"{ending.images_per_s:g}"
    return variables


def event_variables(spec: JobSpec, event: RunEvent, run: str, text: str) -> dict[str, str]:
    """Return the environment variables that an exit hook gets for every event."""
    return {"HTC_EVENT": event, "HTC_RUN": run, "HTC_OUTPUT": redact(spec.output.uri), "HTC_TEXT": text}
