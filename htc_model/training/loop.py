"""The training loop: batches in, weights out; a killed run resumes at its last checkpoint with the same results."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from htc_model.finite import NonFiniteError, non_finite_keys, unusable_keys
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch
from htc_model.training import distributed
from htc_model.training.annotations import CocoAnnotations
from htc_model.training.checkpoint import Checkpoint, write_checkpoint
from htc_model.training.dataset import BatchPlan, TrainingBatch, TrainingDataset, iterate_batches
from htc_model.training.detector_losses import compute_losses
from htc_model.training.ema import WeightAverage
from htc_model.training.freezing import set_training_mode
from htc_model.training.learning_rate import learning_rate_factor
from htc_model.training.metrics_file import append_metrics, drop_metrics_after
from htc_model.training.spec import TrainingSpec
from htc_model.training.train_config import TrainConfig

logger = logging.getLogger(__name__)

# Called after each step with its number, the number of all steps, and the losses.
OnStep = Callable[[int, int, Mapping[str, float]], None]
# Called while the model holds the averaged weights; returns scores by name.
Evaluate = Callable[[HTC], dict[str, Any]]

OUT_OF_MEMORY_ADVICE = "lower batch_size, then model.short_side, then sampling.rois"


class TrainingStoppedError(RuntimeError):
    """Training cannot continue; the message is one sentence that names the batch and what to do."""


@dataclass
class Training:
    """The state of one training run that changes from step to step, and what changes it.

    step: how many steps are done. device: where the model is.
    """

    spec: TrainingSpec
    model: HTC
    train_config: TrainConfig
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    device: torch.device
    step: int = 0

    def checkpoint(self, config: dict[str, Any]) -> Checkpoint:
        """Collect what a resumed run needs."""
        return Checkpoint(
            self.step,
            self.spec.model_dump(mode="json"),
            config,
            self.model.state_dict(),
            self.optimiser.state_dict(),
            self.average.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the state back to a checkpoint's."""
        self.step = checkpoint.step
        self.model.load_state_dict(checkpoint.model)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        self.average.load_state_dict(checkpoint.average)


@dataclass(frozen=True)
class TrainingFiles:
    """Where a run keeps its state, all in one local folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step and per evaluation."""
        return self.folder / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """The metrics, plotted."""
        return self.folder / "curves.png"

    @property
    def weights(self) -> Path:
        """The averaged weights, the result of the run."""
        return self.folder / "weights.safetensors"


def steps_per_epoch(annotations: CocoAnnotations, spec: TrainingSpec) -> int:
    """Count one process's steps in one pass over the images."""
    return _plan(annotations, spec, epoch=0, first_batch=0).batch_count


