"""Training by one process: COCO annotations and images, each from a local path or any storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from htc_model.config import ModelConfigError
from htc_model.training.annotations import AnnotationError
from htc_model.training.checkpoint import CheckpointError
from htc_model.training.find_lr import RangeTest
from htc_model.training.loop import OnLine, OnStep, TrainingStoppedError
from htc_model.training.run import find_rate, run_training
from htc_model.training.spec import TrainingSpec
from htc_model.weights.openmmlab import WeightsError
from pipeline.errors import RunError, SpecError
from pipeline.storage.storage import Storage
from pipeline.training.data import load_data, load_initial_weights


def train_alone(
    spec: TrainingSpec,
    *,
    storage: Storage | None = None,
    device: str = "cpu",
    on_step: OnStep | None = None,
    on_evaluation: OnLine | None = None,
) -> Path:
    """Train in this process, from the output folder's checkpoint on if there is one.

    Several processes that torch.distributed has joined, each calling this, train as one.

    Args:
        spec: `workers` is ignored.
        storage: reads annotations and images.
        device: to train on.
        on_step: called after each step, for progress.
        on_evaluation: called after each evaluation with its line of metrics.

    Returns:
        the finished `.safetensors` file.

    Raises:
        SpecError: annotations, classes, preset, initial weights or checkpoint do not fit the spec.
        StorageError: an annotation file cannot be read.
        RunError: a loss is not finite, or memory ran out.
    """
    storage = storage or Storage()
    with _translated():
        data = load_data(spec, storage)
        return run_training(
            spec,
            data.annotations,
            data.load_image,
            evaluation=data.evaluation,
            load_state=lambda _: load_initial_weights(spec, storage),
            load_stuff=data.load_stuff,
            device=device,
            on_step=on_step,
            on_evaluation=on_evaluation,
        )


def find_rate_alone(
    spec: TrainingSpec, *, storage: Storage, device: str = "cpu", on_step: OnStep | None = None
) -> RangeTest:
    """Try learning rates, see `htc_model.training.run.find_rate`; args and raises as `train_alone`."""
    with _translated():
        data = load_data(spec, storage)
        return find_rate(
            spec,
            data.annotations,
            data.load_image,
            load_state=lambda _: load_initial_weights(spec, storage),
            load_stuff=data.load_stuff,
            device=device,
            on_step=on_step,
        )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (AnnotationError, ModelConfigError, CheckpointError, WeightsError) as error:
        raise SpecError(str(error)) from error
    except TrainingStoppedError as error:
        raise RunError(str(error)) from error
