"""The training loop: batches in, weights out; a killed run resumes at its last checkpoint with the same results."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from htc_model.finite import NonFiniteError, non_finite_keys, unusable_keys
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch
from htc_model.training import distributed
from htc_model.training.annotations import CocoAnnotations
from htc_model.training.best import find_best, selection_score
from htc_model.training.checkpoint import Checkpoint, write_checkpoint
from htc_model.training.dataset import BatchPlan, TrainingBatch, TrainingDataset, iterate_batches
from htc_model.training.detector_losses import compute_losses
from htc_model.training.ema import WeightAverage
from htc_model.training.freezing import set_training_mode
from htc_model.training.learning_rate import cooldown_start, learning_rate_factor
from htc_model.training.metrics_file import append_metrics, drop_metrics_after, read_metrics
from htc_model.training.precision import Settled, autocast
from htc_model.training.spec import TrainingSpec
from htc_model.training.train_config import TrainConfig

logger = logging.getLogger(__name__)

# Called after each step with its number, the number of all steps, and the losses.
OnStep = Callable[[int, int, Mapping[str, float]], None]
# Called while the model holds the averaged weights, with the epoch; returns `evaluation`, scores by data set, and what
# else belongs into the line of metrics.
Evaluate = Callable[[HTC, int], dict[str, Any]]
# Called with each line of metrics.
OnLine = Callable[[Mapping[str, Any]], None]
# Called when the averaged weights have a better score than all before, with their line of metrics.
SaveBest = Callable[[Mapping[str, Any]], None]

OUT_OF_MEMORY_ADVICE = "lower batch_size, then model.short_side, then sampling.rois"


class TrainingStoppedError(RuntimeError):
    """Training cannot continue; the message is one sentence that names the batch and what to do."""


@dataclass
class Training:
    """The state of one training run that changes from step to step, and what changes it.

    device: where the model is. precision: of the arithmetic. scaler: fp16's loss scale. repeats: [N], how often each
        image is taken in an epoch; None is once. step: how many steps are done.
    """

    spec: TrainingSpec
    model: HTC
    train_config: TrainConfig
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    device: torch.device
    precision: Settled = "fp32"
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    repeats: NDArray[np.float64] | None = None
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
            self.scaler.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the state back to a checkpoint's."""
        self.step = checkpoint.step
        self.model.load_state_dict(checkpoint.model)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        self.average.load_state_dict(checkpoint.average)
        if checkpoint.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.scaler)


