"""The estimates of `htc plan`: time and money for one or several worker pools, as text and as JSON."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.running.probe import Probe
from jobs.terminal.console import Alignment, write_line, write_table
from pipeline.errors import SpecError
from pipeline.job_spec.budget import BudgetSection, amount_text
from pipeline.job_spec.deadline import deadline_after, local_text, parse_duration
from pipeline.job_spec.job import JobSpec
from pipeline.output.run_record import list_records
from pipeline.planning.estimate import Estimate, PricedPool, Spot, Verdict, Work, WorkerRate, estimate_run, judge
from pipeline.planning.shard_size import choose_shard_images
from pipeline.redaction import redact
from pipeline.runs.measured_rate import RateOfRun, last_rate
from pipeline.storage.storage import Storage
from pipeline.text import count_of, format_duration

# From the start of `htc run` until Ray runs and has started the workers' processes, where no run was measured: some 6 s
# on an idle machine of two cores (docs/benchmarks.md, `htc start s`).
RAY_START_S = 6.0
# An assumption: one interruption in twenty worker-hours. What a provider publishes is per month and instance type.
INTERRUPTIONS_PER_HOUR = 0.05
# Images of another mean size take another time.
OTHER_SIZE = 1.5
Line = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """The flags of `htc plan` about estimates; see its help.

    workers: "N", "MIN:MAX" or "auto", one for each pool. is_price_given: whether the command line holds a price.
    """

    workers: tuple[str, ...] = ()
    is_price_given: bool = False
    is_probed: bool = False
    probe_images: int | None = None
    like: str | None = None
    images_per_s: float | None = None
    start_up: str | None = None
    scale_up: str | None = None
    spot_share: float | None = None
    spot_price_per_hour: float | None = None
    spot_discount: float | None = None
    spot_interruptions: float | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the command line asks for anything that needs a rate."""
        sources = (self.is_probed, self.like, self.images_per_s)
        return any(sources) or self.is_price_given or len(self.workers) > 1


@dataclass(frozen=True)
class CostPlan:
    """The estimates, and what they rest on.

    start_up: seconds, and where they come from. notes: what an operator should know about the rate.
    deadline: UTC; limit_s: seconds from now until then. verdicts: whether each pool keeps every limit.
    cheapest: the position of the cheapest pool that does, or without prices of the fastest; None for none.
    workers_needed: the fewest workers that would keep the deadline, when no pool does; None where no number does.
    spent: what the run that would be resumed has cost already.
    """

    rate: WorkerRate
    start_up: tuple[float, str]
    estimates: Sequence[Estimate]
    notes: Sequence[str]
    budget: BudgetSection
    deadline: datetime | None
    limit_s: float | None
    verdicts: Sequence[Verdict]
    cheapest: int | None
    workers_needed: int | None
    spent: float = 0.0

    @property
    def cost_left(self) -> float | None:
        """What the run may still cost; None without a largest cost."""
        return None if self.budget.max_cost is None else self.budget.max_cost - self.spent

    @property
    def has_limits(self) -> bool:
        """Whether there is a deadline or a largest cost."""
        return self.limit_s is not None or self.budget.max_cost is not None

    @property
    def is_kept(self) -> bool:
        """Whether one of the pools is expected to keep the deadline and the largest cost."""
        return not self.has_limits or any(verdict != "no" for verdict in self.verdicts)


def check_options(options: EstimateOptions, spec: JobSpec) -> None:
    """Check the flags before anything is listed.

    Raises:
        SpecError: they contradict each other, or lack something.
    """
    sources = {"--probe": options.is_probed, "--like": options.like, "--images-per-s": options.images_per_s}
    given = [name for name, value in sources.items() if value is not None and value is not False]
    if len(given) > 1:
        raise SpecError(f"{' and '.join(given)} are different sources of one rate; keep one.")
    for text in options.workers:
        parse_workers(text)
    has_number = any(text != "auto" for text in options.workers) or spec.compute.workers != "auto"
    if options.is_price_given and not has_number:
        raise SpecError("A price needs a number of workers: give --workers N, repeated to compare several numbers.")
    _positive("--images-per-s", options.images_per_s)
    _positive("--probe-images", options.probe_images)
    _check_spot(options, spec.budget)


