"""One step of the scheduler: which firings are due, may begin, have ended or are late.

A step reads the database and the clock, and stores each decision before it acts on it. The state is in the database
only, so that another scheduler can continue after a kill between any two lines: a firing in the state "starting" is
started again, which is idempotent in the launchers, and a firing in the state "running" is checked.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from jobs.scheduling.deadlines import RUNS_COMPARED, late_warning
from jobs.scheduling.firing import Ending, Firing, Kind, firing_name
from jobs.scheduling.launcher import Launcher
from jobs.scheduling.monitor import watch_firing
from jobs.scheduling.policies import MAX_WAITING, Due, jitter_of, judge_due, judge_overlap
from jobs.scheduling.schedule import Event, Schedule
from jobs.scheduling.store import DAMAGE, ScheduleStore, StoreDamagedError, StoredSchedule
from pipeline.errors import HtcError, SpecError
from pipeline.logs import log_event
from pipeline.text import message_of

log = logging.getLogger(__name__)

# A cluster that restarts is back by then; the run's deadline, if any, comes on top.
START_PATIENCE = timedelta(minutes=15)


class Engine:
    """Steps through the schedules of one store.

    launcher_of: where a schedule's firings run.
    local_runs: how many runs this machine does at once; the others wait, because each run uses the whole machine.
    """

    def __init__(
        self,
        store: ScheduleStore,
        launcher_of: Callable[[Schedule], Launcher],
        clock: Callable[[], datetime],
        *,
        local_runs: int = 1,
    ) -> None:
        self._store = store
        self._launcher_of = launcher_of
        self._clock = clock
        self._local_runs = local_runs
        # By name of the schedule or firing: since when and why it cannot be processed.
        self._failing: dict[str, tuple[datetime, str]] = {}

    def step(self) -> None:
        """Decide and do everything that is due now."""
        now = self._clock()
        for stored in self._store.schedules():
            with self._error_boundary(stored.schedule.name):
                self._decide(stored, now)
        self.watch()
        for firing in self._store.stops_wanted():
            with self._error_boundary(firing.name):
                self._stop(firing, Ending("stopped", "Stopped by htc schedule stop."), now)
        self._advance(now)
        self._give_up(now)

    def watch(self) -> None:
        """Check the firings that have begun; begin none."""
        for firing in self._store.open_firings():
            if firing.is_active and firing.state != "starting":
                with self._error_boundary(firing.name):
                    watch_firing(self._store, self._launcher_of(firing.schedule), firing, self._clock())

    def _decide(self, stored: StoredSchedule, now: datetime) -> None:
        if stored.schedule.is_paused:
            return
        due = judge_due(stored.schedule, stored.decided_until, now)
        if due is not None:
            self._store.decide(stored.schedule.name, due.until, _firings_of(stored.schedule, due, now))

    @contextmanager
    def _error_boundary(self, name: str) -> Iterator[None]:
        """Keep the errors of one schedule or firing from the others; the next step retries it.

        Raises:
            StoreDamagedError: the database is damaged, which affects all.
        """
        try:
            yield
        except StoreDamagedError:
            raise
        except (HtcError, *DAMAGE) as error:
            reason = message_of(error)
            since, known = self._failing.get(name, (self._clock(), ""))
            if reason != known:
                log.error("%s cannot be processed: %s", name, reason)
                log.debug("%s", name, exc_info=error)
            self._failing[name] = since, reason

    def _give_up(self, now: datetime) -> None:
        """End the firings that could not be processed for `START_PATIENCE`, so that later ones can begin."""
        open_firings = {firing.name: firing for firing in self._store.open_firings()}
        for name, (since, reason) in list(self._failing.items()):
            if name not in open_firings:
                if now - since > START_PATIENCE:
                    # A schedule, or a firing that has ended: its error is logged again if it persists.
                    del self._failing[name]
            elif now - since > START_PATIENCE:
                del self._failing[name]
                self._end(open_firings[name], Ending("failed", reason, 1), now, event="failure")

    def _advance(self, now: datetime) -> None:
        """Begin the firings whose turn it is, in the order of their times."""
        for listed in self._store.open_firings():
            with self._error_boundary(listed.name):
                # Read again: another firing's turn may have ended it.
                self._advance_one(self._store.firing(listed.name) or listed, now)

    def _advance_one(self, firing: Firing, now: datetime) -> None:
        current = self._mark_late(firing, now)
        if current.state == "due" and current.begins <= now:
            current = self._take_turn(current, now)
        if current.state == "waiting" and self._is_free_for(current):
            current = replace(current, state="starting", begun=now, reason="")
            self._store.update(current)
        if current.state == "starting":
            self._start(current, now)

    def _take_turn(self, firing: Firing, now: datetime) -> Firing:
        others = self._others(firing)
        turn, reason = judge_overlap(firing, others)
        if turn == "skip":
            return self._end(firing, Ending("skipped", reason), now)
        if turn == "replace":
            for other in others:
                if other.stop_outcome is None:
                    self._stop(other, Ending("replaced", f"{firing.name} took its place."), now)
        waiting = replace(firing, state="waiting", reason=reason)
        self._store.update(waiting)
        return waiting

    def _stop(self, firing: Firing, ending: Ending, now: datetime, *, event: Event | None = None) -> Firing:
        """End a firing that has not begun, or ask its run to end and record `ending` then."""
        if not firing.is_active:
            return self._end(firing, ending, now, event=event)
        stopping = replace(firing, state="stopping", stop_outcome=ending.outcome, stop_asked=now, reason=ending.reason)
        self._store.update(stopping, event=event)
        self._launcher_of(firing.schedule).stop(stopping, is_forced=False)
        return stopping

    def _is_free_for(self, firing: Firing) -> bool:
        open_firings = self._store.open_firings()
        before = [other for other in open_firings if other.name != firing.name and other.is_active]
        if any(other.schedule.name == firing.schedule.name for other in before):
            return False
        here = sum(other.schedule.address is None for other in before)
        return firing.schedule.address is not None or here < self._local_runs

    def _start(self, firing: Firing, now: datetime) -> None:
        launcher = self._launcher_of(firing.schedule)
        try:
            handle = launcher.start(firing)
        except SpecError as error:
            self._end(firing, Ending("failed", str(error), error.exit_code), now, event="failure")
            return
        except HtcError as error:
            if firing.begun is not None and now - firing.begun > START_PATIENCE:
                self._end(firing, Ending("failed", str(error), error.exit_code), now, event="failure")
            elif firing.reason != str(error):
                log.warning("%s cannot begin yet: %s", firing.name, error)
                self._store.update(replace(firing, reason=str(error)))
            return
        self._warn_late(firing, now)
        self._store.update(replace(firing, state="running", handle=handle, starts=firing.starts + 1, reason=""))
        log_event(log, "firing", f"{firing.name} has begun ({handle})", firing=firing.name, state="begun")

    def _warn_late(self, firing: Firing, now: datetime) -> None:
        if firing.deadline is not None:
            before = self._store.history(firing.schedule.name, RUNS_COMPARED + MAX_WAITING)
            if late := late_warning(firing.name, (firing.deadline - now).total_seconds(), before):
                log.warning(late)

    def _mark_late(self, firing: Firing, now: datetime) -> Firing:
        deadline = firing.deadline
        if deadline is None or now < deadline or firing.is_late or firing.state == "ended":
            return firing
        late = replace(firing, is_late=True)
        if firing.schedule.on_deadline == "notify":
            self._store.update(late, event="deadline")
            return late
        if firing.is_active:
            return self._stop(late, Ending("stopped", "Stopped at its deadline."), now, event="deadline")
        return self._stop(late, Ending("missed", "It had not started by its deadline."), now, event="deadline")

    def _others(self, firing: Firing) -> list[Firing]:
        """Return the schedule's earlier firings that have not ended."""
        return [
            other
            for other in self._store.open_firings()
            if other.schedule.name == firing.schedule.name and other.name != firing.name and other.state != "due"
        ]

    def _end(self, firing: Firing, ending: Ending, now: datetime, *, event: Event | None = None) -> Firing:
        ended = replace(firing, state="ended", ended=now, ending=ending)
        self._store.update(ended, event=event)
        sentence = f"{firing.name}: {' - '.join(filter(None, [ending.outcome, ending.reason]))}"
        log_event(log, "firing", sentence, firing=firing.name, state=ending.outcome, reason=ending.reason)
        return ended


