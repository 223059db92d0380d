"""What becomes of a firing: pure functions of the schedule's policies, the clock, and what is going on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Literal

from jobs.scheduling.cron import due_times
from jobs.scheduling.firing import Firing
from jobs.scheduling.schedule import Schedule

# A firing that is started within it is on time: a scheduler that has much to do is not one that was away.
PUNCTUAL_S = 60.0
# One schedule's firings that wait for their turn; more of them only show that a run takes longer than its interval.
MAX_WAITING = 10
Turn = Literal["begin", "wait", "skip", "replace"]


@dataclass(frozen=True)
class Due:
    """What is due of one schedule.

    punctual, caught_up: the scheduled times to begin with now, in order.
    missed: how many are not made up for, `first_missed` and `last_missed` the ends of their row.
    until: the time up to which this decides.
    """

    punctual: Sequence[datetime]
    caught_up: Sequence[datetime]
    missed: int
    first_missed: datetime | None
    last_missed: datetime | None
    until: datetime


def judge_due(schedule: Schedule, decided_until: datetime, now: datetime) -> Due | None:
    """Sort the times that have come since `decided_until`; None where none has.

    A clock that was set back is followed, and what it tells twice begins once, since a firing's name is its time.
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
        # One that is on time makes up for those before it.
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
    """Return a firing's delay, 0 to `jitter_s`: the same each time it is asked for, another for each firing."""
    digest = hashlib.sha256(firing.encode()).digest()
    return timedelta(seconds=round(int.from_bytes(digest[:8]) / 2**64 * jitter_s, 3))


def judge_overlap(firing: Firing, others: Sequence[Firing]) -> tuple[Turn, str]:
    """Decide whether a firing may begin.

    Args:
        others: the same schedule's firings that are going or wait for their turn.

    Returns:
        "begin"; "wait" until the others have ended; "skip" it; or "replace" the others, and wait for their end.
        And why, in words.
    """
    if not others:
        return "begin", ""
    names = ", ".join(other.name for other in others)
    overlap = firing.schedule.overlap
    if firing.kind == "caught_up" or overlap == "queue":
        waiting = sum(other.state == "waiting" for other in others)
        if waiting >= MAX_WAITING and firing.kind != "caught_up":
            return "skip", f"{waiting} earlier firings wait for their turn already."
        return "wait", f"waits for {names}"
    if overlap == "replace":
        return "replace", f"takes the place of {names}"
    verb = "was" if len(others) == 1 else "were"
    return "skip", f"{names} {verb} still going."