def _check_spot(options: EstimateOptions, budget: BudgetSection) -> None:
    share, price = options.spot_share, budget.worker_price
    others = {
        "--spot-price-per-hour": options.spot_price_per_hour,
        "--spot-discount": options.spot_discount,
        "--spot-interruptions": options.spot_interruptions,
    }
    if share is None:
        for name, value in others.items():
            if value is not None:
                raise SpecError(f"{name} is about spot workers; name their share with --spot-share, such as 0.8.")
        return
    if not 0 <= share <= 1:
        raise SpecError(f"--spot-share must be a share of the workers, from 0 to 1, not {share:g}.")
    if options.spot_price_per_hour is not None and options.spot_discount is not None:
        raise SpecError("--spot-price-per-hour and --spot-discount name one price twice; keep one.")
    if options.spot_discount is not None:
        _check_discount(options.spot_discount, price)
    elif price is not None and options.spot_price_per_hour is None:
        raise SpecError("With --spot-share, name what a spot worker costs: --spot-price-per-hour or --spot-discount.")
    for name in ("--spot-price-per-hour", "--spot-interruptions"):
        value = others[name]
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise SpecError(f"{name} must be a number, 0 or more, not {value:g}.")


def _check_discount(discount: float, price: float | None) -> None:
    if not 0 <= discount < 1:
        raise SpecError(f"--spot-discount must be a share of the price, from 0 to 1, not {discount:g}.")
    if price is None:
        raise SpecError("--spot-discount needs the price that it is taken from: --price-per-hour.")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise SpecError(f"{name} must be a number above 0, not {value:g}.")


def parse_workers(text: str) -> tuple[int, int] | None:
    """Read "N" or "MIN:MAX"; None for "auto".

    Raises:
        SpecError: it is none of these.
    """
    if text.strip() == "auto":
        return None
    match = re.fullmatch(r"(\d{1,7})(?::(\d{1,7}))?", text.strip())
    if match is None:
        raise SpecError(f"--workers must be a number, MIN:MAX or auto, not {text!r}.")
    least = int(match.group(1))
    most = int(match.group(2) or least)
    if least < 1 or most < least:
        raise SpecError(f"--workers must be a number of at least 1, or MIN:MAX with MAX not below MIN, not {text!r}.")
    return least, most


def rate_of_runs(
    spec: JobSpec, storage: Storage, fingerprint: Mapping[str, Any], *, like: str | None, now: datetime
) -> RateOfRun | None:
    """Return the rate of the last run that did the same work in the spec's output, or in what `like` names.

    Raises:
        SpecError: `like` names no run of this model and work that has worked on an image.
        StorageError: the output cannot be read.
    """
    gpus = spec.compute.gpus_per_worker
    device = "" if gpus == "auto" else "cuda" if gpus else "cpu"
    output, run = (spec.output.uri, None) if like is None else _output_and_run(like, storage)
    found = last_rate(
        storage,
        output,
        fingerprint=fingerprint,
        identity=spec.identity(),
        device=device,
        run=run,
        now=now,
    )
    if found is None and like is not None:
        name = f"The run {run} in {output}" if run else f"No run in {output}"
        verb = "has not" if run else "has"
        raise SpecError(
            f"{name} {verb} measured {spec.model.preset} with these weights, views, tiles and maps, and precision "
            f"{spec.model.precision}; name another with --like, or measure with --probe."
        )
    return found


def _output_and_run(like: str, storage: Storage) -> tuple[str, str | None]:
    from pipeline.output.run_record import load_record
    from pipeline.storage.uris import absolute_uri

    uri = absolute_uri(like).rstrip("/")
    if list_records(storage, uri, damaged_runs={}):
        return uri, None
    output, _, run = uri.rpartition("/")
    if output and load_record(storage, output, run) is not None:
        return output, run
    raise SpecError(f"--like names an output, or OUTPUT/RUN; {like} holds no run.")


