"""Catch-up, overlap and jitter: pure functions of a schedule, the clock and the firings in progress."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Literal

from jobs.scheduling.cron import due_times
from jobs.scheduling.firing import Firing
from jobs.scheduling.schedule import Schedule

# A firing that starts within this time is on time: a busy scheduler is not an absent one.
PUNCTUAL_S = 60.0
# Waiting firings of one schedule; more of them only show that a run takes longer than its interval.
MAX_WAITING = 10
Turn = Literal["begin", "wait", "skip", "replace"]


@dataclass(frozen=True)
class Due:
    """The due times of one schedule.

    punctual, caught_up: the scheduled times to start now, in order.
    missed: how many are not made up for; `first_missed` and `last_missed` are the earliest and the latest.
    until: the time up to which this decides.
    """

    punctual: Sequence[datetime]
    caught_up: Sequence[datetime]
    missed: int
    first_missed: datetime | None
    last_missed: datetime | None
    until: datetime


def judge_due(schedule: Schedule, decided_until: datetime, now: datetime) -> Due | None:
    """Sort the scheduled times since `decided_until` into punctual, caught up and missed; None if there is none.

    A clock that was set back is followed: a time that comes twice starts once, because a firing's name is its time.
    """
    if decided_until > now:
        return Due(punctual=[], caught_up=[], missed=0, first_missed=None, last_missed=None, until=now)
    times = due_times(schedule.cron, schedule.time_zone, decided_until)
    due = list(takewhile(lambda moment: moment <= now, times))
    if not due:
        return None
    on_time = [moment for moment in due if (now - moment).total_seconds() < PUNCTUAL_S]
    late = due[: len(due) - len(on_time)]
    window = timedelta(seconds=schedule.catch_up_window_s)
    recent = [moment for moment in late if now - moment <= window]
    if schedule.catch_up == "none":
        caught_up = []
    elif schedule.catch_up == "all":
        caught_up = recent
    else:
        # A firing that is on time makes up for those before it.
        caught_up = [] if on_time else recent[-1:]
    made_up = set(caught_up)
    missed = [moment for moment in late if moment not in made_up]
    return Due(
        punctual=on_time,
        caught_up=caught_up,
        missed=len(missed),
        first_missed=missed[0] if missed else None,
        last_missed=missed[-1] if missed else None,
        until=due[-1],
    )


def jitter_of(firing: str, jitter_s: float) -> timedelta:
    """Return a firing's delay, 0 to `jitter_s`: a hash of its name, so that it is always the same."""
    digest = hashlib.sha256(firing.encode()).digest()
    return timedelta(seconds=round(int.from_bytes(digest[:8]) / 2**64 * jitter_s, 3))


def judge_overlap(firing: Firing, others: Sequence[Firing]) -> tuple[Turn, str]:
    """Decide whether a firing may begin.

    Args:
        others: the same schedule's firings that are running or waiting for their turn.

    Returns:
        "begin"; "wait" until the others have ended; "skip" it; or "replace" the others and wait for their end.
        And the reason, as text.
    """
    if not others:
        return "begin", ""
    names = ", ".join(other.name for other in others)
    overlap = firing.schedule.overlap
    if firing.kind == "caught_up" or overlap == "queue":
        waiting = sum(other.state == "waiting" for other in others)
        if waiting >= MAX_WAITING and firing.kind != "caught_up":
            return "skip", f"{waiting} earlier firings are already waiting for their turn."
        return "wait", f"waits for {names}"
    if overlap == "replace":
        return "replace", f"takes the place of {names}"
    verb = "was" if len(others) == 1 else "were"
    return "skip", f"{names} {verb} still running."
