"""A run reports its own start, end, early stop and lateness, as `notify:` in its job spec says.

So a run speaks for itself wherever it is started: by hand, by cron, by Kubernetes. A driver that is killed reports
nothing; what notices that from outside is in docs/monitoring.md: a ping service, `htc metrics`, `htc runs --overdue`.

Nothing here changes a run or its exit code. The end of a run waits no longer than DELIVERY_BOUND_S for servers,
HOOK_TIMEOUT_S for the operator's own program, and RECORD_BOUND_S for a store to note what was delivered.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from jobs.notifications.bodies import Report
from jobs.notifications.delivery import (
    BOUND_AFTER_SIGNAL_S,
    DELIVERY_BOUND_S,
    HOOK_TIMEOUT_S,
    LONGEST_WAIT_S,
    Delivery,
    channel_url,
    deliver_side_by_side,
    find_problems,
    run_hook,
    send_apprise,
    send_ping,
    send_webhook,
)
from jobs.notifications.run_ending import (
    RunEnding,
    build_report,
    ending_of_summary,
    event_fields,
    event_variables,
    hook_variables,
    is_wanted,
)
from jobs.terminal.console import say
from pipeline.errors import HtcError, StoppedError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.notify import RunEvent
from pipeline.logs import note
from pipeline.output.run_record import read_record
from pipeline.redaction import redact
from pipeline.runs.last_failure import write_last_failure
from pipeline.runs.lease import RunHeldError
from pipeline.runs.outcomes import EXIT_COMPLETE
from pipeline.runs.record_notifications import record_notifications
from pipeline.runs.summary import RunSummary
from pipeline.signals import was_stopped
from pipeline.storage.storage import Storage
from pipeline.text import format_duration, message_of

DELIVERED = "delivered"
RECORD_BOUND_S = 10.0
# A command that a signal interrupts before its run could begin is ended after 3 s, see `jobs.cli.program`.
BOUND_BEFORE_A_RUN_S = 1.0
START_SHARE = 0.5
"""Of the time for servers at a run's end, as long as the report of its start is still under way."""


class OpenRun(Protocol):
    """What is asked of the handle of a run."""

    @property
    def name(self) -> str:
        """The run's name."""


@dataclass(frozen=True)
class Patience:
    """How long channels are waited for, in seconds; see `delivery`."""

    bound_s: float = DELIVERY_BOUND_S
    hook_timeout_s: float = HOOK_TIMEOUT_S
    longest_wait_s: float = LONGEST_WAIT_S

    def now(self) -> "Patience":
        """Return it, or a shorter one when this process was asked to stop by a signal."""
        return self.at_most(BOUND_AFTER_SIGNAL_S) if was_stopped() else self

    def at_most(self, limit_s: float) -> "Patience":
        """Return it with no bound over a limit."""
        return replace(self, bound_s=min(self.bound_s, limit_s), hook_timeout_s=min(self.hook_timeout_s, limit_s))


