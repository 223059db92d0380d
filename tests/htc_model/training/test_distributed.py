"""Data-parallel training in two processes; inference does not import the training code."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from htc_model.network.efficientnet import EfficientNetLite0
from htc_model.training import distributed
from htc_model.training.synchronised_norm import SynchronisedBatchNorm2d, synchronise_batch_norms


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


def _normalise(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images = _images()
    part = (images[:1], images[1:])[rank].clone().requires_grad_()
    model = _two_norms()
    synchronise_batch_norms(model)
    found = model(part)
    # Each process has a loss of its own; gradients are averaged, as a training step does.
    found.square().sum().backward()
    distributed.average_gradients(model.parameters())
    gradients = [parameter.grad for parameter in model.parameters()]
    state = {"found": found.detach(), "input": part.grad, "gradients": gradients, "state": model.state_dict()}
    torch.save(state, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 6, generator=generator) * 3 + 100


def _two_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.ReLU())


@pytest.mark.slow
def test_synchronised_norms_are_those_of_all_images_together(tmp_path):
    """One image in one process and two in the other, against three in one."""
    mp.spawn(_normalise, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model, images = _two_norms(), _images().requires_grad_()
    wanted = model(images)
    (wanted.square().sum() / 2).backward()  # the mean over two processes
    torch.testing.assert_close(torch.cat([first["found"], second["found"]]), wanted.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([first["input"], second["input"]]) / 2, images.grad, atol=1e-4, rtol=1e-3)
    for found, other, parameter in zip(first["gradients"], second["gradients"], model.parameters(), strict=True):
        assert torch.equal(found, other)
        torch.testing.assert_close(found, parameter.grad, atol=1e-3, rtol=1e-3)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(first["state"][key], value, atol=1e-4, rtol=1e-4)


def test_synchronised_norms_of_one_process_keep_activations_and_keys():
    backbone = EfficientNetLite0().train()
    keys, x = list(backbone.state_dict()), torch.randn(2, 3, 64, 64)
    wanted = copy.deepcopy(backbone)(x)
    synchronise_batch_norms(backbone)
    assert list(backbone.state_dict()) == keys
    assert any(isinstance(module, SynchronisedBatchNorm2d) for module in backbone.modules())
    for found, expected in zip(backbone(x), wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


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
