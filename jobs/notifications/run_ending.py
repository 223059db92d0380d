"""A run reports its own end, as `notify:` in its job spec says.

So a run speaks for itself wherever it is started: by hand, by cron, by Kubernetes. A driver that is killed reports
nothing; alerts about runs that are missing are for that (docs/monitoring.md).
"""

from dataclasses import dataclass, field

from jobs.notifications.delivery import HOOK_TIMEOUT_S, LONGEST_WAIT_S, describe_counts, run_hook, send_webhook
from jobs.terminal.console import say
from pipeline.job_spec.job import JobSpec
from pipeline.logs import note
from pipeline.redaction import redact
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_FAILED, in_words
from pipeline.runs.summary import RunSummary


@dataclass(frozen=True)
class RunEnding:
    """How a run ended.

    run: its name, "" if it could not begin. outcome: see `pipeline.runs.outcomes`; "failed" without a summary.
    reason: one sentence, "" for a complete run. counts: images, images_done, instances, failed, seconds.
    """

    run: str
    outcome: str
    exit_code: int
    reason: str
    counts: dict[str, float] = field(default_factory=dict)


def notify_ending(
    spec: JobSpec, ending: RunEnding, *, longest_wait_s: float = LONGEST_WAIT_S, hook_timeout_s: float = HOOK_TIMEOUT_S
) -> None:
    """Deliver a run's end by the channels of its spec, and report on stderr what cannot be delivered.

    Args:
        longest_wait_s: between two attempts at a webhook. hook_timeout_s: after which an exit hook is killed.
    """
    notify = spec.notify
    event = "end" if ending.exit_code == EXIT_COMPLETE else "failure"
    if event not in notify.events:
        return
    text = describe_ending(spec, ending)
    problems = {}
    if notify.webhook_url_env or notify.webhook_url_file:
        problems["webhook"] = send_webhook(notify, text, longest_wait_s=longest_wait_s)
    if notify.exit_hook:
        variables = hook_variables(spec, ending, event=event, text=text)
        problems["exit hook"] = run_hook(notify.exit_hook, variables, timeout_s=hook_timeout_s)
    for channel, problem in problems.items():
        if problem:
            sentence = f"The {channel} of notify was not reached: {problem}."
            say(note("notification_failed", sentence, channel=channel))


def ending_of_summary(summary: RunSummary) -> RunEnding | None:
    """Return how a session ended; None when the run was complete before, and there was nothing to report."""
    if summary.exit_code not in (EXIT_COMPLETE, EXIT_FAILED):
        return None
    if summary.exit_code == EXIT_COMPLETE and summary.images and not summary.session_images:
        return None
    counts = {
        "images": summary.images,
        "images_done": summary.images_done,
        "instances": summary.instances,
        "failed": sum(count for status, count in summary.statuses.items() if status != "ok"),
        "seconds": summary.seconds,
    }
    return RunEnding(summary.run, summary.status, summary.exit_code, summary.reason, counts)


def describe_ending(spec: JobSpec, ending: RunEnding) -> str:
    """Return the notification's text: job and run, outcome, counts, reason, output."""
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
    lines.append(spec.output.uri)
    return redact("\n".join(lines))


def hook_variables(spec: JobSpec, ending: RunEnding, *, event: str, text: str) -> dict[str, str]:
    """Return the environment variables of the exit hook."""
    variables = {
        "HTC_EVENT": event,
        "HTC_RUN": ending.run,
        "HTC_OUTPUT": redact(spec.output.uri),
        "HTC_STATUS": ending.outcome,
        "HTC_EXIT_CODE": str(ending.exit_code),
        "HTC_REASON": redact(ending.reason),
        "HTC_TEXT": text,
    }
    for name, count in ending.counts.items():
        variables[f"HTC_{name.upper()}"] = f"{count:g}" if name == "seconds" else f"{count:.0f}"
    return variables
