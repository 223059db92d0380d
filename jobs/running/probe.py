"""Measures a worker's rate on a sample of the input, with the spec's model, on this machine.

The sample goes the way of a shard through a real worker, in this process and without Ray: read, decode, infer, encode.
Nothing is written. The first round is not counted, because a model's first images are slower.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline import logs
from pipeline.errors import HtcError, RunError, SpecError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.model import ModelSection
from pipeline.messages import Assignment, PartialResult, ShardFailure, WorkerFailure
from pipeline.planning.estimate import WorkerRate, mean_range
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.storage.storage import Storage
from pipeline.text import count_of, format_duration
from pipeline.weights.cache import weights_here

if TYPE_CHECKING:
    from pipeline.worker.worker import Worker

# On a CPU, a minute or so for published networks; a GPU needs several batches in each round.
CPU_IMAGES = 24
GPU_IMAGES = 256
ROUNDS = 6
# Of the model's first images, not counted.
WARM_UP_IMAGES = 2
PROBE_RUN = "probe"


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    rate: None when no image of the sample could be read. failures: URI and reason of the images that are not ok.
    images: the sample. problem: one sentence when there is no rate, else "".
    """

    rate: WorkerRate | None
    images: int
    failures: list[tuple[str, str]] = field(default_factory=list)
    load_s: float = 0.0
    problem: str = ""


def probe_images(plan: WorkerPlan) -> int:
    """Return how many images a probe takes when that is not said."""
    return GPU_IMAGES if plan.gpus else CPU_IMAGES


def run_probe(spec: JobSpec, storage: Storage, sample: Sequence[ImageRef], plan: WorkerPlan) -> Probe:
    """Load the model as a worker does, and measure it on the images.

    Args:
        spec: its model section names the preset.
        storage: listed the images, and knows their signed addresses.
        sample: in the order of their sizes, so that each round gets the same mix.
        plan: the cores and GPUs of one worker of this machine.

    Raises:
        SpecError: the weights are not on this machine.
        HtcError: the model cannot be loaded, or storage fails.
    """
    from pipeline.driver.run_job import worker_settings
    from pipeline.worker.worker import Worker

    for member in spec.model.members:
        _check_weights(member)
    if not sample:
        raise SpecError("There is no image to probe; leave out --probe.")
    settings = replace(worker_settings(spec, PROBE_RUN), cpus=plan.cpus, gpus=plan.gpus)
    worker = Worker(settings)
    # A worker logs as a service does; a command shows its results only.
    logs.configure()
    ready = worker.start()
    if isinstance(ready, WorkerFailure):
        error = RunError(ready.reason)
        error.exit_code = ready.exit_code
        raise error
    shard = Shard(0, tuple(sample), storage.signed.find_all(ref.container or ref.uri for ref in sample))
    # Round r takes every ROUNDS-th image, from the r-th on: each has images of all sizes.
    rounds = [positions for first in range(ROUNDS) if (positions := tuple(range(first, len(sample), ROUNDS)))]
    _segment(worker, shard, _warm_up(rounds))
    rates: list[float] = []
    failures: list[tuple[str, str]] = []
    seconds = 0.0
    for positions in rounds:
        start = time.perf_counter()
        done = _segment(worker, shard, positions)
        round_s = time.perf_counter() - start
        seconds += round_s
        rates.append(len(positions) / round_s)
        failures += [(each.uri, f"{each.status}: {each.reason}") for each in done.report.failures]
    if len(failures) == len(sample):
        uri, reason = failures[0]
        problem = (
            f"None of the {count_of(len(sample), 'image')} of the probe could be segmented, so there is no estimate; "
            f"the first: {uri}: {reason}."
        )
        return Probe(None, len(sample), failures, ready.load_s, problem)
    rate = len(sample) / seconds
    span = mean_range(rates)
    counted = f"{count_of(len(sample), 'image')} in {format_duration(seconds)} on one worker of this machine"
    failed = f", {count_of(len(failures), 'image')} of them not ok" if failures else ""
    measured = WorkerRate(
        rate,
        low=None if span is None else min(span[0], rate),
        high=None if span is None else max(span[1], rate),
        source="probe",
        description=f"probe just now: {counted}{failed}",
        machine=ready.machine,
    )
    return Probe(measured, len(sample), failures, ready.load_s)


def _warm_up(rounds: Sequence[Sequence[int]]) -> tuple[int, ...]:
    middle = rounds[len(rounds) // 2]
    return tuple(middle[:WARM_UP_IMAGES])


def _segment(worker: "Worker", shard: Shard, positions: tuple[int, ...]) -> PartialResult:
    # With positions the rows come back, and no table is written; the last attempt makes each failure a row.
    outcome = worker.run_shard(shard, Assignment(0, 1, is_last=True, positions=positions))
    if isinstance(outcome, ShardFailure):
        raise HtcError(f"The probe failed: {outcome.reason}")
    if not isinstance(outcome, PartialResult):
        raise TypeError("a probe commits nothing")
    return outcome


def _check_weights(section: ModelSection) -> None:
    if section.weights == "untrained" or (section.factory is not None and section.weights == "default"):
        return
    weights = weights_here(section)
    if weights is None:
        raise SpecError(
            f"A probe needs the weights of {section.preset} on this machine; fetch them with: htc weights fetch "
            f"{section.preset}"
        )
    if not weights.exists():
        raise SpecError(f"There is no weights file {weights}.")
