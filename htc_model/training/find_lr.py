"""Learning-rate range test: a few steps with rising learning rates show which ones the losses bear."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from htc_model.training.dataset import TrainingBatch, TrainingDataset, iterate_batches
from htc_model.training.freezing import set_training_mode
from htc_model.training.loop import OnStep, Training, TrainingStoppedError, group_batches, plan_epoch, take_step

STEPS = 100
LOWEST, HIGHEST = 1e-6, 0.1
# The loss is smoothed by a moving average with this weight on the past.
_SMOOTHING = 0.9
# The test ends when the smoothed loss is so many times its minimum; what comes then is only larger.
_DIVERGED = 3.0


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    rates: ascending. losses: smoothed, one per rate. suggestion: a tenth of the rate with the lowest loss.
    steepest: the rate at which the loss falls fastest. has_diverged: whether a rate was reached that the losses do not
        bear; without that, the suggestion may be too low.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float
    steepest: float
    has_diverged: bool

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def find_learning_rate(
    training: Training, dataset: TrainingDataset, *, steps: int = STEPS, on_step: OnStep | None = None
) -> RangeTest:
    """Train with learning rates that rise from 1e-6 to 0.1, by the same factor each step, until the loss explodes.

    Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3. A tenth of the rate
    with the lowest loss leaves a margin, since the best rate of a short test is too high for a long run.

    Args:
        training: fresh; its weights are of no use afterwards.
        dataset: the training images.
        steps: how many rates are tried.
        on_step: called after each step, for progress.

    Raises:
        TrainingStoppedError: already the lowest rates do not give a finite loss, or memory ran out.
    """
    set_training_mode(training.model, has_frozen_batch_norm=training.spec.model.batch_norm == "frozen")
    rates: list[float] = []
    losses: list[float] = []
    past, has_diverged = 0.0, False
    for batches in _endless(training, dataset):
        rate = LOWEST * (HIGHEST / LOWEST) ** (training.step / max(steps - 1, 1))
        try:
            found = take_step(training, batches, factor=rate / training.spec.optimiser.learning_rate)
        except TrainingStoppedError:
            if len(rates) < 2:
                raise
            has_diverged = True
            break
        training.step += 1
        past = _SMOOTHING * past + (1 - _SMOOTHING) * found["total"]
        rates.append(rate)
        losses.append(past / (1 - _SMOOTHING**training.step))
        if on_step is not None:
            on_step(training.step, steps, found)
        has_diverged = losses[-1] > _DIVERGED * min(losses)
        if has_diverged or training.step == steps:
            break
    return judge(rates, losses, has_diverged=has_diverged)


def judge(rates: Sequence[float], losses: Sequence[float], *, has_diverged: bool) -> RangeTest:
    """Suggest a learning rate from smoothed losses.

    Args:
        rates: ascending, at least one. losses: one per rate.
    """
    lowest = min(range(len(losses)), key=losses.__getitem__)
    falls = [losses[index] - losses[index + 1] for index in range(lowest)]
    steepest = max(range(len(falls)), key=falls.__getitem__) if falls else lowest
    return RangeTest(list(rates), list(losses), rates[lowest] / 10, rates[steepest], has_diverged)


def _endless(training: Training, dataset: TrainingDataset) -> Iterator[Sequence[TrainingBatch]]:
    epoch = 0
    while True:
        plan = plan_epoch(dataset.annotations, training.spec, training.repeats, epoch=epoch, first_batch=0)
        yield from group_batches(
            iterate_batches(dataset, plan, loaders=training.spec.loaders), training.spec.accumulate
        )
        epoch += 1
