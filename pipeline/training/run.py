"""The public entry point of training."""

from pathlib import Path

import torch

from htc_model.training.find_lr import RangeTest
from htc_model.training.loop import OnLine, OnStep
from pipeline.errors import SpecError
from pipeline.machine_limits import usable_cpus
from pipeline.storage.storage import Storage
from pipeline.training.single import find_rate_alone, train_alone
from pipeline.training.spec import StoredTrainingSpec, without_storage


def train(spec: StoredTrainingSpec, *, on_step: OnStep | None = None, on_evaluation: OnLine | None = None) -> Path:
    """Train as the spec says, with as many processes as it says.

    Args, returns and raises as `train_alone`, and RunError when the workers' cluster fails.
    """
    if spec.workers > 1:
        from pipeline.training.distributed import train_on_workers

        return train_on_workers(
            without_storage(spec), storage=spec.storage, on_step=on_step, on_evaluation=on_evaluation
        )
    return train_alone(
        without_storage(spec),
        storage=Storage(spec.storage),
        device=prepare_device(spec),
        on_step=on_step,
        on_evaluation=on_evaluation,
    )


def find_learning_rate(spec: StoredTrainingSpec, *, on_step: OnStep | None = None) -> RangeTest:
    """Try learning rates in this process, and suggest one; nothing of it enters a training run.

    Args and raises as `train`.

    Raises:
        SpecError: the spec wants several workers.
    """
    if spec.workers > 1:
        raise SpecError("The learning-rate test runs in one process; leave out workers (--workers).")
    return find_rate_alone(
        without_storage(spec), storage=Storage(spec.storage), device=prepare_device(spec), on_step=on_step
    )


def prepare_device(spec: StoredTrainingSpec) -> str:
    """Return the device that this process trains on, and set how many threads it uses."""
    has_gpu = spec.gpus_per_worker != 0 and torch.cuda.is_available()
    # torch counts the machine's cores, not those that a container may use.
    torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cpus())))
    return "cuda" if has_gpu else "cpu"