def pools_of(options: EstimateOptions, spec: JobSpec, here: int) -> list[PricedPool]:
    """Return the pools to estimate; `here`: the workers that a run on this machine would have."""
    price = spec.budget.worker_price
    sizes = [parse_workers(text) or (here, here) for text in options.workers] or [(here, here)]
    return [PricedPool(least, most, price, _spot_of(options, price)) for least, most in sizes]


def _spot_of(options: EstimateOptions, price: float | None) -> Spot | None:
    if options.spot_share is None:
        return None
    spot_price = options.spot_price_per_hour
    if options.spot_discount is not None and price is not None:
        spot_price = price * (1 - options.spot_discount)
    rate = INTERRUPTIONS_PER_HOUR if options.spot_interruptions is None else options.spot_interruptions
    return Spot(options.spot_share, spot_price, rate)


def plan_cost(
    options: EstimateOptions,
    spec: JobSpec,
    rate: WorkerRate,
    pools: Sequence[PricedPool],
    *,
    images: int,
    shards: int,
    is_new: bool,
    listing_s: float,
    load_s: float,
    notes: Sequence[str] = (),
    spent: float = 0.0,
    now: datetime,
) -> CostPlan:
    """Estimate every pool, and judge them by the deadline and the largest cost.

    Args:
        images, shards: left to do, at most. is_new: whether shards of automatic size are still to be made.
        listing_s: how long listing the input took just now. load_s: how long the model took to load here.
        spent: what the run that would be resumed has cost already.
        now: when the run would begin.

    Raises:
        SpecError: a duration is wrong, or spot workers could end no shard.
    """
    start_up = _start_up(options, rate, load_s)
    scale_up_s = parse_duration(options.scale_up, "--scale-up")
    deadline = deadline_after(spec.budget.deadline, now) if spec.budget.deadline else None
    limit_s = None if deadline is None else (deadline - now).total_seconds()

    def estimate(pool: PricedPool) -> Estimate:
        is_auto = is_new and spec.compute.shard_images == "auto" and images > 0
        count = math.ceil(images / choose_shard_images(images, pool.most)) if is_auto else shards
        return estimate_run(pool, Work(images, count, listing_s), rate, start_up_s=start_up[0], scale_up_s=scale_up_s)

    estimates = [estimate(pool) for pool in pools]
    cost_left = None if spec.budget.max_cost is None else spec.budget.max_cost - spent
    verdicts = [_verdict(each, limit_s, cost_left) for each in estimates]
    needed = None
    if limit_s is not None and all(each.seconds > limit_s for each in estimates):
        needed = next((most for most in _sizes(images) if estimate(_of_size(pools[0], most)).seconds <= limit_s), None)
    return CostPlan(
        rate,
        start_up,
        estimates,
        notes,
        spec.budget,
        deadline,
        limit_s,
        verdicts,
        _best(estimates, verdicts),
        needed,
        spent,
    )


