"""A firing: one scheduled time of one schedule, and what became of it."""

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

    outcome: the run's, see `pipeline.runs.outcomes`; or what kept it from having one: "failed" (it could not begin, or
        broke off), "lost" (its process vanished), "stopped" (at its deadline), "replaced" (by the next firing),
        "skipped" (the one before was still going), "missed" (no scheduler was there).
    exit_code: of `htc run`; None where nothing ran.
    reason: one sentence for a person, empty for "complete".
    counts: images, images_done, instances, failed, seconds of the run, where they are known.
    """

    outcome: Outcome
    reason: str = ""
    exit_code: int | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Firing:
    """One scheduled time of one schedule; `name` is also the name of its run.

    schedule: as it stood when the time came.
    scheduled, begins: the time that cron means, and that time with the jitter; UTC.
    kind: "cron" at its time, "caught_up" later, "manual" by `htc schedule run-now`.
    state: "due" until `begins`, "waiting" for its turn, "starting" from the moment somebody may have started it,
        "running", "stopping", "ended".
    handle: the cluster's job id, or the process number.
    starts: how often it was started; more than once after its process vanished.
    is_late: whether it has been reported as not ended by its deadline.
    stop_outcome: what it ends as, once it was asked to stop; `stop_asked` is when.
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
        """Whether a run of it may be going on."""
        return self.state in GOING

    @property
    def deadline(self) -> datetime | None:
        """When it must have ended."""
        seconds = self.schedule.deadline_s
        return None if seconds is None else self.scheduled + timedelta(seconds=seconds)


def ending_from(tree: object) -> Ending:
    """Make an ending of the JSON that was written of one.

    Raises:
        ValueError: it is not one.
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
    """Name a firing and its run: the same time of the same schedule has the same name always."""
    mark = "-now" if kind == "manual" else ""
    return f"{schedule}-{scheduled.astimezone(UTC):%Y%m%d-%H%M%S}{mark}"
