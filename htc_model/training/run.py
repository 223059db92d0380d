"""One training run from prepared data to a weights file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.config import ModelConfig, ModelConfigError, config_to_dict
from htc_model.network.detector import HTC
from htc_model.training import distributed
from htc_model.training.annotations import CocoAnnotations
from htc_model.training.balance import repeat_factors
from htc_model.training.best import selection_score
from htc_model.training.build import (
    LoadState,
    build_model_config,
    build_optimiser,
    build_train_config,
    build_training_model,
)
from htc_model.training.checkpoint import Checkpoint, read_checkpoint
from htc_model.training.dataset import TrainingDataset
from htc_model.training.ema import WeightAverage
from htc_model.training.evaluate import evaluate_classes
from htc_model.training.find_lr import RangeTest, find_learning_rate
from htc_model.training.learning_rate import cooldown_start
from htc_model.training.loggers import Loggers, check_loggers
from htc_model.training.loop import OnLine, OnStep, Training, TrainingFiles, steps_per_epoch, train_steps
from htc_model.training.metrics_file import read_metrics
from htc_model.training.pictures import PicturePage
from htc_model.training.plots import draw_curves, draw_range_test
from htc_model.training.precision import build_scaler, settle_precision
from htc_model.training.pretrained import describe_reinitialised
from htc_model.training.samples import LoadImage, LoadStuff
from htc_model.training.spec import TrainingSpec
from htc_model.weights.load import load_weights, save_weights

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
    on_evaluation: OnLine | None = None,
) -> Path:
    """Train, or resume from the output folder's checkpoint, and write the averaged weights.

    Args:
        spec: the run; `spec.output` is a local folder.
        annotations, load_image: the training images.
        evaluation: scored every `evaluate_epochs` epochs and at the end; the weights of the best evaluation are kept
            in `best.safetensors`.
        load_state: reads initial weights that are a file.
        load_stuff: reads the semantic maps that the annotations name.
        device: to train on.
        on_step: called after each step, for progress.
        on_evaluation: called after each evaluation with its line of metrics.

    Returns:
        the `.safetensors` file of the last weights, in half precision, with config, classes and the run's provenance.

    Raises:
        ModelConfigError: preset, initial weights, precision or loggers are wrong, or the batch is larger than the data.
        CheckpointError: the output folder holds the checkpoint of another run.
        TrainingStoppedError: a loss, a gradient or a weight is not finite, or memory ran out.
    """
    device = torch.device(device)
    check_loggers(spec.loggers)
    config, repeats = _check_settings(spec, annotations, device)
    files = TrainingFiles(Path(spec.output))
    files.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _read_start(files, spec, config, steps_per_epoch(annotations, spec, repeats))
    training, fresh = _prepare(spec, config, repeats, load_state, device, is_resumed=checkpoint is not None)
    _say_flaws(annotations)
    is_first = distributed.rank() == 0
    if checkpoint is not None:
        training.restore(checkpoint)
    elif is_first:
        # Of a run whose checkpoint was removed.
        files.best.unlink(missing_ok=True)
    plain_spec = spec.model_dump(mode="json")
    loggers = Loggers(spec.loggers if is_first else (), files.folder, plain_spec, training.step)

    def evaluate(averaged: HTC, epoch: int) -> dict[str, Any]:
        page = PicturePage(evaluation[0].annotations, spec.pictures)
        blank = PicturePage(evaluation[0].annotations, 0)
        scores = _evaluate_sets(averaged, evaluation, lambda part: page if part is evaluation[0] else blank)
        path = files.pictures / f"epoch-{epoch + 1:03d}.jpg"
        if page.write(path, f"epoch {epoch + 1}, step {training.step}"):
            loggers.log_page(training.step, path)
        return scores

    def on_line(line: Mapping[str, Any]) -> None:
        loggers.log_line(line)
        if on_evaluation is not None and "evaluation" in line:
            on_evaluation(line)

    saver = _Saver(training, config, annotations, fresh)
    try:
        train_steps(
            training,
            TrainingDataset(
                annotations, load_image, config, spec.augmentation.build(), spec.seed, load_stuff=load_stuff
            ),
            files,
            config_to_dict(config),
            evaluate=evaluate if evaluation else None,
            on_step=on_step,
            on_line=on_line,
            save_best=lambda line: saver.save_best(files.best, line["evaluation"]),
        )
    finally:
        loggers.close()
    if is_first:
        # From the file, since a run that is resumed after its last step does not evaluate again.
        saver.save(files.weights, _last_scores(files))
        draw_curves(files.metrics, files.curves)
    return files.weights


class _Saver:
    """Writes the averaged weights of a run, with its config and provenance; `fresh` are the modules begun at random."""

    def __init__(
        self, training: Training, config: ModelConfig, annotations: CocoAnnotations, fresh: Sequence[str]
    ) -> None:
        self._training = training
        self._config = config
        self._annotations = annotations
        self._fresh = list(fresh)

    def save(self, path: Path, scores: Mapping[str, Any]) -> None:
        training = self._training
        provenance = {
            "training": training.spec.model_dump(mode="json"),
            "steps": training.step,
            "pictures": len(self._annotations.images),
            "initialised_at_random": self._fresh,
            "left_out": self._annotations.bad_counts(),
            "scores": scores,
            "torch": torch.__version__,
        }
        save_weights(path, halve_state(training.average.state), self._config, provenance)

    def save_best(self, path: Path, scores: Mapping[str, Any]) -> None:
        """Save the weights unless those in the file have a better score.

        The file's may be from a cool-down that more epochs replaced, and of which metrics.jsonl has no line any more.
        """
        score = selection_score(scores)
        if score is not None and score > _score_of(path):
            self.save(path, scores)


def find_rate(
    spec: TrainingSpec,
    annotations: CocoAnnotations,
    load_image: LoadImage,
    *,
    load_state: LoadState,
    load_stuff: LoadStuff | None = None,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> RangeTest:
    """Try learning rates on a network that is then forgotten, and suggest one; see `find_learning_rate`.

    Writes `find_lr.json` and `find_lr.png` into the output folder; args and raises as `run_training`.
    """
    device = torch.device(device)
    config, repeats = _check_settings(spec, annotations, device)
    training, _ = _prepare(spec, config, repeats, load_state, device)
    dataset = TrainingDataset(
        annotations, load_image, config, spec.augmentation.build(), spec.seed, load_stuff=load_stuff
    )
    found = find_learning_rate(training, dataset, on_step=on_step)
    folder = Path(spec.output)
    folder.mkdir(parents=True, exist_ok=True)
    found.write(folder / "find_lr.json")
    draw_range_test(found.rates, found.losses, found.suggestion, folder / "find_lr.png")
    return found


def _check_settings(
    spec: TrainingSpec, annotations: CocoAnnotations, device: torch.device
) -> tuple[ModelConfig, NDArray[np.float64] | None]:
    """Check what does not need the weights; return the model's config, and how often each image is taken."""
    config = build_model_config(spec.model, annotations.classes, annotations.category_ids, has_stuff=spec.has_stuff)
    settle_precision(spec.precision, device)
    check_batch(spec, annotations)
    return config, repeat_factors(annotations, spec.class_balance) if spec.class_balance else None