def _sizes(images: int) -> Iterator[int]:
    """Yield numbers of workers to try: each at first, then larger by a tenth."""
    workers = 1
    while workers <= min(images, 100_000):
        yield workers
        workers = max(workers + 1, workers * 11 // 10)


def _of_size(pool: PricedPool, workers: int) -> PricedPool:
    return PricedPool(workers, workers, pool.price_per_hour, pool.spot)


def _start_up(options: EstimateOptions, rate: WorkerRate, load_s: float) -> tuple[float, str]:
    given = parse_duration(options.start_up, "--start-up")
    if given is not None:
        return given, "given by hand"
    if rate.start_up_s is not None:
        return rate.start_up_s, "as in that run"
    if load_s:
        return load_s + RAY_START_S, f"{load_s:.1f} s for the model as measured here, {RAY_START_S:g} s for Ray assumed"
    return RAY_START_S, "for Ray, assumed; name what the machines need with --start-up"


def _verdict(estimate: Estimate, limit_s: float | None, cost_left: float | None) -> Verdict:
    verdicts: list[Verdict] = []
    if limit_s is not None:
        verdicts.append(judge(estimate.seconds, estimate.high_s, limit_s))
    if cost_left is not None and estimate.amount is not None:
        verdicts.append(judge(estimate.amount, estimate.high_amount, cost_left))
    return "no" if "no" in verdicts else "perhaps" if "perhaps" in verdicts else "yes"


def _best(estimates: Sequence[Estimate], verdicts: Sequence[Verdict]) -> int | None:
    for wanted in ("yes", "perhaps"):
        fitting = [number for number, verdict in enumerate(verdicts) if verdict == wanted]
        if fitting:
            return min(fitting, key=lambda number: (estimates[number].amount or 0.0, estimates[number].seconds))
    return None


def size_note(found: RateOfRun, bytes_per_image: float | None) -> str:
    """Return a sentence when the images of a run were of another size than these, else ""."""
    before = found.bytes_per_image
    if before is None or bytes_per_image is None or 1 / OTHER_SIZE < bytes_per_image / before < OTHER_SIZE:
        return ""
    return f"these images have {bytes_per_image / before:.1f} times the bytes of that run's; --probe measures them"


def rate_lines(plan: CostPlan) -> Iterator[Line]:
    """Yield the lines on what the estimates rest on."""
    rate = plan.rate
    span = (
        ""
        if rate.low is None or rate.high is None
        else f", {rate.low:.3g} to {rate.high:.3g} by p10 to p90 of what was measured"
    )
    yield "rate", f"{rate.images_per_s:.3g} images/s for each worker{span}"
    yield "", f"from {rate.description}"
    if rate.machine:
        yield "", f"measured on {rate.machine}"
    for note in plan.notes:
        yield "", note
    yield "start-up", f"{format_duration(plan.start_up[0])}, {plan.start_up[1]}"
    spot = plan.estimates[0].pool.spot
    if spot is not None:
        redone = max(each.redone_share for each in plan.estimates)
        yield (
            "spot",
            (
                f"{spot.share:.0%} of the workers, each taken away {spot.interruptions_per_hour:g} times an hour; "
                f"{redone:.1%} of their time is lost"
            ),
        )


def write_estimates(plan: CostPlan) -> None:
    """Write the table of the pools, and which is the cheapest that keeps the limits."""
    is_priced = any(each.amount is not None for each in plan.estimates)
    columns: list[str] = ["workers", "time", "p10-p90", "start-up", "network", "tail", "end", "worker-hours"]
    columns += ["cost", "p10-p90"] if is_priced else []
    columns += ["in time"] if plan.limit_s is not None else []
    columns += ["within cost"] if plan.budget.max_cost is not None else []
    rows = [_row(plan, number, is_priced=is_priced) for number in range(len(plan.estimates))]
    alignments: list[Alignment] = ["right" for _ in columns]
    write_table([*columns, ""], rows, alignments=[*alignments, "left"])
    for sentence in sentences(plan):
        write_line(sentence)


def _row(plan: CostPlan, number: int, *, is_priced: bool) -> list[str]:
    each = plan.estimates[number]
    cells = [
        workers_text(each.pool),
        format_duration(each.seconds),
        _span(each.low_s, each.high_s, format_duration),
        format_duration(each.start_up_s),
        format_duration(each.model_s),
        format_duration(each.tail_s),
        format_duration(each.listing_wait_s + each.commit_s),
        f"{each.worker_hours:.3g}",
    ]
    if is_priced:
        cells.append("" if each.amount is None else plan.budget.amount(each.amount))
        cells.append(_span(each.low_amount, each.high_amount, lambda amount: amount_text(amount, "")))
    if plan.limit_s is not None:
        cells.append(judge(each.seconds, each.high_s, plan.limit_s))
    if plan.cost_left is not None:
        cells.append(judge(each.amount or 0.0, each.high_amount, plan.cost_left))
    mark = "cheapest" if is_priced else "fastest"
    if number == plan.cheapest and len(plan.estimates) > 1:
        return [*cells, f"<- {mark}{' that keeps the limits' if plan.has_limits else ''}"]
    return [*cells, ""]


def _span(low: float | None, high: float | None, words: Any) -> str:
    return "" if low is None or high is None else f"{words(low)} to {words(high)}"


def workers_text(pool: PricedPool) -> str:
    """Return the number of workers as text: "8" or "4:16"."""
    return f"{pool.least}" if pool.least == pool.most else f"{pool.least}:{pool.most}"


def sentences(plan: CostPlan) -> Iterator[str]:
    """Yield what the limits mean for the pools."""
    if plan.deadline is not None and plan.limit_s is not None:
        deadline = local_text(plan.deadline, plan.budget.deadline or "")
        ends = [judge(each.seconds, each.high_s, plan.limit_s) for each in plan.estimates]
        if all(verdict == "no" for verdict in ends):
            shortest = min(each.seconds for each in plan.estimates)
            late = format_duration(shortest - plan.limit_s)
            needed = (
                f"about {count_of(plan.workers_needed, 'worker')} would be needed"
                if plan.workers_needed is not None
                else "no number of workers would do"
            )
            yield f"Begun now, the run cannot end before its deadline, {deadline}: it would be {late} late; {needed}."
        elif "yes" not in ends:
            yield f"Begun now, the run may end after its deadline, {deadline}, as its rate varies."
    max_cost = plan.budget.max_cost
    if max_cost is not None:
        amounts = [each.amount for each in plan.estimates if each.amount is not None]
        if amounts and plan.cost_left is not None and min(amounts) > plan.cost_left:
            before = f", and {plan.budget.amount(plan.spent)} are spent already" if plan.spent else ""
            yield (
                f"The run would stop at its largest cost, {plan.budget.amount(max_cost)}: what is left costs about "
                f"{plan.budget.amount(min(amounts))}{before}."
            )


def estimate_values(plan: CostPlan | None, probe: Probe | None) -> dict[str, Any] | None:
    """Return the estimates for --json; docs/cost.md names the keys. None without an estimate and a probe."""
    probed = probe and {
        "images": probe.images,
        "failed": [{"uri": redact(uri), "reason": redact(reason)} for uri, reason in probe.failures],
    }
    if plan is None:
        return None if probe is None else {"rate": None, "probe": probed, "pools": []}
    rate = plan.rate
    return {
        "rate": {
            "images_per_s": rate.images_per_s,
            "low": rate.low,
            "high": rate.high,
            "source": rate.source,
            "description": rate.description,
            "machine": rate.machine or None,
        },
        "probe": probed,
        "notes": list(plan.notes),
        "start_up_s": plan.start_up[0],
        "start_up_source": plan.start_up[1],
        "price_per_worker_hour": plan.budget.worker_price,
        "currency": plan.budget.currency,
        "max_cost": plan.budget.max_cost,
        "spent": plan.spent,
        "deadline": plan.deadline and plan.deadline.isoformat(),
        "seconds_to_deadline": plan.limit_s,
        "keeps_limits": plan.is_kept if plan.has_limits else None,
        "workers_needed": plan.workers_needed,
        "pools": [_pool_values(plan, number) for number in range(len(plan.estimates))],
    }


def _pool_values(plan: CostPlan, number: int) -> dict[str, Any]:
    each = plan.estimates[number]
    limit_s, cost_left = plan.limit_s, plan.cost_left
    return {
        "workers_least": each.pool.least,
        "workers_most": each.pool.most,
        "seconds": each.seconds,
        "low_seconds": each.low_s,
        "high_seconds": each.high_s,
        "start_up_s": each.start_up_s,
        "network_s": each.model_s,
        "tail_s": each.tail_s,
        "listing_wait_s": each.listing_wait_s,
        "commit_s": each.commit_s,
        "redone_share": each.redone_share,
        "worker_hours": each.worker_hours,
        "amount": each.amount,
        "low_amount": each.low_amount,
        "high_amount": each.high_amount,
        "in_time": None if limit_s is None else judge(each.seconds, each.high_s, limit_s),
        "within_cost": None if cost_left is None else judge(each.amount or 0.0, each.high_amount, cost_left),
        "is_cheapest": number == plan.cheapest,
    }