@dataclass(frozen=True)
class TrainingFiles:
    """Where a run keeps its state, all in one local folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def before_cooldown(self) -> Path:
        """The checkpoint from which a run with the flat schedule continues when it is given more epochs."""
        return self.folder / "before_cooldown.pt"

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
        """The averaged weights after the last step."""
        return self.folder / "weights.safetensors"

    @property
    def best(self) -> Path:
        """The averaged weights of the evaluation with the best score."""
        return self.folder / "best.safetensors"

    @property
    def pictures(self) -> Path:
        """The folder of drawn detections, a page per evaluation."""
        return self.folder / "pictures"


def steps_per_epoch(
    annotations: CocoAnnotations, spec: TrainingSpec, repeats: NDArray[np.float64] | None = None
) -> int:
    """Count one process's steps in one pass over the images; a step takes `spec.accumulate` batches, the last fewer."""
    batches = plan_epoch(annotations, spec, repeats, epoch=0, first_batch=0).batch_count
    return -(-batches // spec.accumulate)


def train_steps(
    training: Training,
    dataset: TrainingDataset,
    files: TrainingFiles,
    config: dict[str, Any],
    *,
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    on_line: OnLine | None = None,
    save_best: SaveBest | None = None,
) -> None:
    """Train from `training.step` to the end of the last epoch, or until `spec.patience` is at its end.

    Args:
        training: fresh, or restored from a checkpoint.
        dataset: the training images.
        files: where checkpoints and metrics go; only the process of rank 0 writes.
        config: of the model, as plain values for the checkpoint.
        evaluate: called every `evaluate_epochs` epochs and at the end, with the averaged weights.
        on_step: called after each step, for progress.
        on_line: called with each new line of metrics, in the process of rank 0.
        save_best: called while the model holds the averaged weights that have a better score than all before.

    Raises:
        TrainingStoppedError: a loss, a gradient or a weight is not finite, or memory ran out.
    """
    spec = training.spec
    per_epoch = steps_per_epoch(dataset.annotations, spec, training.repeats)
    steps = per_epoch * spec.epochs
    falls_from = cooldown_start(spec.epochs, per_epoch)
    log = _Log(files, on_line)
    if distributed.rank() == 0:
        drop_metrics_after(files.metrics, training.step)
    while training.step < steps and not has_lost_patience(files, spec):
        epoch, first_step = divmod(training.step, per_epoch)
        plan = plan_epoch(
            dataset.annotations, spec, training.repeats, epoch=epoch, first_batch=first_step * spec.accumulate
        )
        set_training_mode(training.model, has_frozen_batch_norm=spec.model.batch_norm == "frozen")
        for batches in group_batches(iterate_batches(dataset, plan, loaders=spec.loaders), spec.accumulate):
            started = time.monotonic()
            factor = _learning_rate_factor(training, steps=steps, per_epoch=per_epoch)
            losses = take_step(training, batches, factor=factor)
            training.step += 1
            if training.step % spec.log_steps == 0 or training.step == 1:
                losses = distributed.average_named(losses)
                line = {"step": training.step, "steps": steps, "epoch": epoch, "losses": losses}
                line["skipped"] = [reason for batch in batches for reason in batch.unreadable]
                line["learning_rate"] = training.optimiser.param_groups[-1]["lr"]
                images = sum(len(batch.names) for batch in batches)
                line["images_per_s"] = round(images / (time.monotonic() - started), 3)
                log.write(line)
            if training.step % spec.checkpoint_steps == 0:
                _save(training, files.checkpoint, config)
            if on_step is not None:
                on_step(training.step, steps, losses)
        _evaluate(training, log, epoch, evaluate, save_best)
        _save(training, files.checkpoint, config)
        if spec.optimiser.schedule == "flat" and training.step == falls_from:
            _save(training, files.before_cooldown, config)


class _Log:
    """Writes lines of metrics, in the process of rank 0."""

    def __init__(self, files: TrainingFiles, on_line: OnLine | None) -> None:
        self.path = files.metrics
        self._on_line = on_line

    def write(self, line: Mapping[str, Any]) -> None:
        if distributed.rank() != 0:
            return
        append_metrics(self.path, line)
        if self._on_line is not None:
            self._on_line(line)


def has_lost_patience(files: TrainingFiles, spec: TrainingSpec) -> bool:
    """Return whether the last `spec.patience` evaluations were no better than one before; equal in all processes."""
    if spec.patience is None:
        return False
    best = find_best(read_metrics(files.metrics)) if distributed.rank() == 0 else None
    return distributed.agree(best is not None and best.evaluations_since >= spec.patience)


def plan_epoch(
    annotations: CocoAnnotations,
    spec: TrainingSpec,
    repeats: NDArray[np.float64] | None,
    *,
    epoch: int,
    first_batch: int,
) -> BatchPlan:
    """Plan this process's batches of an epoch, from `first_batch` on."""
    return BatchPlan(
        [image.width / image.height for image in annotations.images],
        spec.batch_size,
        seed=spec.seed,
        epoch=epoch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        first_batch=first_batch,
        repeats=repeats,
    )


def group_batches(batches: Iterator[TrainingBatch], count: int) -> Iterator[Sequence[TrainingBatch]]:
    """Group the batches of each step; one at a time is passed on without waiting for the next."""
    group: list[TrainingBatch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def take_step(training: Training, batches: Sequence[TrainingBatch], *, factor: float) -> dict[str, float]:
    """Forward, backward, update.

    Args:
        batches: of this step. factor: of the base learning rates.

    Returns:
        the losses by name, averaged over the batches, "total" among them.

    Raises:
        TrainingStoppedError: a loss or gradient is not finite, or memory ran out.
    """
    spec, scaler = training.spec, training.scaler
    training.optimiser.zero_grad(set_to_none=True)
    parts = []
    for number, batch in enumerate(batches):
        for name in batch.unreadable:
            logger.warning("skipped %s", name)
        parts.append(_add_gradients(training, batch, number=number, count=len(batches)))
    losses = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    distributed.average_gradients(parameters)
    scale = scaler.get_scale()
    if scaler.is_enabled():
        scaler.unscale_(training.optimiser)
    else:
        _check_gradients(training, batches)
    if spec.optimiser.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, spec.optimiser.clip_norm)
    for group in training.optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    # Without a scale this is the optimiser's own step.
    scaler.step(training.optimiser)
    scaler.update()
    # fp16: the gradients overflowed with the old scale, the step was not taken.
    is_taken = scaler.get_scale() >= scale
    if is_taken:
        training.average.update(training.model)
    elif scaler.get_scale() < 1.0:
        raise TrainingStoppedError(
            f"The gradients are not finite in fp16 at step {training.step}, batch {_names(batches)}, with any loss "
            "scale; set precision to bf16 or fp32, or lower optimiser.learning_rate."
        )
    return losses


def _learning_rate_factor(training: Training, *, steps: int, per_epoch: int) -> float:
    spec = training.spec
    return learning_rate_factor(
        training.step,
        steps=steps,
        warmup_steps=warmup_steps(spec, per_epoch),
        kind=spec.optimiser.schedule,
        falls_from=cooldown_start(spec.epochs, per_epoch),
    )


def warmup_steps(spec: TrainingSpec, per_epoch: int) -> int:
    """Count the steps over which the learning rate rises."""
    epochs = spec.optimiser.warmup_epochs
    return spec.optimiser.warmup_steps if epochs is None else round(epochs * per_epoch)


def _names(batches: Sequence[TrainingBatch]) -> str:
    return ", ".join(name for batch in batches for name in batch.names)


def _check_gradients(training: Training, batches: Sequence[TrainingBatch]) -> None:
    """Raise if a gradient is not finite: clipping by the norm would spread one NaN to every weight."""
    gradients = {name: parameter.grad for name, parameter in training.model.named_parameters()}
    wrong = non_finite_keys(gradients)
    if wrong:
        raise TrainingStoppedError(
            f"The gradient of {wrong[0]} is not finite at step {training.step}, batch {_names(batches)}, though "
            "its loss is; lower optimiser.learning_rate, or train with precision fp32."
        )


def _add_gradients(training: Training, batch: TrainingBatch, *, number: int, count: int) -> dict[str, float]:
    """Add one of `count` batches' share to the gradients, scaled for fp16; return its losses."""
    try:
        return _compute_gradients(training, batch, number=number, count=count)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(training, batch) from error
    except RuntimeError as error:
        # The CPU's allocator has no exception of its own.
        if "not enough memory" not in str(error):
            raise
        raise _out_of_memory(training, batch) from error


def _compute_gradients(training: Training, batch: TrainingBatch, *, number: int, count: int) -> dict[str, float]:
    device, spec = training.device, training.spec
    images = ImageBatch(
        batch.images.pixels.to(device, non_blocking=True), batch.images.image_sizes, batch.images.original_sizes
    )
    truths = [truth.to(device) for truth in batch.truths]
    # Seeded by the step's number, so that a resumed run samples what the killed one would have sampled.
    seed = (spec.seed * 1_000_003 + training.step) * distributed.world_size() + distributed.rank()
    generator = torch.Generator().manual_seed(seed * spec.accumulate + number)
    with autocast(training.precision, device):
        trace = compute_losses(training.model, images, truths, training.train_config, generator=generator)
        total = trace.total
    losses = {name: float(value.detach()) for name, value in trace.losses.items()} | {"total": float(total.detach())}
    if not torch.isfinite(total):
        raise TrainingStoppedError(
            f"The loss is {losses['total']} at step {training.step}, batch {', '.join(batch.names)} "
            f"({_describe(losses)}); check these images' annotations, or lower optimiser.learning_rate."
        )
    torch.autograd.backward(training.scaler.scale(total / count))
    return losses


def _out_of_memory(training: Training, batch: TrainingBatch) -> TrainingStoppedError:
    return TrainingStoppedError(
        f"Memory ran out at step {training.step}, batch {', '.join(batch.names)} of "
        f"{tuple(batch.images.pixels.shape)}; {OUT_OF_MEMORY_ADVICE}."
    )


def _describe(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in losses.items() if name != "total")


def _evaluate(training: Training, log: _Log, epoch: int, evaluate: Evaluate | None, save_best: SaveBest | None) -> None:
    """Score the averaged weights if an evaluation is due; only in the process of rank 0."""
    spec = training.spec
    is_last = epoch == spec.epochs - 1
    is_due = is_last or (spec.evaluate_epochs > 0 and (epoch + 1) % spec.evaluate_epochs == 0)
    if evaluate is None or not is_due or distributed.rank() != 0:
        return
    learning = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    training.model.load_state_dict(training.average.state)
    best = find_best(read_metrics(log.path))
    try:
        line = {"step": training.step, "epoch": epoch, **evaluate(training.model, epoch)}
    except NonFiniteError as error:
        raise TrainingStoppedError(
            f"The averaged weights cannot be scored after step {training.step}: {error}; lower optimiser.learning_rate."
        ) from error
    score = selection_score(line["evaluation"])
    line["is_best"] = score is not None and (best is None or score > best.score)
    if line["is_best"] and save_best is not None:
        save_best(line)
    training.model.load_state_dict(learning)
    log.write(line)


def _save(training: Training, path: Path, config: dict[str, Any]) -> None:
    if distributed.rank() != 0:
        return
    wrong = unusable_keys(training.model.state_dict()) or unusable_keys(training.average.state)
    if wrong:
        # The previous checkpoint stays: training can resume from it with other settings.
        raise TrainingStoppedError(
            f"{wrong[0]} is not finite after step {training.step}, so no checkpoint is written; lower "
            "optimiser.learning_rate."
        )
    write_checkpoint(path, training.checkpoint(config))