def _prepare(
    spec: TrainingSpec,
    config: ModelConfig,
    repeats: NDArray[np.float64] | None,
    load_state: LoadState,
    device: torch.device,
    *,
    is_resumed: bool = False,
) -> tuple[Training, list[str]]:
    """Build the state at step 0, equal in all processes; the names are those of the modules that start at random."""
    model, fresh = _build_model(spec, config, load_state, is_resumed=is_resumed)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    distributed.share_weights(model)
    precision = settle_precision(spec.precision, device)
    training = Training(
        spec,
        model,
        build_train_config(config, spec.sampling),
        build_optimiser(model, spec.optimiser),
        WeightAverage(model, spec.optimiser.ema_decay),
        device,
        precision,
        build_scaler(precision, device),
        repeats,
    )
    return training, fresh


def check_batch(spec: TrainingSpec, annotations: CocoAnnotations) -> None:
    """Raise ModelConfigError if one step would take more images than there are."""
    images, in_step = len(annotations.images), spec.batch_size * spec.workers
    if in_step > images:
        workers = "" if spec.workers == 1 else f" in each of {spec.workers} workers"
        raise ModelConfigError(
            f"A batch of {spec.batch_size}{workers} is more than the {images} training images; lower batch_size "
            "(--batch-size)."
        )


