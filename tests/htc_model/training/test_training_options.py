"""Accumulated batches, mixed precision, more epochs, patience, best weights: each on a few tiny steps."""

import json

import pytest
import torch

from htc_model.config import ModelConfigError
from htc_model.training.build import build_model_config, build_optimiser, build_train_config, build_training_model
from htc_model.training.checkpoint import CheckpointError
from htc_model.training.coco_reader import read_annotations
from htc_model.training.dataset import TrainingDataset
from htc_model.training.ema import WeightAverage
from htc_model.training.loop import Training, TrainingStoppedError, group_batches, take_step
from htc_model.training.run import EvaluationSet, run_training
from htc_model.training.spec import ModelSection
from htc_model.weights.load import load_weights
from tests.support.builders.training_data import draw_image, sample_all, small_document, small_spec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FLAT = {"schedule": "flat", "warmup_steps": 0, "learning_rate": 1e-3}


def train(output, images=2, *, on_step=None, on_evaluation=None, scored=False, **changes):
    annotations = read_annotations(small_document(images))
    held_out = [EvaluationSet("val", annotations, draw_image)] if scored else []
    return run_training(
        small_spec(str(output), **changes),
        annotations,
        draw_image,
        evaluation=held_out,
        load_state=torch.load,
        on_step=on_step,
        on_evaluation=on_evaluation,
    )


def logged(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def curve(output):
    return [(line["step"], line["losses"]["total"]) for line in logged(output) if "losses" in line]


def prepared(output, *, scaler=None, images=2, **changes):
    """A training at step 0, and its data set."""
    torch.manual_seed(0)
    annotations = read_annotations(small_document(images))
    spec = small_spec(str(output), augmentation={"flip": 0.0}, **changes)
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
    if scaler is not None:
        training.scaler = scaler
    return training, TrainingDataset(annotations, draw_image, config, spec.augmentation.build(), spec.seed)


@pytest.mark.slow
def test_accumulated_batches_have_the_mean_gradient(tmp_path) -> None:
    optimiser = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None}
    moved = []
    for numbers in ([[0]], [[1]], [[0], [1]]):
        training, dataset = prepared(tmp_path, optimiser=optimiser, accumulate=2)
        training.train_config = sample_all(training.train_config, 20)
        before = training.model.rpn_head.rpn_conv.weight.detach().clone()
        batches = [dataset[[(0, number) for number in each]] for each in numbers]
        take_step(training, batches, factor=1.0)
        moved.append(training.model.rpn_head.rpn_conv.weight.detach() - before)
    mean = (moved[0] + moved[1]) / 2
    assert torch.allclose(moved[2], mean, rtol=1e-3, atol=float(mean.abs().max()) * 1e-3)
    assert moved[2].abs().max() > 0


def test_the_last_batches_of_an_epoch_may_be_fewer() -> None:
    assert [list(group) for group in group_batches(iter("abcde"), 2)] == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.slow
def test_a_run_with_accumulation_and_balance_resumes_with_the_same_curve(tmp_path) -> None:
    settings = {"images": 5, "accumulate": 2, "class_balance": 0.9, "batch_size": 1, "checkpoint_steps": 2, "epochs": 1}

    class KilledError(Exception):
        pass

    def kill(done, steps, losses):
        if done == 3:
            raise KilledError

    train(tmp_path / "whole", **settings)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", on_step=kill, **settings)
    train(tmp_path / "killed", **settings)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == 4  # the rare class is on two of five images: 7 batches of one


