"""Checks whether a spec's model can start on this machine, and times it on one image."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.running.member_check import describe_memory, describe_model
from pipeline.errors import HtcError
from pipeline.job_spec.job import JobSpec
from pipeline.machine_limits import usable_memory
from pipeline.messages import ImageFailure
from pipeline.models.factory import search_path
from pipeline.models.identity import fingerprint_before_fetching, fingerprint_of, is_here
from pipeline.output.run_record import RunRecord, list_records, load_record
from pipeline.planning.worker_plan import WorkerPlan, local_cpus, plan_workers
from pipeline.storage.storage import Storage
from pipeline.weights.fingerprint import with_tiles

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
    lines, problem = describe_model(spec.model)
    if problem or not is_here(spec.model):
        return ModelCheck(lines if problem else [*lines, ("", "neither loaded nor timed")], problem)
    if images is None:
        return ModelCheck(lines)
    memory, problem = describe_memory(spec)
    lines += memory
    if problem:
        return ModelCheck(lines, problem)
    return _load_and_time(spec, sorted(images, key=lambda image: image.shape[0] * image.shape[1]), lines)


def known_fingerprint(spec: JobSpec, storage: Storage, run: str | None) -> Mapping[str, Any]:
    """Return the model's fingerprint without fetching anything.

    Weights that are not on this machine yet are assumed to be those of the run that would be resumed.
    """
    section = spec.model
    if is_here(section):
        return with_tiles(fingerprint_of(section), spec.tiles).to_dict()
    record = _record(spec, storage, run)
    recorded = record.fingerprint if record else {}
    if section.ensemble is not None:
        # What the members' files hold is part of one hash, which only the run knows.
        return {**recorded} if recorded.get("preset") == section.preset else {"preset": section.preset}
    before = with_tiles(fingerprint_before_fetching(section), spec.tiles).to_dict()
    return {**before, "weights_sha256": recorded.get("weights_sha256")}


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

    from htc_model.config import ModelConfigError
    from htc_model.weights.openmmlab import WeightsError
    from pipeline.worker.open_model import open_model
    from pipeline.worker.segmenter import DecodedImage, Segmenter, pick_device

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    plan, _ = plan_local_workers(spec, shards=1, gpus=gpus)
    device = pick_device(plan.gpus)
    start = time.perf_counter()
    try:
        model, precision = open_model(spec.model, None, device, gpus=plan.gpus, folders=search_path())
    except (HtcError, WeightsError, ModelConfigError) as error:
        return ModelCheck(lines, str(error), gpus=gpus)
    segmenter = Segmenter(model, device, precision=precision, batch_size=1)
    load_s = time.perf_counter() - start
    if spec.model.factory is None and all(member.weights != "untrained" for member in spec.model.members):
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
            ((_, found),) = segmenter.segment([DecodedImage(0, "the sampled image", image)])
            if isinstance(found, ImageFailure):
                return ModelCheck(lines, f"The model fails: {found.reason}.", load_s=load_s, gpus=gpus)
            segmenter.encode(found)
            image_s = time.perf_counter() - start
            if image_s > WARM_UP_S:
                break
    finally:
        torch.set_num_threads(threads)
    size = f"{image.shape[1]}x{image.shape[0]}"
    return ModelCheck(lines, image_s=image_s, timed_size=size, load_s=load_s, gpus=gpus)
