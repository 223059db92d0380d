"""A firing: one scheduled time of one schedule, its state and its ending."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from jobs.scheduling.schedule import Schedule
from pipeline.runs import outcomes

Kind = Literal["cron", "caught_up", "manual"]
State = Literal["due", "waiting", "starting", "running", "stopping", "ended"]
Outcome = Literal[
    outcomes.Outcome,
    "failed",
    "lost",
    "stopped",
    "replaced",
    "skipped",
    "missed",
]
GOING: tuple[State, ...] = ("starting", "running", "stopping")


@dataclass(frozen=True)
class Ending:
    """How a firing ended.

    outcome: the run's, see `pipeline.runs.outcomes`; or, without one: "failed" (it could not begin, or broke off),
        "lost" (its process vanished), "stopped" (at its deadline or by the user), "replaced" (by the next firing),
        "skipped" (the firing before was still running), "missed" (no scheduler was running).
    exit_code: of `htc run`; None if nothing ran.
    reason: one sentence for the user, empty for "complete".
    counts: images, images_done, instances, failed, seconds of the run, if known.
    """

    outcome: Outcome
    reason: str = ""
    exit_code: int | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Firing:
    """One scheduled time of one schedule; `name` is also the name of its run.

    schedule: as it was at the scheduled time.
    scheduled, begins: the time that the cron expression gives, and that time plus the jitter; UTC.
    kind: "cron" at its time, "caught_up" later, "manual" by `htc schedule run-now`.
    state: "due" until `begins`, "waiting" for its turn, "starting" from the moment it may have been started,
        "running", "stopping", "ended".
    handle: the cluster's job id, or the process number.
    starts: how often it was started; more than once after its process vanished.
    is_late: whether it has been reported as not ended by its deadline.
    stop_outcome: the outcome to record once it was asked to stop; `stop_asked` is when.
    """

    name: str
    schedule: Schedule
    scheduled: datetime
    begins: datetime
    kind: Kind = "cron"
    state: State = "due"
    handle: str | None = None
    starts: int = 0
    is_late: bool = False
    stop_outcome: Outcome | None = None
    stop_asked: datetime | None = None
    reason: str = ""
    begun: datetime | None = None
    ended: datetime | None = None
    ending: Ending | None = None

    @property
    def is_active(self) -> bool:
        """Whether its run may be in progress."""
        return self.state in GOING

    @property
    def deadline(self) -> datetime | None:
        """Time by which it must have ended, UTC; None without a deadline."""
        seconds = self.schedule.deadline_s
        return None if seconds is None else self.scheduled + timedelta(seconds=seconds)


def ending_from(tree: object) -> Ending:
    """Build an ending from its JSON.

    Raises:
        ValueError: the JSON is not an ending.
    """
    if not isinstance(tree, Mapping):
        raise ValueError("it is not a table")
    outcome = next((known for known in get_args(Outcome) if known == tree.get("outcome")), None)
    reason, exit_code, counts = (tree.get(key) for key in ("reason", "exit_code", "counts"))
    if outcome is None:
        raise ValueError(f"its outcome is {tree.get('outcome')!r}")
    if not isinstance(reason, str) or not (exit_code is None or type(exit_code) is int):
        raise ValueError("its reason is not text, or its exit code not a whole number")
    if not isinstance(counts, Mapping):
        raise ValueError("its counts are not a table")
    if not all(isinstance(count, int | float) and math.isfinite(count) for count in counts.values()):
        raise ValueError("its counts are not numbers")
    return Ending(outcome, reason, exit_code, counts)


def firing_name(schedule: str, scheduled: datetime, kind: Kind) -> str:
    """Return the name of a firing and of its run: the same time of the same schedule always has the same name."""
    suffix = "-now" if kind == "manual" else ""
    return f"{schedule}-{scheduled.astimezone(UTC):%Y%m%d-%H%M%S}{suffix}"
