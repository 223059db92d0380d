"""Notifications of schedules, delivered at least once.

A notification that cannot be delivered is reported in the history and in the log, and never blocks a run.
"""

import logging
from dataclasses import replace
from pathlib import Path

from jobs.notifications.bodies import Report
from jobs.notifications.delivery import (
    DELIVERY_BOUND_S,
    HOOK_TIMEOUT_S,
    LONGEST_WAIT_S,
    deliver_side_by_side,
    describe_counts,
    run_hook,
    send_apprise,
    send_webhook,
)
from jobs.scheduling.store import Notification, ScheduleStore
from pipeline.logs import log_event
from pipeline.redaction import redact
from pipeline.runs.outcomes import in_words

log = logging.getLogger(__name__)

_HEADINGS = {"end": "complete", "failure": "FAILED", "deadline": "LATE"}


def deliver_open_notifications(
    home: Path, *, longest_wait_s: float = LONGEST_WAIT_S, hook_timeout_s: float = HOOK_TIMEOUT_S
) -> None:
    """Deliver the open notifications, each at least once.

    Args:
        longest_wait_s: between two attempts at a webhook. hook_timeout_s: after which an exit hook is killed.
    """
    store = ScheduleStore(home)
    try:
        for notification in store.open_notifications():
            problem = _deliver(notification, longest_wait_s, hook_timeout_s)
            if problem:
                name, channel = notification.firing.name, notification.channel
                sentence = f"{name}: the {channel} was not notified: {problem}"
                log_event(log, "notification_failed", sentence, firing=name, channel=channel)
            store.close_notification(replace(notification, problem=problem))
    finally:
        store.close()


def describe_notification(notification: Notification) -> str:
    """Return the notification's text: schedule and run, status, counts, reason."""
    firing, ending = notification.firing, notification.firing.ending
    outcome = in_words(ending.outcome) if ending and notification.event != "deadline" else ""
    heading = _HEADINGS[notification.event]
    if notification.event == "deadline" and firing.deadline is not None:
        heading += f": not finished by {firing.deadline:%Y-%m-%d %H:%M} UTC"
    elif outcome and outcome != heading:
        heading += f" ({outcome})"
    lines = [f"htc schedule {firing.schedule.name}: {heading}", f"run {firing.name}"]
    if ending and ending.counts:
        lines.append(describe_counts(ending.counts))
    if notification.reason:
        lines.append(notification.reason)
    return redact("\n".join(lines))


def build_report(notification: Notification) -> Report:
    """Build what a webhook gets: the text, and its parts by field."""
    firing, ending = notification.firing, notification.firing.ending
    fields = {
        "event": notification.event,
        "schedule": firing.schedule.name,
        "run": firing.name,
        "scheduled": firing.scheduled.isoformat(),
        "outcome": ending.outcome if ending else firing.state,
        "exit_code": ending.exit_code if ending else None,
        "reason": redact(notification.reason),
        "counts": dict(ending.counts) if ending else {},
    }
    return Report(describe_notification(notification), fields)


def _deliver(notification: Notification, longest_wait_s: float, hook_timeout_s: float) -> str:
    """Deliver by the notification's channel, within a bound; return why it could not be, "" if it was."""
    notify, channel = notification.firing.schedule.notify, notification.channel
    if channel == "hook":
        return run_hook(notify.exit_hook or [], hook_environment(notification), timeout_s=hook_timeout_s)
    report = build_report(notification)
    if channel == "webhook":
        return deliver_side_by_side(
            {channel: lambda: send_webhook(notify, report, longest_wait_s=longest_wait_s)}, {channel: DELIVERY_BOUND_S}
        )[channel]
    return deliver_side_by_side({channel: lambda: send_apprise(notify, report)}, {channel: DELIVERY_BOUND_S})[channel]


def hook_environment(notification: Notification) -> dict[str, str]:
    """Return the environment variables of the exit hook."""
    firing, ending = notification.firing, notification.firing.ending
    job = firing.schedule.spec
    variables = {
        "HTC_EVENT": notification.event,
        "HTC_SCHEDULE": firing.schedule.name,
        "HTC_RUN": firing.name,
        "HTC_SCHEDULED": firing.scheduled.isoformat(),
        "HTC_SPEC": job if isinstance(job, str) else "",
        "HTC_STATUS": ending.outcome if ending else firing.state,
        "HTC_EXIT_CODE": "" if ending is None or ending.exit_code is None else str(ending.exit_code),
        "HTC_REASON": redact(notification.reason),
        "HTC_TEXT": describe_notification(notification),
    }
    for name, count in (ending.counts if ending else {}).items():
        variables[f"HTC_{name.upper()}"] = f"{count:g}" if name == "seconds" else f"{count:.0f}"
    return variables
