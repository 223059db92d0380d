"""Data-parallel training in two processes; inference does not import the training code."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from htc_model.training import distributed


def _average(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.Linear(2, 1)
    distributed.share_weights(model)
    if rank == 0:
        # The other process has no gradient at all, as when no RoI falls on a level.
        model(torch.tensor([[2.0, 4.0]])).sum().backward()
    distributed.average_gradients(model.parameters())
    mean = distributed.average_named({"loss": float(rank), "accuracy": 100.0})
    count = distributed.world_size()
    state = {"weight": model.weight.detach(), "gradient": model.weight.grad, "mean": mean, "of": count}
    torch.save(state, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_weights_and_average_gradients(tmp_path):
    mp.spawn(_average, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["weight"], second["weight"])
    assert first["gradient"].tolist() == second["gradient"].tolist() == [[1.0, 2.0]]
    assert first["mean"] == second["mean"] == {"loss": 0.5, "accuracy": 100.0}
    assert first["of"] == 2


def test_a_single_process_changes_nothing():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    distributed.average_gradients(model.parameters())
    assert torch.equal(model.weight.grad, before)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_inference_does_not_import_training():
    code = "import sys, htc_model.network.detector, htc_model.masks.encode, htc_model.weights.load\n"
    code += "import pipeline.inputs.decode, pipeline.worker.segmenter\n"
    code += "sys.exit(any(name.startswith('htc_model.training') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
