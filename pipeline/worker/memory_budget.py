"""Whether a model with views or several members fits a worker's memory, before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from htc_model.config import ModelConfig
from htc_model.inference.memory import NetworkMemory, estimate_memory
from pipeline.errors import SpecError
from pipeline.job_spec.job import ComputeSection
from pipeline.machine_limits import usable_memory
from pipeline.planning.worker_plan import expected_workers, local_gpus

if TYPE_CHECKING:
    from pipeline.job_spec.model import ModelSection

# Python, torch and, on a GPU, the context: what a worker holds without a network.
PROCESS_BYTES = 512 * 2**20
_GIB = 2**30


class MemoryBudgetError(SpecError):
    """A network does not fit the memory of a worker; the message names it and the way out."""


@dataclass(frozen=True)
class MemberNeed:
    """What one network needs; label: as messages call it."""

    label: str
    memory: NetworkMemory


@dataclass(frozen=True)
class MemoryBudget:
    """What the networks of one process need, and what it has.

    members: in the order of the spec. available: bytes, None where that is not known. place: what has it, in words.
    is_spread: each member is alone in its process. has_views: they are seen in views. way_out: what gives a process
        more memory, if anything does.
    """

    members: tuple[MemberNeed, ...]
    available: int | None
    place: str
    is_spread: bool = False
    has_views: bool = False
    way_out: str = ""

    @property
    def needed(self) -> int:
        """Bytes that a process needs at least: all parameters, and the features of one image in one member."""
        if self.is_spread:
            return PROCESS_BYTES + max(each.memory.total for each in self.members)
        parameters = sum(each.memory.parameters for each in self.members)
        return PROCESS_BYTES + parameters + max(each.memory.activations for each in self.members)

    @property
    def comfortable(self) -> int:
        """Bytes with which no features are computed twice."""
        if self.is_spread:
            return self.needed
        return PROCESS_BYTES + sum(each.memory.total for each in self.members)

    def problem(self) -> str:
        """Return one sentence if the networks do not fit; "" where they do, or where nothing is known."""
        if self.available is None or self.needed <= self.available:
            return ""
        parameters = PROCESS_BYTES
        for each in self.members:
            parameters = (PROCESS_BYTES if self.is_spread else parameters) + each.memory.parameters
            if parameters + each.memory.activations > self.available:
                return self._sentence(each, parameters)
        largest = max(self.members, key=lambda each: each.memory.activations)
        return self._sentence(largest, parameters)

    def _sentence(self, member: MemberNeed, parameters: int) -> str:
        height, width = member.memory.view
        others = "" if len(self.members) == 1 or self.is_spread else " with those of the members before it"
        ways = ["smaller scales of model.augment"] if self.has_views else []
        ways += [self.way_out] if self.way_out else []
        ways += ["fewer members"] if len(self.members) > 1 else []
        ways.append("a machine with more memory")
        way = f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[-1]
        return (
            f"{member.label} does not fit: for one image it needs {_gib(member.memory.activations)} for its features "
            f"({width} x {height} pixels), beside {_gib(parameters)} for the process and its parameters{others}, and "
            f"{self.place} has {_gib(self.available or 0)}; take {way}."
        )


def plan_memory(
    section: "ModelSection",
    configs: Sequence[ModelConfig],
    *,
    available: int | None,
    place: str,
    way_out: str = "",
) -> MemoryBudget:
    """Estimate what a spec's networks need.

    Args:
        configs: of the section's members, with their views.
        available: bytes of one process's device. place: what has them. way_out: what gives it more.
    """
    ensemble = section.ensemble
    labels = [config.name for config in configs] if ensemble is None else ensemble.labels
    needs = tuple(MemberNeed(label, estimate_memory(config)) for label, config in zip(labels, configs, strict=True))
    return MemoryBudget(
        needs,
        available,
        place,
        is_spread=ensemble is not None and ensemble.spread,
        has_views=any(config.views for config in configs),
        way_out=way_out,
    )


def is_budgeted(section: "ModelSection") -> bool:
    """Return whether a spec asks for more than one network's plain image; others take what they always took."""
    return section.ensemble is not None or section.augment is not None


def check_on_device(
    section: "ModelSection", configs: Sequence[ModelConfig], device: torch.device, *, gpus: float = 0.0
) -> None:
    """Check in a worker's process that what it will load fits its device.

    Args:
        gpus: what the worker reserves.

    Raises:
        MemoryBudgetError: it does not.
    """
    available, place = device_memory(device, gpus=gpus)
    way_out = ""
    if device.type == "cuda":
        spread = "ensemble.spread (--spread) with a larger " if section.ensemble is not None else "a larger "
        way_out = f"{spread}compute.gpus_per_worker"
    check_memory(plan_memory(section, configs, available=available, place=place, way_out=way_out))


def device_memory(device: torch.device, *, gpus: float = 1.0, workers: int = 1) -> tuple[int | None, str]:
    """Return the bytes of memory that one worker has on this machine, and what they are, in words.

    Args:
        gpus: what a worker reserves; several share a card.
        workers: how many share the memory of this machine.
    """
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        share = min(1.0, gpus) if gpus else 1.0
        return int(total * share), "the GPU" if share == 1 else f"{share:g} of the GPU"
    memory = usable_memory()
    if memory is None:
        return None, "this machine"
    if workers == 1:
        return memory, "this machine"
    return memory // workers, f"each of {workers} workers on this machine"


def local_budget(
    section: "ModelSection", compute: ComputeSection, configs: Sequence[ModelConfig]
) -> MemoryBudget | None:
    """Return the budget of one worker on this machine's CPU.

    A number of workers that the spec leaves open does not count: `fit_workers` chooses it.

    Returns:
        None where workers will have GPUs, which are asked by the workers themselves.
    """
    gpus = compute.gpus_per_worker
    if (local_gpus() if gpus == "auto" else gpus) > 0:
        return None
    workers = compute.workers if isinstance(compute.workers, int) else compute.fewest_workers
    available, place = device_memory(torch.device("cpu"), workers=workers)
    way_out = "fewer workers (--workers)" if workers > 1 else ""
    budget = plan_memory(section, configs, available=available, place=place, way_out=way_out)
    # The members of a spread ensemble are on this machine, too.
    return replace(budget, is_spread=False)


def fit_workers(compute: ComputeSection, budget: MemoryBudget) -> ComputeSection:
    """Return the section with fewer workers, where the spec leaves their number open and not all would fit."""
    if compute.workers != "auto" or budget.available is None:
        return compute
    workers = max(1, budget.available // budget.needed)
    return compute.model_copy(update={"workers": workers}) if workers < expected_workers(compute) else compute


def check_memory(budget: MemoryBudget) -> None:
    """Check that the networks fit.

    Raises:
        MemoryBudgetError: they do not.
    """
    if problem := budget.problem():
        raise MemoryBudgetError(problem)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