class RunAnnouncer:
    """Announces one session of a run by the channels of its job spec."""

    def __init__(self, spec: JobSpec, *, patience: Patience = Patience()) -> None:
        """Report on stderr which channels cannot be used: at the beginning it can still be mended."""
        self._spec = spec
        self._notify = spec.notify
        self._patience = patience
        self._run = ""
        self._timer: threading.Timer | None = None
        self._background: list[threading.Thread] = []
        for channel, problem in find_problems(spec.notify, ("webhook", "apprise", "ping", "pushgateway")).items():
            say(f"The {channel} of notify cannot be used: {problem}.")

    def begun(self, run: OpenRun) -> None:
        """Announce the start in the background, and begin to wait for the run to be overdue."""
        self._run = run.name
        if self._notify.overdue_after_s is not None:
            self._watch(self._notify.overdue_after_s)
        deliveries = self._start_deliveries()
        if deliveries:
            self._in_background(deliveries)

    def ended(self, summary: RunSummary) -> None:
        """Announce the end of a session, and note in summary.json what was delivered; Ctrl-C ends the waiting."""
        with _until_ctrl_c():
            self._announce_end(summary)

    def failed(self, error: HtcError, run: str | None) -> None:
        """Announce that a run could not begin, or broke off; not where another driver works on it.

        Args:
            run: the name that was asked for, None without one.
        """
        with _until_ctrl_c():
            self._announce_failure(error, run)

    def _announce_end(self, summary: RunSummary) -> None:
        self._wait_for_start()
        ending = ending_of_summary(summary)
        deliveries: dict[str, Delivery] = {}
        if ending is not None and is_wanted(ending.event, self._notify.events):
            report = build_report(self._spec, ending)
            deliveries |= self._reports(report, hook_variables(self._spec, ending, text=report.text))
        deliveries |= self._signs_of_life(summary.exit_code, summary.reason or summary.status)
        notifications = self._deliver(deliveries)
        if notifications and ending is not None:
            self._record(summary, notifications)

    def _announce_failure(self, error: HtcError, run: str | None) -> None:
        self._wait_for_start()
        if isinstance(error, RunHeldError):
            return
        if isinstance(error, StoppedError):
            self._patience = self._patience.at_most(BOUND_BEFORE_A_RUN_S)
        name = self._run or run or ""
        ending = RunEnding(name, "failed", error.exit_code, str(error))
        # First, because a Pushgateway gets what the output says.
        self._note_failure(ending, error)
        deliveries: dict[str, Delivery] = {}
        if is_wanted(ending.event, self._notify.events):
            report = build_report(self._spec, ending)
            deliveries |= self._reports(report, hook_variables(self._spec, ending, text=report.text))
        self._deliver(deliveries | self._signs_of_life(ending.exit_code, ending.reason))

    def _watch(self, overdue_after_s: float) -> None:
        try:
            record = read_record(Storage(self._spec.storage), self._spec.output.uri, self._run)
        except StorageError:
            record = None
        created = datetime.now(UTC) if record is None else datetime.fromisoformat(record.created)
        left_s = (created + timedelta(seconds=overdue_after_s) - datetime.now(UTC)).total_seconds()
        # A run that is resumed after its deadline was reported by the session before.
        if left_s > 0:
            # Timers of more than some hundred years overflow.
            self._timer = threading.Timer(min(left_s, threading.TIMEOUT_MAX), self._overdue, [overdue_after_s])
            self._timer.daemon = True
            self._timer.start()

    def _overdue(self, overdue_after_s: float) -> None:
        job, output = self._spec.name or "run", self._spec.output.uri
        late = f"not ended {format_duration(overdue_after_s)} after it began; it still runs"
        lines = [f"htc {job}: LATE: {late}", f"run {self._run}", f"look further: htc status {output}", output]
        self._deliver(self._event_deliveries("overdue", redact("\n".join(lines)), {"reason": late}))

    def _start_deliveries(self) -> dict[str, Delivery]:
        text = redact(f"htc {self._spec.name or 'run'}: started\nrun {self._run}\n{self._spec.output.uri}")
        deliveries = self._event_deliveries("start", text, {})
        if self._notify.has_url("ping"):
            deliveries["ping"] = partial(self._ping, "/start", text)
        if self._notify.has_url("pushgateway"):
            deliveries["pushgateway"] = self._push
        return deliveries

    def _event_deliveries(self, event: RunEvent, text: str, fields: Mapping[str, object]) -> dict[str, Delivery]:
        if not is_wanted(event, self._notify.events):
            return {}
        report = Report(text, {**event_fields(self._spec, event, self._run), **fields})
        return self._reports(report, event_variables(self._spec, event, self._run, text))

    def _reports(self, report: Report, variables: Mapping[str, str]) -> dict[str, Delivery]:
        """Return the deliveries of a report to the channels that take one."""
        notify, patience = self._notify, self._patience.now()
        deliveries: dict[str, Delivery] = {}
        if notify.has_url("webhook"):
            deliveries["webhook"] = partial(
                send_webhook, notify, report, longest_wait_s=patience.longest_wait_s, bound_s=patience.bound_s
            )
        if notify.has_url("apprise"):
            deliveries["apprise"] = partial(send_apprise, notify, report)
        if notify.exit_hook:
            deliveries["exit hook"] = partial(run_hook, notify.exit_hook, variables, timeout_s=patience.hook_timeout_s)
        return deliveries

    def _signs_of_life(self, exit_code: int, text: str) -> dict[str, Delivery]:
        """Return the deliveries that do not depend on events: outside services wait for every end."""
        deliveries: dict[str, Delivery] = {}
        if self._notify.has_url("ping"):
            suffix = "" if exit_code == EXIT_COMPLETE else "/fail"
            deliveries["ping"] = partial(self._ping, suffix, redact(text))
        if self._notify.has_url("pushgateway"):
            deliveries["pushgateway"] = self._push
        return deliveries

    def _ping(self, suffix: str, text: str) -> str:
        patience = self._patience.now()
        return send_ping(self._notify, suffix, text, longest_wait_s=patience.longest_wait_s, bound_s=patience.bound_s)

    def _push(self) -> str:
        from jobs.monitoring.output_status import read_output_status
        from jobs.monitoring.pushgateway import push_status

        try:
            url = channel_url(self._notify, "pushgateway")
        except ValueError as error:
            return str(error)
        return push_status(read_output_status(self._spec.output.uri, Storage(self._spec.storage)), url)

    def _in_background(self, deliveries: Mapping[str, Delivery]) -> None:
        thread = threading.Thread(target=self._deliver, args=[deliveries], name="notify start", daemon=True)
        thread.start()
        self._background.append(thread)

    def _deliver(self, deliveries: Mapping[str, Delivery]) -> dict[str, str]:
        """Deliver, report on stderr what could not be, and return the outcomes as summary.json has them."""
        if not deliveries:
            return {}
        patience = self._patience.now()
        bounds = {
            # A hook that is killed at its time limit is named as such.
            channel: patience.hook_timeout_s + 1.0 if channel == "exit hook" else patience.bound_s
            for channel in deliveries
        }
        problems = deliver_side_by_side(deliveries, bounds)
        for channel, problem in problems.items():
            if problem:
                sentence = f"The {channel} of notify was not reached: {problem}."
                say(note("notification_failed", sentence, channel=channel))
        return {channel: problem or DELIVERED for channel, problem in problems.items()}

    def _note_failure(self, ending: RunEnding, error: HtcError) -> None:
        """Leave the failure in the output, for `htc metrics`; not in a store that has just failed.

        A command that was typed at a terminal has its reader, and its misspelt flags must wake up no one else.
        """
        if isinstance(error, StorageError) or sys.stderr.isatty():
            return
        storage = Storage(self._spec.storage)
        self._within_bound(
            "last_failure.json",
            lambda: write_last_failure(
                storage, self._spec.output.uri, run=ending.run, exit_code=ending.exit_code, reason=ending.reason
            ),
        )

    def _record(self, summary: RunSummary, notifications: Mapping[str, str]) -> None:
        storage = Storage(self._spec.storage)
        self._within_bound(
            "the delivery in summary.json",
            lambda: record_notifications(
                storage, self._spec.output.uri, summary.run, ended=summary.ended, notifications=notifications
            ),
        )

    def _within_bound(self, what: str, write: Callable[[], object]) -> None:
        def attempt() -> str:
            try:
                write()
            except StorageError as error:
                return message_of(error)
            return ""

        bound_s = min(RECORD_BOUND_S, self._patience.now().bound_s)
        problem = deliver_side_by_side({what: attempt}, {what: bound_s})[what]
        if problem:
            say(f"{what[0].upper()}{what[1:]} could not be noted: {problem}.")

    def _wait_for_start(self) -> None:
        """End the wait for the run to be overdue, and wait for its start to be delivered before its end is."""
        if self._timer is not None:
            self._timer.cancel()
        bound_s = self._patience.now().bound_s
        began = time.monotonic()
        for thread in self._background:
            thread.join(max(0.0, began + START_SHARE * bound_s - time.monotonic()))
        self._patience = replace(self._patience, bound_s=bound_s - (time.monotonic() - began))


@contextmanager
def _until_ctrl_c() -> Iterator[None]:
    """End the block at Ctrl-C with a sentence; the run has ended, and its exit code stays."""
    try:
        yield
    except KeyboardInterrupt:
        say("No longer waiting for the notifications to be delivered.")
