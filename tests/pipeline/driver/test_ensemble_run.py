"""Runs of an ensemble: its record, its name in the tables, what resuming refuses, and what is refused before a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from htc_model.config import ModelConfigError, load_preset
from htc_model.network.detector import build_model
from htc_model.weights.load import save_weights
from htc_model.weights.untrained import untrained_state
from jobs.results.evaluation.rows import find_model
from pipeline.cluster.connection import RayStarter
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import RunMismatchError, SpecError
from pipeline.output.results import open_results
from pipeline.worker import memory_budget
from pipeline.worker.memory_budget import MemoryBudgetError
from tests.support.builders.e2e_specs import image_rows, instance_rows, spec_with
from tests.support.fakes.in_process_pool import in_process
from tests.support.paths import PHOTOS

NO_NETWORK = {"model.preset": None, "model.weights": None}
UNTRAINED = "htc_lite0_fpn=untrained"


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayStarter, "begin", lambda starter: None)
    # A machine with a GPU would budget that one.
    monkeypatch.setattr(memory_budget, "local_gpus", lambda: 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    shutil.copy(sorted(PHOTOS.glob("*.jpg"))[0], tmp_path / "in" / "a.jpg")
    return tmp_path


def weights_of(path: Path, *classes: str, seed: int = 0) -> str:
    config = replace(
        load_preset("htc_lite0_fpn"),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        semantic_classes=2,
    )
    model = build_model(config)
    state = untrained_state(model.state_dict())
    state["roi_head.bbox_head.0.fc_cls.bias"] = state["roi_head.bbox_head.0.fc_cls.bias"] + seed
    save_weights(path, state, config)
    return str(path)


def run_of(folder: Path, *members: str, **options: Any) -> Any:
    keys = NO_NETWORK | {"model.ensemble.members": list(members)}
    spec = spec_with(folder, **keys, model__max_detections=5, compute__workers=1, **options)
    return spec, run(spec, progress=SilentProgress(), open_pool=in_process())


def test_the_tables_name_the_ensemble_and_its_record_each_member(folder: Path) -> None:
    weights = weights_of(folder / "own.safetensors", "person", "dog")
    spec, summary = run_of(folder, "demo", f"{weights}*2")
    assert (summary.status, summary.exit_code) == ("complete", 0)
    (image,) = image_rows(spec)
    assert str(image["model"]).startswith("htc_lite0_fpn+htc_lite0_fpn@")
    assert summary.model == image["model"] == open_results(spec.output.uri).records[0].model_name
    assert {row["category"] for row in instance_rows(spec)} <= {"person", "dog"}
    (record,) = (folder / "out" / "runs").glob("*/run.json")
    content = json.loads(record.read_text())
    assert [each["weight"] for each in content["spec"]["model"]["ensemble"]["members"]] == [1.0, 2.0]
    assert [each["preset"] for each in content["fingerprint"]["members"]] == ["htc_lite0_fpn", "htc_lite0_fpn"]
    model = find_model(open_results(spec.output.uri), summary.run)
    assert model is not None
    assert model.classes == ("person", "dog")
    # The same command again finds the run.
    again = run(spec, progress=SilentProgress(), open_pool=in_process())
    assert (again.run, again.session_images) == (summary.run, 0)
    # The file of one member is another.
    weights_of(folder / "own.safetensors", "person", "dog", seed=1)
    with pytest.raises(RunMismatchError, match=r"ensemble member 1 \(htc_lite0_fpn\), weights_sha256"):
        run(spec, progress=SilentProgress(), open_pool=in_process())
    # Another vote is another ensemble.
    with pytest.raises(
        RunMismatchError, match=r"model.ensemble.members.1: htc_lite0_fpn, weight 2 then, .* weight 3 now"
    ):
        run_of(folder, "demo", f"{weights}*3")


def test_for_an_incremental_run_another_ensemble_is_another_model(folder: Path) -> None:
    run_of(folder, UNTRAINED, UNTRAINED)
    options = {"select__mode": "incremental"}
    _, same = run_of(folder, UNTRAINED, UNTRAINED, **options)
    assert same.session_images == 0
    _, other = run_of(folder, UNTRAINED, f"{UNTRAINED}*2", **options)
    assert other.session_images == 1


@pytest.mark.parametrize(
    ("classes", "words"),
    [(("cat", "person"), "category id 1 is 'person' in htc_lite0_fpn and 'cat' in "), ((), "shares no class with")],
)
def test_members_that_do_not_go_together_are_refused_before_a_run_begins(
    folder: Path, classes: tuple[str, ...], words: str
) -> None:
    own = weights_of(folder / "own.safetensors", *classes) if classes else cow_weights(folder / "own.safetensors")
    with pytest.raises(ModelConfigError, match=words):
        run_of(folder, "demo", own)
    assert not (folder / "out").exists()


def cow_weights(path: Path) -> str:
    config = replace(load_preset("htc_lite0_fpn"), classes=("cow",), category_ids=(21,), semantic_classes=2)
    save_weights(path, untrained_state(build_model(config).state_dict()), config)
    return str(path)


def test_a_model_of_ones_own_and_an_ensemble_are_refused_together(folder: Path) -> None:
    spec = spec_with(folder, **NO_NETWORK, model__ensemble__members=["demo", "demo"])
    with pytest.raises(SpecError, match="exclude each other"):
        run(spec, load_model=lambda section: pytest.fail("loaded"))


def test_what_does_not_fit_the_memory_is_named_before_a_run_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_budget, "usable_memory", lambda: 2 * 2**30)
    with pytest.raises(MemoryBudgetError, match=r"htc_x101_64x4d_fpn does not fit: .* fewer members") as caught:
        run_of(folder, "htc_r50_fpn=untrained", "htc_x101_64x4d_fpn=untrained", "htc_r101_fpn=untrained")
    assert caught.value.exit_code == 2
    huge = {"model__augment": {"scales": [[16384, 16384]]}}
    spec = spec_with(folder, **huge)
    with pytest.raises(MemoryBudgetError, match=r"16384 x 16384 pixels\).* smaller scales of model.augment"):
        run(spec, progress=SilentProgress(), open_pool=in_process())
    assert not (folder / "out").exists()
