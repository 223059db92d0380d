"""Whether a run is expected to keep its deadline and its largest cost: said before it starts."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.driver.progress import ProgressDisplay
from pipeline.driver.run_limits import RunLimits
from pipeline.errors import SpecError
from pipeline.job_spec.budget import BudgetSection
from pipeline.job_spec.deadline import local_text
from pipeline.planning.estimate import Estimate, PricedPool, Work, WorkerRate, estimate_run, judge
from pipeline.runs.begin import remove_begun
from pipeline.runs.measured_rate import last_rate
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from pipeline.text import count_of, format_duration


class LateRunError(SpecError):
    """The run is expected to exceed its deadline or its largest cost, and `budget.refuse_late` forbids to start it."""


def rate_before(
    budget: BudgetSection,
    storage: Storage,
    output_uri: str,
    *,
    fingerprint: Mapping[str, Any],
    identity: Mapping[str, object],
) -> WorkerRate | None:
    """Return a worker's rate in the last run here that did the same work; None without one or without a limit.

    Args:
        fingerprint, identity: see `last_rate`.

    Raises:
        StorageError: the output cannot be read.
    """
    if budget.deadline is None and budget.max_cost is None:
        return None
    found = last_rate(storage, output_uri, fingerprint=fingerprint, identity=identity)
    return None if found is None else found.rate


def announce_limits(
    run: RunHandle,
    limits: RunLimits,
    rate: WorkerRate | None,
    storage: Storage,
    display: ProgressDisplay,
    *,
    workers: int,
) -> None:
    """Report before any worker starts when the run is not expected to keep its deadline or its largest cost.

    Raises:
        LateRunError: it is not, and must not start then.
    """
    budget = limits.budget
    if run.state == "complete" or (limits.deadline is None and budget.max_cost is None):
        return
    if rate is None:
        if budget.refuse_late:
            display.note("Whether the run keeps its limits is not known: no run of this output measured the model.")
        return
    problem = forecast(run, limits, rate, workers=workers)
    if problem and budget.refuse_late:
        raise _refused(run, storage, problem)
    if problem:
        display.note(problem)
    elif not run.is_planned:
        _announce_when_planned(run, limits, rate, display, workers)


def _announce_when_planned(
    run: RunHandle, limits: RunLimits, rate: WorkerRate, display: ProgressDisplay, workers: int
) -> None:
    before = run.when_planned

    def again() -> None:
        if before is not None:
            before()
        if problem := forecast(run, limits, rate, workers=workers):
            display.note(problem)

    run.when_planned = again


def _refused(run: RunHandle, storage: Storage, problem: str) -> LateRunError:
    if run.state == "new" and not run.manifest.selection:
        # An incremental run has written its deletion records; the same command resumes it.
        remove_begun(storage, run.output_uri, run.name)
    return LateRunError(
        f"{problem} Nothing was started, as refuse_late is set (--refuse-late); give it more workers, a later "
        "--deadline or a higher --max-cost."
    )


def forecast(run: RunHandle, limits: RunLimits, rate: WorkerRate, *, workers: int, now: datetime | None = None) -> str:
    """Return one sentence when the run is not expected to keep its limits as it is now; "" when it is.

    While the input is still being listed, only the images that are planned count.

    Args:
        rate: of a worker. workers: how many the run is expected to have.
    """
    shards = run.shards_left
    if not shards:
        return ""
    images = min(run.image_count, shards * run.manifest.shard_images)
    price = limits.budget.worker_price
    estimate = estimate_run(
        PricedPool(workers, workers, price), Work(images, shards), rate, start_up_s=rate.start_up_s or 0.0
    )
    rested = f"estimated for {count_of(images, 'image')} on {count_of(workers, 'worker')} from {rate.description}"
    problems = [*_past_deadline(estimate, limits, now or datetime.now(UTC)), *_past_cost(estimate, limits)]
    return f"{'; '.join(problems)} ({rested})." if problems else ""


def _past_deadline(estimate: Estimate, limits: RunLimits, now: datetime) -> list[str]:
    if limits.deadline is None:
        return []
    left_s = (limits.deadline - now).total_seconds()
    verdict = judge(estimate.seconds, estimate.high_s, left_s)
    if verdict == "yes":
        return []
    verb = "may end" if verdict == "perhaps" else "is expected to end"
    end = "" if limits.budget.on_deadline == "warn" else ", where it stops"
    deadline = local_text(limits.deadline, limits.budget.deadline or "")
    return [
        f"The run {verb} after its deadline, {deadline}{end}: it takes "
        f"about {format_duration(estimate.seconds)}, and there are {format_duration(max(0.0, left_s))}"
    ]


def _past_cost(estimate: Estimate, limits: RunLimits) -> list[str]:
    most, spent = limits.budget.max_cost, limits.cost().amount or 0.0
    if most is None or estimate.amount is None or spent + estimate.amount <= most:
        return []
    amount = limits.budget.amount
    before = f", {amount(spent)} of it spent already" if spent else ""
    return [
        f"The run is expected to stop at its largest cost, {amount(most)}: all of it costs about "
        f"{amount(spent + estimate.amount)}{before}"
    ]
