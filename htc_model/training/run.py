"""One training run from prepared data to a weights file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from htc_model.config import config_to_dict
from htc_model.network.detector import HTC
from htc_model.training import distributed
from htc_model.training.annotations import CocoAnnotations
from htc_model.training.build import (
    LoadState,
    build_model_config,
    build_optimiser,
    build_train_config,
    build_training_model,
)
from htc_model.training.checkpoint import read_checkpoint
from htc_model.training.dataset import TrainingDataset
from htc_model.training.ema import WeightAverage
from htc_model.training.evaluate import evaluate_model
from htc_model.training.loop import OnStep, Training, TrainingFiles, train_steps
from htc_model.training.metrics_file import read_metrics
from htc_model.training.plots import draw_curves
from htc_model.training.pretrained import describe_reinitialised
from htc_model.training.samples import LoadImage, LoadStuff
from htc_model.training.spec import TrainingSpec
from htc_model.weights.load import save_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out images: their annotations, and how to read them."""

    name: str
    annotations: CocoAnnotations
    load_image: LoadImage


def run_training(
    spec: TrainingSpec,
    annotations: CocoAnnotations,
    load_image: LoadImage,
    *,
    evaluation: Sequence[EvaluationSet] = (),
    load_state: LoadState,
    load_stuff: LoadStuff | None = None,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Path:
    """Train, or resume from the output folder's checkpoint, and write the averaged weights.

    Args:
        spec: the run; `spec.output` is a local folder.
        annotations, load_image: the training images.
        evaluation: scored every `evaluate_epochs` epochs and at the end.
        load_state: reads initial weights that are a file.
        load_stuff: reads the semantic maps that the annotations name.
        device: to train on.
        on_step: called after each step, for progress.

    Returns:
        the `.safetensors` file: weights in half precision, with config, classes and the run's provenance.

    Raises:
        ModelConfigError: preset or initial weights are wrong.
        CheckpointError: the output folder holds the checkpoint of another run.
        TrainingStoppedError: a loss, a gradient or a weight is not finite, or memory ran out.
    """
    config = build_model_config(spec.model, annotations.classes, annotations.category_ids, has_stuff=spec.has_stuff)
    files = TrainingFiles(Path(spec.output))
    files.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = read_checkpoint(files.checkpoint, spec.model_dump(mode="json"), config)
    for bad in annotations.bad:
        logger.warning("left out %s", bad)
    for repaired in annotations.mended:
        logger.warning("repaired %s", repaired)
    for note in annotations.notes:
        logger.warning("%s", note)
    model, initial = build_training_model(spec, config, load_state)
    fresh = [] if initial is None else describe_reinitialised(model, initial)
    if fresh and spec.model.initial != "imagenet":
        logger.warning(
            "%s has no weights that fit these, which start at random: %s", spec.model.initial, ", ".join(fresh)
        )
    model.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    distributed.share_weights(model)
    training = Training(
        spec,
        model,
        build_train_config(config, spec.sampling),
        build_optimiser(model, spec.optimiser),
        WeightAverage(model, spec.optimiser.ema_decay),
        torch.device(device),
    )
    if checkpoint is not None:
        training.restore(checkpoint)

    def evaluate(averaged: HTC) -> dict[str, Any]:
        return {part.name: evaluate_model(averaged, part.annotations, part.load_image) for part in evaluation}

    dataset = TrainingDataset(
        annotations, load_image, config, spec.augmentation.build(), spec.seed, load_stuff=load_stuff
    )
    train_steps(
        training,
        dataset,
        files,
        config_to_dict(config),
        evaluate=evaluate if evaluation else None,
        on_step=on_step,
    )
    if distributed.rank() == 0:
        provenance = {
            "training": spec.model_dump(mode="json"),
            "steps": training.step,
            "pictures": len(annotations.images),
            "initialised_at_random": fresh,
            "left_out": annotations.bad_counts(),
            # From the file, since a run that is resumed after its last step does not evaluate again.
            "scores": _last_scores(files),
            "torch": torch.__version__,
        }
        save_weights(files.weights, halve_state(training.average.state), config, provenance)
        draw_curves(files.metrics, files.curves)
    return files.weights


def _last_scores(files: TrainingFiles) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for line in read_metrics(files.metrics):
        scores = line.get("evaluation", scores)
    return scores


def halve_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert kernels to half precision; norms, biases and counters, few and wide in range, stay as they are.

    So does a kernel with a value beyond half precision's range (65,504), which would become infinite.
    """
    return {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 and _fits_half(tensor) else tensor
        for name, tensor in state.items()
    }


def _fits_half(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.half()).all())
