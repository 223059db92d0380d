"""torch.distributed for data-parallel training: rank, averaged gradients and numbers, shared weights.

The launcher of several processes (Ray Train, torchrun) initialises torch.distributed. In a single process all functions
work without it.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn


def rank() -> int:
    """Return this process's rank; 0 in a single process."""
    return dist.get_rank() if _is_joint() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _is_joint() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one all-reduce.

    A missing gradient (of a pyramid level without RoIs) counts as zero: all processes must send the same sizes.
    """
    if not _is_joint():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= world_size()
    pieces = torch.split(flat, [parameter.numel() for parameter in trained])
    for parameter, piece in zip(trained, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def share_weights(model: nn.Module) -> None:
    """Copy the weights of rank 0 to all processes, so that all start with the same."""
    if _is_joint():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def agree(is_true: bool) -> bool:
    """Return what the process of rank 0 says; all processes must ask."""
    if not _is_joint():
        return is_true
    said = torch.tensor([is_true], dtype=torch.uint8, device=_device())
    dist.broadcast(said, src=0)
    return bool(said.item())


def average_named(values: Mapping[str, float]) -> dict[str, float]:
    """Average numbers over all processes, which must pass the same names in the same order."""
    if not _is_joint():
        return dict(values)
    summed = torch.tensor(list(values.values()), dtype=torch.float64, device=_device())
    dist.all_reduce(summed)
    return dict(zip(values, (summed / world_size()).tolist(), strict=True))


def _device() -> str:
    # NCCL takes CUDA tensors only.
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _is_joint() -> bool:
    return dist.is_available() and dist.is_initialized()