@pytest.mark.slow
def test_more_epochs_of_the_flat_schedule_equal_a_longer_run(tmp_path, caplog) -> None:
    train(tmp_path / "grown", optimiser=FLAT, epochs=2)
    first = curve(tmp_path / "grown")
    rates = [line["learning_rate"] for line in logged(tmp_path / "grown")]
    assert rates[0] == 1e-3
    train(tmp_path / "grown", optimiser=FLAT, epochs=3)
    train(tmp_path / "whole", optimiser=FLAT, epochs=3)
    assert "goes on from step 1, before the learning rate fell" in caplog.text
    assert curve(tmp_path / "grown") == curve(tmp_path / "whole")
    assert first[0] == curve(tmp_path / "whole")[0]
    grown, whole = (load_weights(tmp_path / name / "weights.safetensors").state for name in ("grown", "whole"))
    assert all(torch.equal(grown[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_epochs_grow_with_another_schedule_and_do_not_shrink(tmp_path, caplog) -> None:
    train(tmp_path, epochs=1)
    train(tmp_path, epochs=2)
    assert "epochs grow from 1 to 2" in caplog.text
    assert [step for step, _ in curve(tmp_path)] == [1, 2]
    with pytest.raises(CheckpointError, match="epochs 2, which may grow, not shrink to 1"):
        train(tmp_path, epochs=1)


@pytest.mark.slow
def test_patience_ends_a_run_which_keeps_its_best_weights_and_stays_ended(tmp_path, monkeypatch) -> None:
    scores = iter([0.1, 0.4, 0.4, 0.2, 0.9])
    monkeypatch.setattr(
        "htc_model.training.run._evaluate_sets",
        lambda *_: {"evaluation": {"val": {"mask_ap": next(scores)}}, "classes": {"val": {}}},
    )
    settings = {"epochs": 5, "patience": 2, "val_share": 0.5, "pictures": 0, "log_steps": 5}
    seen = []
    train(tmp_path, scored=True, on_evaluation=seen.append, **settings)
    assert [(line["epoch"], line["is_best"]) for line in seen] == [(0, True), (1, True), (2, False), (3, False)]
    best = load_weights(tmp_path / "best.safetensors").metadata
    assert (best["steps"], best["scores"]["val"]["mask_ap"]) == (2, 0.4)
    assert load_weights(tmp_path / "weights.safetensors").metadata["steps"] == 4
    train(tmp_path, scored=True, on_evaluation=seen.append, **settings)
    assert len(seen) == 4, "it was trained again"
    # With more patience it goes on, and what is better then is kept.
    train(tmp_path, scored=True, on_evaluation=seen.append, **{**settings, "patience": 3})
    assert seen[-1]["is_best"]
    assert load_weights(tmp_path / "best.safetensors").metadata["scores"]["val"]["mask_ap"] == 0.9


@pytest.mark.slow
def test_an_evaluation_has_scores_by_class_a_page_and_best_weights(tmp_path) -> None:
    seen = []
    train(tmp_path, scored=True, on_evaluation=seen.append, epochs=1, pictures=1)
    (line,) = seen
    assert set(line["classes"]["val"]) == {"three", "seven"}
    assert line["classes"]["val"]["three"]["objects"] == 1
    assert line == logged(tmp_path)[-1]
    assert (tmp_path / "pictures" / "epoch-001.jpg").stat().st_size > 1000
    assert (tmp_path / "best.safetensors").exists()


@pytest.mark.slow
def test_a_loss_scale_changes_nothing_but_the_steps_that_overflow(tmp_path) -> None:
    weights = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        training, dataset = prepared(tmp_path, scaler=scaler)
        take_step(training, [dataset[[(0, 0)]]], factor=1.0)
        weights.append(training.model.rpn_head.rpn_conv.weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-6)
    training, dataset = prepared(tmp_path, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**127))
    before = training.model.rpn_head.rpn_conv.weight.detach().clone()
    take_step(training, [dataset[[(0, 0)]]], factor=1.0)
    assert training.scaler.get_scale() < 2.0**127
    assert torch.equal(training.model.rpn_head.rpn_conv.weight, before)
    assert training.average.updates == 0
    training.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    training.model.rpn_head.rpn_cls.bias.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(TrainingStoppedError, match=r"not finite in fp16.*bf16"):
        take_step(training, [dataset[[(0, 0)]]], factor=1.0)


@pytest.mark.slow
def test_bf16_trains_on_a_cpu(tmp_path) -> None:
    train(tmp_path, epochs=1, precision="bf16")
    assert all(0 < total < 100 for _, total in curve(tmp_path))


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(ModelConfigError, match="A batch of 3 is more than the 2 training images"):
        train(tmp_path / "batch", batch_size=3)
    with pytest.raises(ModelConfigError, match="fp16 needs a GPU"):
        train(tmp_path / "half", precision="fp16")
    assert not list(tmp_path.iterdir())


def test_patience_needs_something_to_score() -> None:
    with pytest.raises(ValueError, match="patience needs a validation set"):
        small_spec("out", patience=2)
    assert small_spec("out", patience=2, val_share=0.1).evaluate_epochs == 1
    with pytest.raises(ValueError, match="cannot both be given"):
        small_spec("out", val_share=0.1, evaluate=[{"annotations": "a.json", "images": "a"}])


@pytest.mark.parametrize("preset", ["scnet_r50_fpn", "htc_r50_fpn_ga", "htc_challenge"])
def test_networks_without_losses_are_refused_by_name(preset) -> None:
    with pytest.raises(ModelConfigError, match=f"{preset} cannot be trained here"):
        build_model_config(ModelSection(preset=preset), ["cup"], [1])
