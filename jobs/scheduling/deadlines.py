"""A firing's deadline and its run: the run learns of it, and is reported before it starts when it will be late."""

import statistics
from collections.abc import Sequence

from jobs.scheduling.firing import Firing
from jobs.scheduling.schedule import Schedule
from pipeline.job_spec.job import JobSpec
from pipeline.text import count_of, format_duration

# Newest firings of a schedule whose runs say how long the next one takes.
RUNS_COMPARED = 5


def with_deadline(job: JobSpec, firing: Firing) -> JobSpec:
    """Return the job spec with the firing's deadline, unless it has one of its own.

    The run then compares its images with the time that is left, and with `on_deadline: stop` stops by itself, also when
    no scheduler runs by then.
    """
    if firing.deadline is None or job.budget.deadline is not None:
        return job
    on_deadline = "stop" if firing.schedule.on_deadline == "stop" else "warn"
    keys = {"deadline": firing.deadline.isoformat(), "on_deadline": on_deadline}
    return job.model_copy(update={"budget": job.budget.model_copy(update=keys)})


def usual_seconds(history: Sequence[Firing]) -> tuple[float, int] | None:
    """Return how long the newest complete runs took, by their median, and how many they are; None without one."""
    seconds = [
        (firing.ended - firing.begun).total_seconds()
        for firing in history
        if firing.ending is not None
        and firing.ending.outcome == "complete"
        and firing.ending.counts.get("images", 1)
        and firing.begun is not None
        and firing.ended is not None
    ][:RUNS_COMPARED]
    return (statistics.median(seconds), len(seconds)) if seconds else None


def late_warning(name: str, left_s: float, history: Sequence[Firing]) -> str:
    """Return one sentence when a run would take longer than it has, by the runs before it; "" otherwise.

    Args:
        name: what the sentence is about. left_s: seconds until the deadline.
        history: the schedule's firings, the newest first.
    """
    usual = usual_seconds(history)
    if usual is None or usual[0] <= left_s:
        return ""
    seconds, runs = usual
    return (
        f"{name} will probably not end by its deadline: it has {format_duration(max(0.0, left_s))}, and the last "
        f"{count_of(runs, 'complete run')} took {format_duration(seconds)}; see htc plan --deadline."
    )


def schedule_warning(schedule: Schedule, history: Sequence[Firing]) -> str:
    """Return one sentence when a schedule's deadline is shorter than its runs usually take; "" otherwise."""
    if schedule.deadline_s is None:
        return ""
    return late_warning(f"A run of {schedule.name}", schedule.deadline_s - schedule.jitter_s, history)
