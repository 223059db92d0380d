"""Checks whether a spec's model can start on this machine, and times it on one image."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from htc_model.weights.model_zoo import UnknownWeightsError, find
from jobs.terminal.console import size_of
from pipeline.errors import ModelError, WeightsUnavailableError
from pipeline.job_spec.job import JobSpec, ModelSection
from pipeline.machine_limits import usable_memory
from pipeline.messages import ImageFailure
from pipeline.models.factory import search_path
from pipeline.models.identity import fingerprint_before_fetching, fingerprint_of, is_here
from pipeline.output.run_record import RunRecord, list_records, load_record
from pipeline.planning.worker_plan import WorkerPlan, local_cpus, plan_workers
from pipeline.storage.storage import Storage
from pipeline.weights.cache import weights_here

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A first inference shorter than this is mostly warm-up, and is repeated.
WARM_UP_S = 3.0


@dataclass(frozen=True)
class ModelCheck:
    """The result of checking the model.

    lines: for the report. problem: one sentence if the run could not start with the model.
    image_s: seconds for one image of `timed_size` ("640x427") on one worker, None if not timed.
    load_s: seconds until the model was loaded. gpus: number of GPUs of this machine.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    problem: str | None = None
    image_s: float | None = None
    timed_size: str = ""
    load_s: float = 0.0
    gpus: int = 0


def check_model(spec: JobSpec, images: "Sequence[NDArray[np.uint8]] | None") -> ModelCheck:
    """Check that the weights exist; with images, load the model strictly and time it on the median-sized one.

    Args:
        images: decoded images, [H, W, 3] uint8 RGB; None does not import torch.
    """
    section = spec.model
    weights = weights_here(section)
    if section.factory is not None and is_here(section):
        own = {"default": "its own weights", "untrained": "untrained weights: its detections mean nothing"}
        lines = [("model", f"{section.factory}, {own.get(section.weights, f'weights {weights or section.weights}')}")]
    elif section.weights == "untrained":
        lines = [("model", f"{section.preset}, untrained weights: its detections mean nothing")]
    elif weights is None:
        problem = _why_not_fetchable(section)
        fetch = "" if problem else "; the run fetches them"
        lines = [("model", f"{section.preset}, weights {section.weights}: not on this machine{fetch}")]
        return ModelCheck([*lines, ("", "neither loaded nor timed")], problem)
    elif not weights.is_file():
        return ModelCheck([("model", section.preset)], f"There is no weights file {weights}.")
    else:
        size = size_of(weights.stat().st_size)
        lines = [("model", f"{section.preset}, weights {weights} ({size})")]
    if images is None:
        return ModelCheck(lines)
    return _load_and_time(spec, sorted(images, key=lambda image: image.shape[0] * image.shape[1]), lines)


def _why_not_fetchable(section: ModelSection) -> str | None:
    """Return why a run cannot fetch its published weights, as far as is known without a network; else None."""
    if section.weights != "coco":
        return None
    try:
        has_file = find(section.preset).url is not None
    except UnknownWeightsError:
        has_file = False
    if has_file:
        return None
    return f"No weights of {section.preset} are published; give --weights FILE, or --weights untrained."


def known_fingerprint(spec: JobSpec, storage: Storage, run: str | None) -> Mapping[str, Any]:
    """Return the model's fingerprint without fetching anything.

    Weights that are not on this machine yet are assumed to be those of the run that would be resumed.
    """
    if is_here(spec.model):
        return asdict(fingerprint_of(spec.model))
    record = _record(spec, storage, run)
    return fingerprint_before_fetching(spec.model, record.fingerprint.get("weights_sha256") if record else None)


def plan_local_workers(spec: JobSpec, shards: int, gpus: int) -> tuple[WorkerPlan, str]:
    """Return the workers that a run on this machine would start, and the same as text."""
    cpus, memory = local_cpus(), usable_memory()
    plan = plan_workers(spec.compute, cpus=float(cpus), gpus=float(gpus), shards=shards, memory_bytes=memory)
    each = f"{plan.gpus:g} GPU and {plan.cpus:g} cores" if plan.gpus else f"{plan.cpus:g} of {cpus} cores"
    elsewhere = ", if RAY_ADDRESS did not name a cluster" if os.environ.get("RAY_ADDRESS") else ""
    return plan, f"{plan.workers} with {each} each{elsewhere}"


def _record(spec: JobSpec, storage: Storage, run: str | None) -> RunRecord | None:
    if run is not None:
        return load_record(storage, spec.output.uri, run)
    return next(iter(list_records(storage, spec.output.uri)[::-1]), None)


def _load_and_time(spec: JobSpec, images: "Sequence[NDArray[np.uint8]]", lines: list[tuple[str, str]]) -> ModelCheck:
    import torch

    from htc_model.weights.openmmlab import WeightsError
    from pipeline.worker.any_model import load_any_model
    from pipeline.worker.segmenter import DecodedImage, Segmenter, pick_device

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    plan, _ = plan_local_workers(spec, shards=1, gpus=gpus)
    device = pick_device(plan.gpus)
    start = time.perf_counter()
    try:
        model = load_any_model(spec.model, folders=search_path())
    except (WeightsUnavailableError, WeightsError, ModelError) as error:
        return ModelCheck(lines, str(error), gpus=gpus)
    segmenter = Segmenter(model, device, batch_size=1)
    load_s = time.perf_counter() - start
    if spec.model.factory is None and spec.model.weights != "untrained":
        lines = [*lines, ("", "the weights fit the preset, key by key")]
    if not images:
        return ModelCheck(lines, load_s=load_s, gpus=gpus)
    image = images[len(images) // 2]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(plan.cpus)))
    try:
        image_s = 0.0
        for _ in range(2):
            start = time.perf_counter()
            for _, outcome in segmenter.segment([DecodedImage(0, "the sampled image", image)]):
                if isinstance(outcome, ImageFailure):
                    return ModelCheck(lines, f"The model fails: {outcome.reason}.", load_s=load_s, gpus=gpus)
                segmenter.encode(outcome)
            image_s = time.perf_counter() - start
            if image_s > WARM_UP_S:
                break
    finally:
        torch.set_num_threads(threads)
    size = f"{image.shape[1]}x{image.shape[0]}"
    return ModelCheck(lines, image_s=image_s, timed_size=size, load_s=load_s, gpus=gpus)