def _read_start(files: TrainingFiles, spec: TrainingSpec, config: ModelConfig, per_epoch: int) -> Checkpoint | None:
    """Read the checkpoint that the run continues from; see `learning_rate_factor` on more epochs than before."""
    plain = spec.model_dump(mode="json")
    last = read_checkpoint(files.checkpoint, plain, config)
    before = spec.epochs if last is None else int(last.spec["epochs"])
    if last is None or before == spec.epochs:
        return last
    if spec.optimiser.schedule != "flat":
        logger.warning(
            "epochs grow from %d to %d: the learning rate goes on along the longer %s schedule, above where it was; "
            "the schedule flat gives the result of a run with %d epochs from the start",
            before, spec.epochs, spec.optimiser.schedule, spec.epochs,
        )  # fmt: skip
        return last
    if last.step <= cooldown_start(before, per_epoch):
        return last
    earlier = read_checkpoint(files.before_cooldown, plain, config)
    if earlier is None or earlier.step != cooldown_start(before, per_epoch):
        logger.warning(
            "epochs grow from %d to %d: there is no %s, so that training goes on behind its cool-down",
            before, spec.epochs, files.before_cooldown.name,
        )  # fmt: skip
        return last
    logger.warning(
        "epochs grow from %d to %d: training goes on from step %d, before the learning rate fell",
        before, spec.epochs, earlier.step,
    )  # fmt: skip
    return earlier


def _say_flaws(annotations: CocoAnnotations) -> None:
    for bad in annotations.bad:
        logger.warning("left out %s", bad)
    for repaired in annotations.mended:
        logger.warning("repaired %s", repaired)
    for note in annotations.notes:
        logger.warning("%s", note)


def _build_model(
    spec: TrainingSpec, config: ModelConfig, load_state: LoadState, *, is_resumed: bool
) -> tuple[HTC, list[str]]:
    """Build the network; the names are those of the modules that start at random, said when the run begins."""
    model, initial = build_training_model(spec, config, load_state)
    if initial is None:
        return model, []
    fresh = describe_reinitialised(model, initial)
    if fresh and spec.model.initial != "imagenet" and not is_resumed:
        if initial.new_classes:
            kept = f"; those of {', '.join(initial.kept_classes)} are kept" if initial.kept_classes else ""
            new = ", ".join(initial.new_classes)
            logger.warning("new to the weights %s: %s, whose rows start at random%s", spec.model.initial, new, kept)
        logger.warning("no weights of %s fit these, which start at random: %s", spec.model.initial, ", ".join(fresh))
    return model, fresh


def _evaluate_sets(
    model: HTC, evaluation: Sequence[EvaluationSet], page_of: Callable[[EvaluationSet], PicturePage]
) -> dict[str, Any]:
    """Score each data set: "evaluation" over all classes and "classes" for each, by the sets' names."""
    found = {
        part.name: evaluate_classes(model, part.annotations, part.load_image, on_image=page_of(part).add)
        for part in evaluation
    }
    return {
        "evaluation": {name: each.scores for name, each in found.items()},
        "classes": {name: each.classes for name, each in found.items()},
    }


def _score_of(path: Path) -> float:
    """Return the score with which weights were saved; -1 if there are none."""
    if not path.exists():
        return -1.0
    score = selection_score(load_weights(path).metadata.get("scores") or {})
    return -1.0 if score is None else score


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
