"""The public entry point of training."""

from pathlib import Path

import torch

from htc_model.training.loop import OnStep
from pipeline.machine_limits import usable_cpus
from pipeline.storage.storage import Storage
from pipeline.training.single import train_alone
from pipeline.training.spec import StoredTrainingSpec, without_storage


def train(spec: StoredTrainingSpec, *, on_step: OnStep | None = None) -> Path:
    """Train as the spec says, with as many processes as it says.

    Args, returns and raises as `train_alone`, and RunError when the workers' cluster fails.
    """
    if spec.workers > 1:
        from pipeline.training.distributed import train_on_workers

        return train_on_workers(without_storage(spec), storage=spec.storage, on_step=on_step)
    has_gpu = spec.gpus_per_worker != 0 and torch.cuda.is_available()
    storage, device = Storage(spec.storage), "cuda" if has_gpu else "cpu"
    # torch counts the machine's cores, not those that a container may use.
    torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cpus())))
    return train_alone(without_storage(spec), storage=storage, device=device, on_step=on_step)
