"""What a plan says of a spec's networks: where their weights are, and the memory that they need together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from htc_model.weights.model_zoo import UnknownWeightsError, find
from jobs.terminal.console import size_of
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.model import ModelSection
from pipeline.weights.cache import weights_here
from pipeline.weights.fingerprint import resolve_config

if TYPE_CHECKING:
    from pipeline.worker.memory_budget import MemoryBudget

Line = tuple[str, str]


def describe_weights(section: ModelSection) -> tuple[str, str | None]:
    """Describe where the weights of one network are.

    Returns:
        the network with its weights, and one sentence if a run could not have them.
    """
    weights = weights_here(section)
    if section.factory is not None and (weights is None or weights.exists()):
        own = {"default": "its own weights", "untrained": "untrained weights: its detections mean nothing"}
        return f"{section.factory}, {own.get(section.weights, f'weights {weights or section.weights}')}", None
    if section.weights == "untrained":
        return f"{section.preset}, untrained weights: its detections mean nothing", None
    if weights is None:
        problem = _why_not_fetchable(section)
        fetch = "" if problem else "; the run fetches them"
        return f"{section.preset}, weights {section.weights}: not on this machine{fetch}", problem
    if not weights.is_file():
        return section.preset, f"There is no weights file {weights}."
    return f"{section.preset}, weights {weights} ({size_of(weights.stat().st_size)})", None


def describe_model(section: ModelSection) -> tuple[list[Line], str | None]:
    """Describe the network, or the ensemble and its members, as lines of a plan; and the first problem."""
    described = [describe_weights(member) for member in section.members]
    problem = next((each for _, each in described if each), None)
    if section.ensemble is None:
        return [("model", described[0][0])], problem
    ensemble = section.ensemble
    spread = ", each in a process of its own" if ensemble.spread else ""
    lines = [("model", f"an ensemble of {len(described)}, boxes fused by {ensemble.fusion}{spread}")]
    for (text, _), member in zip(described, ensemble.members, strict=True):
        lines.append(("", text if member.weight == 1 else f"{text}, weight {member.weight:g}"))
    return lines, problem


def describe_memory(spec: JobSpec) -> tuple[list[Line], str | None]:
    """Return the lines about the memory of a model with views or several members, and one sentence if it does not fit.

    Imports torch. Nothing is said of workers with GPUs, which are not known here.
    """
    from pipeline.worker.memory_budget import is_budgeted, local_budget

    if not is_budgeted(spec.model):
        return [], None
    configs = [resolve_config(member, weights_here(member)) for member in spec.model.members]
    budget = local_budget(spec.model, spec.compute, configs)
    if budget is None:
        return [("memory", "each worker checks its GPU before it loads the model")], None
    return list(_memory_lines(budget)), budget.problem() or None


def _memory_lines(budget: "MemoryBudget") -> Iterator[Line]:
    has = "" if budget.available is None else f", of the {size_of(budget.available)} that {budget.place} has"
    yield "memory", f"about {size_of(budget.comfortable)} for each worker, at least {size_of(budget.needed)}{has}"
    for member in budget.members:
        height, width = member.memory.view
        parameters, features = size_of(member.memory.parameters), size_of(member.memory.activations)
        yield "", f"{member.label}: {parameters} of parameters, {features} of features of {width} x {height} pixels"


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
