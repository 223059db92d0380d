"""Schedules as metrics for Prometheus: whether a scheduler runs, what is due, how the last firings ended."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry

from jobs.monitoring.metrics import SCHEDULE_METRICS, Gauges, Sample
from jobs.scheduling.cron import due_times
from jobs.scheduling.home import is_scheduler_running
from jobs.scheduling.store import ScheduleStore, StoredSchedule
from pipeline.redaction import redact

# The newest firings of a schedule among which its last complete run is looked for.
HISTORY = 500


def read_samples(home: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> list[Sample]:
    """Return the samples of all schedules of a folder, as they are now.

    Raises:
        SpecError: its database cannot be read.
    """
    with closing(ScheduleStore(home)) as store:
        samples = [Sample("htc_scheduler_up", (), float(is_scheduler_running(home)))]
        for stored in store.schedules():
            samples += _schedule_samples(store, stored, clock())
        return samples


def registry_of(home: Path) -> CollectorRegistry:
    """Return what `htc scheduler --listen` serves."""
    registry = CollectorRegistry()
    registry.register(Gauges(lambda: read_samples(home), SCHEDULE_METRICS))
    return registry


def _schedule_samples(store: ScheduleStore, stored: StoredSchedule, now: datetime) -> Iterator[Sample]:
    schedule = stored.schedule
    name = redact(schedule.name)
    yield Sample("htc_schedule_paused", (name,), float(schedule.is_paused))
    # A paused schedule's past times were not missed.
    after = now if schedule.is_paused else stored.decided_until
    following = next(due_times(schedule.cron, schedule.time_zone, after), None)
    if following is not None:
        yield Sample("htc_schedule_next_timestamp_seconds", (name,), following.timestamp())
    firings = store.history(schedule.name, HISTORY)
    late = [firing for firing in firings if firing.state != "ended" and firing.deadline and firing.deadline <= now]
    yield Sample("htc_schedule_late_runs", (name,), len(late))
    ended = [firing for firing in firings if firing.ending is not None and firing.ended is not None]
    if ended:
        # What was skipped or replaced, as the schedule says, is no outcome.
        judged = [f for f in ended if f.ending is not None and f.ending.outcome not in ("skipped", "replaced")]
        if judged and judged[0].ending is not None:
            labels = (name, judged[0].name, judged[0].ending.outcome)
            yield Sample("htc_schedule_last_outcome", labels, 1.0)
        complete = [f for f in ended if f.ending is not None and f.ending.outcome == "complete" and f.ended]
        if complete and complete[0].ended is not None:
            yield Sample("htc_schedule_last_success_timestamp_seconds", (name,), complete[0].ended.timestamp())