def train_steps(
    training: Training,
    dataset: TrainingDataset,
    files: TrainingFiles,
    config: dict[str, Any],
    *,
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Train from `training.step` to the end of the last epoch.

    Args:
        training: fresh, or restored from a checkpoint.
        dataset: the training images.
        files: where checkpoints and metrics go; only the process of rank 0 writes.
        config: of the model, as plain values for the checkpoint.
        evaluate: called every `evaluate_epochs` epochs and at the end, with the averaged weights.
        on_step: called after each step, for progress.

    Raises:
        TrainingStoppedError: a loss, a gradient or a weight is not finite, or memory ran out.
    """
    spec = training.spec
    per_epoch = steps_per_epoch(dataset.annotations, spec)
    steps = per_epoch * spec.epochs
    if distributed.rank() == 0:
        drop_metrics_after(files.metrics, training.step)
    while training.step < steps:
        epoch, first_batch = divmod(training.step, per_epoch)
        plan = _plan(dataset.annotations, spec, epoch=epoch, first_batch=first_batch)
        set_training_mode(training.model, has_frozen_batch_norm=spec.model.batch_norm == "frozen")
        for batch in iterate_batches(dataset, plan, loaders=spec.loaders):
            started = time.monotonic()
            losses = _take_step(training, batch, steps)
            training.step += 1
            if training.step % spec.log_steps == 0 or training.step == 1:
                losses = distributed.average_named(losses)
                line = {"step": training.step, "steps": steps, "epoch": epoch, "losses": losses}
                line["skipped"] = batch.unreadable
                line["learning_rate"] = training.optimiser.param_groups[-1]["lr"]
                line["images_per_s"] = round(len(batch.names) / (time.monotonic() - started), 3)
                _write_metrics(files.metrics, line)
            if training.step % spec.checkpoint_steps == 0:
                _save(training, files, config)
            if on_step is not None:
                on_step(training.step, steps, losses)
        _evaluate(training, files, epoch, evaluate)
        _save(training, files, config)


def _plan(annotations: CocoAnnotations, spec: TrainingSpec, *, epoch: int, first_batch: int) -> BatchPlan:
    return BatchPlan(
        [image.width / image.height for image in annotations.images],
        spec.batch_size,
        seed=spec.seed,
        epoch=epoch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        first_batch=first_batch,
    )


def _take_step(training: Training, batch: TrainingBatch, steps: int) -> dict[str, float]:
    """Forward, backward, update: the losses by name, "total" among them."""
    for name in batch.unreadable:
        logger.warning("skipped %s", name)
    try:
        losses = _compute_gradients(training, batch)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(training, batch) from error
    except RuntimeError as error:
        # The CPU's allocator has no exception of its own.
        if "not enough memory" not in str(error):
            raise
        raise _out_of_memory(training, batch) from error
    spec = training.spec
    parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    distributed.average_gradients(parameters)
    _check_gradients(training, batch)
    if spec.optimiser.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, spec.optimiser.clip_norm)
    factor = learning_rate_factor(
        training.step,
        steps=steps,
        warmup_steps=spec.optimiser.warmup_steps,
        kind=spec.optimiser.schedule,
    )
    for group in training.optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    training.optimiser.step()
    training.average.update(training.model)
    return losses


def _check_gradients(training: Training, batch: TrainingBatch) -> None:
    """Raise if a gradient is not finite: clipping by the norm would spread one NaN to every weight."""
    gradients = {name: parameter.grad for name, parameter in training.model.named_parameters()}
    wrong = non_finite_keys(gradients)
    if wrong:
        raise TrainingStoppedError(
            f"The gradient of {wrong[0]} is not finite at step {training.step}, batch {', '.join(batch.names)}, though "
            "its loss is; lower optimiser.learning_rate, or train with precision float32."
        )


def _compute_gradients(training: Training, batch: TrainingBatch) -> dict[str, float]:
    device, spec = training.device, training.spec
    images = ImageBatch(
        batch.images.pixels.to(device, non_blocking=True), batch.images.image_sizes, batch.images.original_sizes
    )
    truths = [truth.to(device) for truth in batch.truths]
    # Seeded by the step's number, so that a resumed run samples what the killed one would have sampled.
    seed = (spec.seed * 1_000_003 + training.step) * distributed.world_size() + distributed.rank()
    generator = torch.Generator().manual_seed(seed)
    has_autocast = spec.precision == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16) if has_autocast else contextlib.nullcontext():
        trace = compute_losses(training.model, images, truths, training.train_config, generator=generator)
        total = trace.total
    losses = {name: float(value.detach()) for name, value in trace.losses.items()} | {"total": float(total.detach())}
    if not torch.isfinite(total):
        raise TrainingStoppedError(
            f"The loss is {losses['total']} at step {training.step}, batch {', '.join(batch.names)} "
            f"({_describe(losses)}); check these images' annotations, or lower optimiser.learning_rate."
        )
    training.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    return losses


def _out_of_memory(training: Training, batch: TrainingBatch) -> TrainingStoppedError:
    return TrainingStoppedError(
        f"Memory ran out at step {training.step}, batch {', '.join(batch.names)} of "
        f"{tuple(batch.images.pixels.shape)}; {OUT_OF_MEMORY_ADVICE}."
    )


def _describe(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in losses.items() if name != "total")


def _evaluate(training: Training, files: TrainingFiles, epoch: int, evaluate: Evaluate | None) -> None:
    """Score the averaged weights if an evaluation is due; only in the process of rank 0."""
    spec = training.spec
    is_last = epoch == spec.epochs - 1
    is_due = is_last or (spec.evaluate_epochs > 0 and (epoch + 1) % spec.evaluate_epochs == 0)
    if evaluate is None or not is_due or distributed.rank() != 0:
        return
    learning = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    training.model.load_state_dict(training.average.state)
    try:
        scores = evaluate(training.model)
    except NonFiniteError as error:
        raise TrainingStoppedError(
            f"The averaged weights cannot be scored after step {training.step}: {error}; lower optimiser.learning_rate."
        ) from error
    training.model.load_state_dict(learning)
    _write_metrics(files.metrics, {"step": training.step, "epoch": epoch, "evaluation": scores})


def _save(training: Training, files: TrainingFiles, config: dict[str, Any]) -> None:
    if distributed.rank() != 0:
        return
    wrong = unusable_keys(training.model.state_dict()) or unusable_keys(training.average.state)
    if wrong:
        # The previous checkpoint stays: training can resume from it with other settings.
        raise TrainingStoppedError(
            f"{wrong[0]} is not finite after step {training.step}, so no checkpoint is written; lower "
            "optimiser.learning_rate."
        )
    write_checkpoint(files.checkpoint, training.checkpoint(config))


def _write_metrics(path: Path, line: Mapping[str, Any]) -> None:
    if distributed.rank() == 0:
        append_metrics(path, line)
