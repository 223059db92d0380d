"""Whether views and members fit a worker's memory: what is counted, and the sentence where they do not."""

from dataclasses import replace

import pytest

from htc_model.config import ModelConfig, ViewConfig, load_preset
from htc_model.inference.memory import estimate_memory
from htc_model.network.detector import build_model
from pipeline.job_spec.job import ComputeSection, load_spec
from pipeline.job_spec.model import ModelSection
from pipeline.weights.fingerprint import resolve_config
from pipeline.worker import memory_budget
from pipeline.worker.memory_budget import (
    PROCESS_BYTES,
    MemoryBudget,
    MemoryBudgetError,
    check_memory,
    fit_workers,
    is_budgeted,
    local_budget,
    plan_memory,
)

GIB = 2**30


def section_of(*members: str, spread: bool = False, **model: object) -> ModelSection:
    keys: dict[str, object] = {f"model.{key}": value for key, value in model.items()}
    if members:
        keys |= {"model.ensemble.members": list(members), "model.ensemble.spread": spread}
    return load_spec(None, {"input.uri": "in", "output.uri": "out", **keys}).model


def configs_of(section: ModelSection) -> list[ModelConfig]:
    return [resolve_config(member) for member in section.members]


def budget_of(section: ModelSection, available: int | None, way_out: str = "") -> MemoryBudget:
    return plan_memory(section, configs_of(section), available=available, place="the GPU", way_out=way_out)


def test_parameters_are_those_of_the_built_network_and_features_grow_with_the_largest_view() -> None:
    config = load_preset("htc_lite0_fpn")
    plain = estimate_memory(config)
    assert plain.parameters == 4 * sum(each.numel() for each in build_model(config).state_dict().values())
    assert plain.view == (384, 640)
    views = (ViewConfig(640, 384), ViewConfig(1280, 768, is_mirrored=True))
    larger = estimate_memory(replace(config, views=views))
    assert (larger.view, larger.activations) == ((768, 1280), 4 * plain.activations)
    assert larger.parameters == plain.parameters


def test_members_of_one_process_add_up_and_spread_ones_do_not() -> None:
    together = budget_of(section_of("htc_r50_fpn=untrained", "htc_r101_fpn=untrained"), None)
    parameters = [each.memory.parameters for each in together.members]
    assert together.needed == PROCESS_BYTES + sum(parameters) + max(e.memory.activations for e in together.members)
    assert together.needed < together.comfortable
    spread = budget_of(section_of("htc_r50_fpn=untrained", "htc_r101_fpn=untrained", spread=True), None)
    assert spread.needed == PROCESS_BYTES + max(each.memory.total for each in spread.members) < together.needed
    assert together.problem() == ""


@pytest.mark.parametrize(
    ("members", "spread", "named"),
    [
        (["htc_lite0_fpn=untrained", "htc_x101_64x4d_fpn=untrained"], False, "htc_x101_64x4d_fpn"),
        (["htc_r50_fpn=untrained", "htc_r101_fpn=untrained", "htc_r50_fpn_dcn=untrained"], False, "htc_r101_fpn"),
        (["htc_lite0_fpn=untrained", "htc_challenge=untrained"], True, "htc_challenge"),
    ],
)
def test_the_member_that_does_not_fit_is_named(members: list[str], spread: bool, named: str) -> None:
    budget = budget_of(section_of(*members, spread=spread), int(1.75 * GIB), "a larger compute.gpus_per_worker")
    with pytest.raises(MemoryBudgetError) as caught:
        check_memory(budget)
    sentence = str(caught.value)
    assert sentence.startswith(f"{named} does not fit: ")
    assert "the GPU has 1.8 GiB" in sentence
    assert "a larger compute.gpus_per_worker, fewer members or a machine with more memory." in sentence


def test_a_view_that_is_too_large_is_named_with_its_size() -> None:
    section = section_of(augment={"scales": [[16000, 12000]]}, weights="untrained")
    problem = budget_of(section, 16 * GIB).problem()
    assert "16000 x 12000 pixels" in problem
    assert "smaller scales of model.augment or a machine with more memory" in problem
    assert is_budgeted(section)
    assert not is_budgeted(section_of(weights="untrained"))


def test_where_the_number_of_workers_is_open_fewer_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "usable_memory", lambda: 6 * GIB)
    monkeypatch.setattr(memory_budget, "local_gpus", lambda: 0)
    monkeypatch.setattr(memory_budget, "expected_workers", lambda compute: 8)
    section = section_of("htc_r50_fpn=untrained", "htc_r101_fpn=untrained")
    compute = ComputeSection()
    budget = local_budget(section, compute, configs_of(section))
    assert budget is not None
    assert fit_workers(compute, budget).workers == 6 * GIB // budget.needed < 8
    four = ComputeSection(workers=4)
    shared = local_budget(section, four, configs_of(section))
    assert shared is not None
    assert fit_workers(four, shared) is four
    assert "each of 4 workers on this machine has 1.5 GiB; take fewer workers (--workers)" in shared.problem()
    assert local_budget(section, ComputeSection(gpus_per_worker=0.5), configs_of(section)) is None
