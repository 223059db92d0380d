"""Loggers: the metrics of a training run, also sent to TensorBoard, MLflow or Weights & Biases."""

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from htc_model.config import ModelConfigError
from htc_model.training.spec import LoggerName

logger = logging.getLogger(__name__)

_TITLES: dict[LoggerName, str] = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}
# What MLflow allows in a metric's name; the others allow more.
_NOT_IN_NAMES = re.compile(r"[^\w .:/-]")


class MetricLogger(Protocol):
    """One place that metrics are sent to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step."""

    def log_page(self, step: int, page: Path) -> None:
        """Send a page of pictures, a JPEG."""

    def close(self) -> None:
        """Send what is left."""


class Loggers:
    """All loggers of a run; one that fails while training goes on is named once and left out from then on.

    Args:
        names: which ones. folder: of the training run, where they keep what they write on this machine. settings: the
            training spec as plain values. step: the last step of the checkpoint that is resumed; 0 for a new run.

    Raises:
        ModelConfigError: a package is not installed, or a logger cannot be opened.
    """

    def __init__(self, names: Sequence[LoggerName], folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self._open: dict[LoggerName, MetricLogger] = {}
        for name in dict.fromkeys(names):
            self._open[name] = _open_logger(name, folder, settings, step)

    def log_line(self, line: Mapping[str, Any]) -> None:
        """Send a line of metrics."""
        values = dict(flatten_line(line))
        for name in list(self._open):
            self._call(name, "log", line["step"], values)

    def log_page(self, step: int, page: Path) -> None:
        """Send a page of pictures."""
        for name in list(self._open):
            self._call(name, "log_page", step, page)

    def close(self) -> None:
        """Send what is left."""
        for name in list(self._open):
            self._call(name, "close")
        self._open.clear()

    def _call(self, name: LoggerName, method: str, *arguments: object) -> None:
        try:
            getattr(self._open[name], method)(*arguments)
        except Exception as error:  # noqa: BLE001 - a server that is gone must not end a training of days
            del self._open[name]
            logger.warning("%s gets no more metrics, training goes on: %s", _TITLES[name], _reason(error))


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Check that the packages of the loggers are installed.

    Raises:
        ModelConfigError: one is not; the message has the command that installs it.
    """
    for name in names:
        try:
            _import(name)
        except ImportError as error:
            raise ModelConfigError(
                f"The logger {name} needs a package that is not installed ({_reason(error)}): "
                f"pip install 'htc-batch[{name}]', or leave it out of loggers."
            ) from error


def flatten_line(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name the numbers of a line of metrics: "loss/total", "learning_rate", "val/mask_ap", "val/person/mask_ap".

    Scores of -1, where there was nothing to score, are left out.
    """
    for name, value in line.get("losses", {}).items():
        yield f"loss/{name}", value
    for name in ("learning_rate", "images_per_s"):
        if name in line:
            yield name, line[name]
    for data_set, scores in line.get("evaluation", {}).items():
        short = Path(data_set).stem
        yield from ((f"{short}/{name}", value) for name, value in scores.items() if value >= 0)
        for label, by_class in line.get("classes", {}).get(data_set, {}).items():
            plain = _NOT_IN_NAMES.sub("_", label)
            yield from ((f"{short}/{plain}/{name}", value) for name, value in by_class.items() if value >= 0)


def _import(name: LoggerName) -> None:
    if name == "tensorboard":
        import torch.utils.tensorboard  # noqa: F401
    elif name == "mlflow":
        import alembic  # noqa: F401 - of the extra: MLflow's SQLite store needs it
        import mlflow  # noqa: F401
    else:
        import wandb  # noqa: F401


def _open_logger(name: LoggerName, folder: Path, settings: Mapping[str, Any], step: int) -> MetricLogger:
    kinds: dict[LoggerName, type[_TensorBoard | _Mlflow | _Wandb]] = {
        "tensorboard": _TensorBoard,
        "mlflow": _Mlflow,
        "wandb": _Wandb,
    }
    check_loggers([name])
    try:
        return kinds[name](folder, settings, step)
    except Exception as error:  # any library's own exceptions
        raise ModelConfigError(
            f"{_TITLES[name]} cannot be opened ({_reason(error)}); mend its settings in the environment, or leave "
            f"{name} out of loggers."
        ) from error


class _TensorBoard:
    """Event files in OUTPUT/tensorboard; steps that a resumed run takes again replace the old ones."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=1)}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_page(self, step: int, page: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(page) as image:
            self._writer.add_image("pictures", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    """A run of the experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI; by default in OUTPUT/mlflow.db."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        import mlflow

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        kept = _RunName(folder / "mlflow_run.txt", step)
        if kept.name is not None:
            self._run = kept.name
            self._client.update_run(self._run, status="RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "htc train"
        experiment = self._client.get_experiment_by_name(title)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (folder / "mlflow_files").absolute().as_uri()
        number = self._client.create_experiment(title, place) if experiment is None else experiment.experiment_id
        self._run = self._client.create_run(number, run_name=folder.name).info.run_id
        kept.keep(self._run)
        for name, value in _flatten(settings):
            self._client.log_param(self._run, name, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def log_page(self, step: int, page: Path) -> None:
        self._client.log_artifact(self._run, str(page), "pictures")

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb:
    """A run of the project WANDB_PROJECT ("htc-train"); WANDB_MODE=offline keeps it in OUTPUT/wandb."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        kept = _RunName(folder / "wandb_run.txt", step)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "htc-train",
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            id=kept.name,
            resume=None if kept.name is None or os.environ.get("WANDB_MODE") == "offline" else "allow",
            # Its banner and its hold on stderr would break the progress bar.
            settings=wandb.Settings(silent=True, console="off"),
        )
        kept.keep(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_page(self, step: int, page: Path) -> None:
        import wandb

        self._run.log({"pictures": wandb.Image(str(page))}, step=step)

    def close(self) -> None:
        self._run.finish()


class _RunName:
    """The file with a logger's name for this run, so that a resumed training continues it."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        known = path.read_text(encoding="utf-8").strip() if step and path.exists() else ""
        self.name: str | None = known or None

    def keep(self, name: str) -> None:
        self._path.write_text(f"{name}\n", encoding="utf-8")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
