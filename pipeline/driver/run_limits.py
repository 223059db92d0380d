"""RunLimits: the deadline and the largest cost at which a session stops by itself."""

import logging
import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pipeline.driver.worker_time import WorkerTime
from pipeline.errors import RunError, StorageError
from pipeline.job_spec.budget import BudgetSection
from pipeline.job_spec.deadline import deadline_after, local_text
from pipeline.runs.cost import RunCost, read_cost, write_cost
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from pipeline.text import format_duration

log = logging.getLogger(__name__)

Limit = Literal["", "deadline", "max_cost"]
# As often as the lease is renewed: what a driver that is killed has spent since then is not known.
RECORD_EVERY_S = 15.0
DURATIONS_KEPT = 101
# The session looks at its workers every quarter of a second (`session.TICK_S`), a busy one a little later.
LOOK_S = 0.5
# The speed of the first minutes of work says little.
LATE_AFTER_S = 120.0
# Storage that hangs must not delay the end of a run.
CLOSE_S = 5.0


@dataclass(frozen=True)
class LimitReached:
    """The limit at which a run stops, and why, as the beginning of a sentence without its full stop."""

    limit: Limit
    reason: str
    way_out: str


class RunLimits:
    """Judges a session by the clock and by what its workers cost.

    Attributes:
        deadline: UTC, None without one.
        time: the workers' time in this session.
    """

    def __init__(
        self,
        budget: BudgetSection,
        *,
        began: datetime | None = None,
        before: RunCost | None = None,
        record: Callable[[RunCost], None] | None = None,
        time: WorkerTime | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Settle the deadline.

        Args:
            began: when the command began, from which a duration counts; now when None.
            before: what earlier sessions of the run have cost.
            record: stores the cost so far; called in another thread, and only when there is a price.
            now: the time of the deadline, UTC.
        """
        self._budget = budget
        self._before = before or RunCost()
        self._record = record
        self._now = now
        self.time = time or WorkerTime()
        self.deadline = deadline_after(budget.deadline, began or now()) if budget.deadline else None
        self._durations_s: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._recorded_at = now()
        self._is_late_noted = False
        self._recording: threading.Thread | None = None

    @property
    def budget(self) -> BudgetSection:
        """The prices and limits of the spec."""
        return self._budget

    def cost(self) -> RunCost:
        """Return the cost of the run so far, earlier sessions included."""
        return self._before.plus(self.time.running_s, self._budget.worker_price)

    def shard_ended(self, seconds: float) -> None:
        """Note how long a shard took, from its start to its commit."""
        self._durations_s.append(seconds)

    def reached(self) -> LimitReached | None:
        """Return the limit that is reached, or would be before the next look; None while none is."""
        seconds, limit = self._nearest()
        is_reached = (limit == "deadline" and seconds <= 0) or (limit == "max_cost" and seconds <= LOOK_S)
        return self.at(limit) if is_reached else None

    def closing(self) -> LimitReached | None:
        """Return the limit that comes before a shard that begins now would end; None while there is time for one."""
        if not self._durations_s:
            return None
        seconds, limit = self._nearest()
        if limit == "" or seconds > statistics.median(self._durations_s):
            return None
        return self.at(limit)

    def at(self, limit: Limit) -> LimitReached:
        """Return the reason for a stop at a limit now."""
        return self._deadline_reached() if limit == "deadline" else self._cost_reached()

    @property
    def usual_shard_s(self) -> float | None:
        """How long a shard takes, by the median; None before one has ended."""
        return statistics.median(self._durations_s) if self._durations_s else None

    def late_note(self, eta_s: float | None) -> str:
        """Return one sentence, once, when what is left would exceed a limit at the present speed; "" otherwise.

        Args:
            eta_s: seconds until all images are done; None while that is unknown.
        """
        is_known = self.time.busy_s >= LATE_AFTER_S * max(1, self.time.running)
        if self._is_late_noted or eta_s is None or not is_known:
            return ""
        notes = []
        if self.deadline is not None and (late_s := eta_s - (self.deadline - self._now()).total_seconds()) > 0:
            deadline = local_text(self.deadline, self._budget.deadline or "")
            notes.append(f"the run would end {format_duration(late_s)} after its deadline, {deadline}")
        spent, price, most = self.cost().amount, self._budget.worker_price, self._budget.max_cost
        if most is not None and spent is not None and price is not None:
            total = spent + eta_s / 3600 * self.time.running * price
            if total > most:
                notes.append(f"it would cost about {self._budget.amount(total)} of at most {self._budget.amount(most)}")
        self._is_late_noted = bool(notes)
        return f"At the present speed {' and '.join(notes)}." if notes else ""

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and self._now() >= self.deadline

    def keep_record(self, *, is_last: bool = False) -> None:
        """Store the cost so far where that is due, in another thread; `is_last`: now, and wait for it."""
        if self._record is None or self._budget.worker_price is None:
            return
        is_due = (self._now() - self._recorded_at).total_seconds() >= RECORD_EVERY_S
        if is_last or (is_due and not self._is_recording()):
            self._begin_record(patience_s=CLOSE_S if is_last else 0.0)
        if is_last and self._is_recording(patience_s=CLOSE_S):
            log.warning("the cost of the run could not be recorded in %.0f s", CLOSE_S)

    def _begin_record(self, *, patience_s: float) -> None:
        # Two at once could end in the wrong order.
        if self._record is None or self._is_recording(patience_s=patience_s):
            return
        self._recorded_at = self._now()
        arguments = (self._record, self.cost())
        # A daemon, because storage that hangs must not keep the process from ending.
        self._recording = threading.Thread(target=_recorded, args=arguments, name="cost file", daemon=True)
        self._recording.start()

    def _is_recording(self, *, patience_s: float = 0.0) -> bool:
        if self._recording is not None:
            self._recording.join(patience_s)
        return self._recording is not None and self._recording.is_alive()

    def _nearest(self) -> tuple[float, Limit]:
        """Return the seconds to the limit that comes first at the present number of workers, and which it is."""
        limits: list[tuple[float, Limit]] = []
        if self.deadline is not None and self._budget.on_deadline == "stop":
            limits.append(((self.deadline - self._now()).total_seconds(), "deadline"))
        spent, price = self.cost().amount, self._budget.worker_price
        if self._budget.max_cost is not None and spent is not None and price:
            left = self._budget.max_cost - spent
            per_s = max(1, self.time.running) * price / 3600
            limits.append((left / per_s, "max_cost"))
        return min(limits, default=(float("inf"), ""))

    def _deadline_reached(self) -> LimitReached:
        deadline = self.deadline or self._now()
        words = f"Stopped at its deadline, {local_text(deadline, self._budget.deadline or '')}"
        return LimitReached("deadline", words, "run the same command again, with a later --deadline, to resume")

    def _cost_reached(self) -> LimitReached:
        cost, budget = self.cost(), self._budget
        words = (
            f"Stopped at its largest cost: {budget.amount(cost.amount or 0.0)} of "
            f"{budget.amount(budget.max_cost or 0.0)} are spent on {cost.worker_s / 3600:.3g} worker-hours"
        )
        return LimitReached("max_cost", words, "run the same command with a higher --max-cost to resume")

    def closing_note(self, reached: LimitReached) -> str:
        """Return one sentence: why no further shard begins."""
        name = "deadline" if reached.limit == "deadline" else "largest cost"
        return (
            f"No further shard begins: one takes about {format_duration(self.usual_shard_s)}, which is past the run's "
            f"{name}; those in flight may still end."
        )


def open_limits(budget: BudgetSection, run: RunHandle, storage: Storage, *, began: datetime) -> RunLimits:
    """Return the limits of a session of a run, with what earlier sessions have cost.

    Raises:
        StorageError: storage failed.
    """
    before = RunCost() if run.state == "new" else read_cost(storage, run.output_uri, run.name)

    def record(cost: RunCost) -> None:
        run.check_lease()
        write_cost(storage, run.output_uri, run.name, cost, currency=budget.currency)

    return RunLimits(budget, began=began, before=before, record=record if run.has_lease else None)


def _recorded(record: Callable[[RunCost], None], cost: RunCost) -> None:
    try:
        record(cost)
    except (RunError, StorageError) as error:
        # The run does not need it, except to count what a killed driver has spent.
        log.warning("the cost of the run was not recorded: %s", error)