def plan_firing(schedule: Schedule, scheduled: datetime, kind: Kind) -> Firing:
    """Build a schedule's firing for a time."""
    name = firing_name(schedule.name, scheduled, kind)
    delay = timedelta() if kind == "manual" else jitter_of(name, schedule.jitter_s)
    return Firing(name=name, schedule=schedule, scheduled=scheduled, begins=scheduled + delay, kind=kind)


def _firings_of(schedule: Schedule, due: Due, now: datetime) -> list[tuple[Firing, Event | None]]:
    firings: list[tuple[Firing, Event | None]] = []
    if due.missed and due.first_missed is not None and due.last_missed is not None:
        missed = plan_firing(schedule, due.last_missed, "cron")
        is_made_up = bool(due.caught_up or due.punctual) and schedule.catch_up != "none"
        ending = Ending("missed", _describe_missed(due, is_made_up=is_made_up))
        event: Event | None = None if is_made_up else "failure"
        firings.append((replace(missed, state="ended", ended=now, ending=ending), event))
    firings.extend((plan_firing(schedule, moment, "caught_up"), None) for moment in due.caught_up)
    firings.extend((plan_firing(schedule, moment, "cron"), None) for moment in due.punctual)
    return firings


def _describe_missed(due: Due, *, is_made_up: bool) -> str:
    times = f"{due.first_missed:%Y-%m-%d %H:%M} UTC"
    if due.missed > 1:
        times = f"{due.missed} firings from {times} to {due.last_missed:%Y-%m-%d %H:%M} UTC"
    way_on = "; a later one makes up for it" if is_made_up else ""
    return f"No scheduler was running at its time ({times}){way_on}."
