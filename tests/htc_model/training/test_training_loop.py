"""Complete small runs: losses fall, a killed run resumes with the same result, and failures are named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from htc_model.config import ModelConfigError, config_from_dict, config_to_dict
from htc_model.network.detector import build_model
from htc_model.training.build import build_model_config, build_optimiser, build_train_config, build_training_model
from htc_model.training.checkpoint import CheckpointError
from htc_model.training.coco_reader import read_annotations
from htc_model.training.dataset import TrainingDataset
from htc_model.training.ema import WeightAverage
from htc_model.training.loop import Training, TrainingFiles, TrainingStoppedError, train_steps
from htc_model.training.run import EvaluationSet, halve_state, run_training
from htc_model.weights.load import load_into, load_weights
from tests.support.builders.training_data import draw_image, small_document, small_spec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def train(output: Path, images: int = 8, *, on_step=None, evaluation=(), **changes) -> Path:
    annotations = read_annotations(small_document(images))
    return run_training(
        small_spec(str(output), **changes),
        annotations,
        draw_image,
        evaluation=evaluation,
        load_state=lambda name: torch.load(name, weights_only=True),
        on_step=on_step,
    )


def prepare(output: Path, **changes) -> tuple[Training, Callable[[], None]]:
    """Build a small run as `run_training` does; returns its state, and a function that trains."""
    spec, annotations = small_spec(str(output), **changes), read_annotations(small_document(8))
    config = build_model_config(spec.model, annotations.classes, annotations.category_ids)
    model, _ = build_training_model(spec, config, torch.load)
    training = Training(
        spec,
        model,
        build_train_config(config, spec.sampling),
        build_optimiser(model, spec.optimiser),
        WeightAverage(model, spec.optimiser.ema_decay),
        torch.device("cpu"),
    )
    dataset = TrainingDataset(annotations, draw_image, config, spec.augmentation.build(), spec.seed)
    return training, lambda: train_steps(training, dataset, TrainingFiles(output), config_to_dict(config))


def logged(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def curve(output: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["losses"]["total"]) for line in logged(output) if "losses" in line]


class KilledError(Exception):
    """Simulates a kill: nothing catches it."""


def kill_at(step: int):
    def on_step(done, steps, losses):
        if done == step:
            raise KilledError

    return on_step


@pytest.mark.slow
def test_losses_fall_and_the_result_loads_where_inference_needs_it(tmp_path):
    document = small_document(4)
    held_out = EvaluationSet("held_out", read_annotations(document), draw_image)
    weights = train(tmp_path, epochs=12, evaluation=[held_out], augmentation={"flip": 0.0})
    totals = [total for _, total in curve(tmp_path)]
    assert sum(totals[-8:]) < 0.5 * sum(totals[:8])
    loaded = load_weights(weights)
    config = loaded.metadata["config"]
    assert config["classes"] == ["three", "seven"]
    assert config["category_ids"] == [3, 7]
    scores = [line["evaluation"]["held_out"] for line in logged(tmp_path) if "evaluation" in line]
    assert len(scores) == 1
    assert {"box_ap", "box_ap50", "mask_ap", "mask_ap50"} <= set(scores[0])
    provenance = loaded.metadata.get("metadata", loaded.metadata)
    assert provenance["steps"] == 48
    load_into(build_model(config_from_dict(config)), loaded)


@pytest.mark.slow
def test_group_norm_from_scratch_loads_by_its_own_config(tmp_path):
    model = {"initial": "none", "norm": "group", "short_side": 96, "long_side": 96}
    loaded = load_weights(train(tmp_path, epochs=1, model=model))
    config = config_from_dict(loaded.metadata["config"])
    assert config.backbone.norm == "group"
    load_into(build_model(config), loaded)
    assert not any("running_mean" in name for name in loaded.state)


@pytest.mark.slow
def test_initial_weights_of_other_classes_name_what_starts_at_random(tmp_path, caplog):
    first = train(tmp_path / "first", epochs=1)
    state = load_weights(first).state
    state["roi_head.bbox_head.1.fc_cls.weight"] = torch.zeros(9, 9)
    torch.save(state, tmp_path / "other.pt")
    model = {"initial": str(tmp_path / "other.pt"), "short_side": 96, "long_side": 96}
    loaded = load_weights(train(tmp_path / "second", epochs=1, model=model))
    assert "which start at random: roi_head.bbox_head.1.fc_cls.weight" in caplog.text
    assert loaded.metadata["initialised_at_random"] == ["roi_head.bbox_head.1.fc_cls.weight"]


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_curve_and_the_same_weights(tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    expected = load_weights(train(uninterrupted)).state
    with pytest.raises(KilledError):
        train(killed, on_step=kill_at(5))
    assert [step for step, _ in curve(killed)] == [1, 2, 3, 4, 5]
    found = load_weights(train(killed)).state
    # The last checkpoint was at step 4, the end of the first epoch: step 5 ran twice and is logged once.
    assert curve(killed) == curve(uninterrupted)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tmp_path):
    train(tmp_path, epochs=1)
    before = curve(tmp_path)
    train(tmp_path, epochs=1, on_step=kill_at(5))
    assert curve(tmp_path) == before


def test_a_checkpoint_of_other_settings_or_another_preset_is_refused_by_name(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, on_step=kill_at(3), checkpoint_steps=2)
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        train(tmp_path, seed=1)
    model = {"preset": "mask_rcnn_r50_fpn", "initial": "none", "short_side": 96, "long_side": 96}
    with pytest.raises(CheckpointError, match="checkpoint of htc_lite0_fpn, not of mask_rcnn_r50_fpn"):
        train(tmp_path, model=model)


def test_operational_settings_may_change_on_resume(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, on_step=kill_at(3), checkpoint_steps=2)
    with pytest.raises(KilledError):
        train(tmp_path, on_step=kill_at(4), checkpoint_steps=1, log_steps=2)
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 4]


def test_a_checkpoint_from_before_a_setting_existed_resumes(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, on_step=kill_at(3), checkpoint_steps=2)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del saved["spec"]["model"]["stages"]
    del saved["config"]["semantic_names"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(KilledError):
        train(tmp_path, on_step=kill_at(3), checkpoint_steps=2)
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3]


def test_more_stages_than_the_preset_has_are_refused(tmp_path):
    with pytest.raises(ModelConfigError, match=r"htc_lite0_fpn has 3 stages; model\.stages cannot be 4"):
        train(tmp_path, model={"initial": "none", "stages": 4})


def test_a_loss_that_is_not_a_number_stops_with_the_batch_named(tmp_path):
    with pytest.raises(TrainingStoppedError) as stopped:
        train(tmp_path, optimiser={"kind": "sgd", "learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None})
    message = str(stopped.value)
    assert "nan" in message or "inf" in message
    assert ".png" in message
    assert "s0.loss_cls" in message
    assert "lower optimiser.learning_rate" in message


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    training, run = prepare(tmp_path, checkpoint_steps=1)
    bias = training.model.rpn_head.rpn_cls.bias
    bias.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(TrainingStoppedError, match=r"rpn_cls\.bias is not finite.*\.png.*learning_rate"):
        run()
    assert bias.isfinite().all()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    training, run = prepare(tmp_path, checkpoint_steps=1)
    bias = training.model.rpn_head.rpn_cls.bias
    training.optimiser.register_step_post_hook(lambda *_: bias.data.fill_(torch.nan))
    with pytest.raises(TrainingStoppedError, match=r"rpn_cls\.bias is not finite"):
        run()
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.safetensors"))


def test_a_checkpoint_that_is_damaged_or_not_finite_is_refused_in_one_sentence(tmp_path):
    def stop(done, steps, losses):
        raise KilledError

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KilledError):
        train(tmp_path, images=2, on_step=stop, checkpoint_steps=1)
    whole = path.read_bytes()
    for part in ("model", "average", "optimiser"):
        path.write_bytes(whole)
        saved = torch.load(path, weights_only=True)
        buffers = next(iter(saved["optimiser"]["state"].values()))
        state = {"model": saved["model"], "average": saved["average"]["state"], "optimiser": buffers}[part]
        key = next(name for name, value in state.items() if torch.is_tensor(value) and value.ndim)
        state[key][(0,) * state[key].ndim] = torch.nan
        torch.save(saved, path)
        with pytest.raises(CheckpointError, match=rf"{key}.*remove it"):
            train(tmp_path, images=2)
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="readable"):
            train(tmp_path, images=2)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(tmp_path, images=2)


def test_kernels_beyond_half_precision_stay_in_full_precision():
    state = {"a": torch.full((2, 2), 70_000.0), "b": torch.ones(2, 2), "c": torch.full((2,), 70_000.0)}
    halved = halve_state(state)
    assert [halved[key].dtype for key in "abc"] == [torch.float32, torch.float16, torch.float32]
    assert all(torch.isfinite(tensor).all() for tensor in halved.values())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_out_of_memory_names_the_settings_to_lower(tmp_path, error):
    training, run = prepare(tmp_path)
    fail_in_backbone(training, error)
    with pytest.raises(TrainingStoppedError, match=r"batch .*\.png.*; lower batch_size, then model.short_side"):
        run()


def test_another_failure_is_not_reported_as_lack_of_memory(tmp_path):
    training, run = prepare(tmp_path)
    fail_in_backbone(training, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run()


def fail_in_backbone(training: Training, error: Exception) -> None:
    def fail(module, inputs):
        raise error

    training.model.backbone.register_forward_pre_hook(fail)


def test_imagenet_weights_of_a_backbone_that_has_none_are_refused(tmp_path):
    with pytest.raises(ModelConfigError, match=r"name a weights file as model\.initial"):
        train(tmp_path, model={"preset": "htc_r50_fpn", "initial": "imagenet"})


@pytest.mark.slow
def test_gradients_are_clipped(tmp_path):
    """One plain step at a learning rate of 1 moves all weights together by no more than `clip_norm`."""
    optimiser = {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "warmup_steps": 0}
    moved = {}
    for clip_norm in (0.01, None):
        output = tmp_path / str(clip_norm)
        with pytest.raises(KilledError):
            train(
                output,
                epochs=2,
                checkpoint_steps=1,
                optimiser={**optimiser, "schedule": "step", "clip_norm": clip_norm},
                on_step=kill_at(1),
            )
        saved = torch.load(output / "checkpoint.pt", weights_only=True)
        config, after = config_from_dict(saved["config"]), saved["model"]
        before = build_training_model(small_spec(str(output)), config, torch.load)[0].state_dict()
        moved[clip_norm] = sum(
            float((after[name] - before[name]).double().pow(2).sum())
            for name in after
            if after[name].is_floating_point()
        )
    assert moved[0.01] ** 0.5 == pytest.approx(0.01, rel=0.01)
    assert moved[None] ** 0.5 > 0.1
