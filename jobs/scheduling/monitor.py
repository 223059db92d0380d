"""Follows one running firing: records its end, resumes a vanished run, repeats a stop request."""

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.launcher import Launcher
from jobs.scheduling.schedule import Event
from jobs.scheduling.store import ScheduleStore
from pipeline.logs import log_event

log = logging.getLogger(__name__)

MAX_STARTS = 3
"""Starts of one run: a run whose process vanishes (killed, machine gone) is resumed, but not after three times."""
# A driver that is asked to stop ends within seconds, or within a minute if it waits for an unreachable store.
STOP_PATIENCE = timedelta(minutes=2)
# A cluster that is gone for good must not block all later firings.
UNSEEN_PATIENCE = timedelta(minutes=10)


def watch_firing(store: ScheduleStore, launcher: Launcher, firing: Firing, now: datetime) -> Firing:
    """Check a firing that is running or stopping, and store what has changed."""
    status = launcher.check(firing)
    if status.state == "ended":
        return _end(store, firing, status.ending, now)
    if status.state == "gone":
        return _after_loss(store, firing, now)
    if status.problem != firing.reason and firing.state == "running":
        if status.problem:
            log.warning("%s cannot be checked: %s", firing.name, status.problem)
        firing = replace(firing, reason=status.problem)
        store.update(firing)
    if firing.state == "stopping" and firing.stop_asked is not None:
        # Repeated each time: the first request may have come before the run installed its signal handler.
        if status.state == "unseen" and now - firing.stop_asked > UNSEEN_PATIENCE:
            return _end(store, firing, Ending("lost"), now)
        launcher.stop(firing, is_forced=now - firing.stop_asked > STOP_PATIENCE)
    return firing


def _after_loss(store: ScheduleStore, firing: Firing, now: datetime) -> Firing:
    if firing.stop_outcome is not None:
        return _end(store, firing, Ending(firing.stop_outcome, firing.reason), now)
    if firing.starts >= MAX_STARTS:
        reason = f"Its process vanished {firing.starts} times without an exit code (killed, or out of memory)."
        return _end(store, firing, Ending("lost", reason), now)
    sentence = f"{firing.name} vanished without an exit code; it is resumed"
    log_event(log, "firing", sentence, level="warning", firing=firing.name, state="vanished")
    again = replace(firing, state="starting", begun=now, reason="Its process vanished; resumed.")
    store.update(again)
    return again


def _end(store: ScheduleStore, firing: Firing, ending: Ending, now: datetime) -> Firing:
    is_stopped_by_itself = firing.stop_outcome is None and ending.outcome == "stopped"
    if firing.stop_outcome is not None and ending.outcome != "complete":
        ending = replace(ending, outcome=firing.stop_outcome, reason=firing.reason)
    event: Event | None = "failure"
    if ending.outcome == "complete":
        event = "end"
    elif firing.stop_outcome is not None:
        # Stopped at its deadline, which was reported then; or replaced, as the schedule says.
        event = None
    elif is_stopped_by_itself:
        # At its deadline, before the scheduler asked it to stop.
        event = None if firing.is_late else "deadline"
        firing = replace(firing, is_late=True)
    ended = replace(firing, state="ended", ended=now, ending=ending)
    store.update(ended, event=event)
    sentence = f"{firing.name}: {' - '.join(filter(None, [ending.outcome, ending.reason]))}"
    log_event(log, "firing", sentence, firing=firing.name, state=ending.outcome, reason=ending.reason)
    return ended
