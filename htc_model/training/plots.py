"""Plot of a training run: losses above, average precision below."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from htc_model.training.metrics_file import read_metrics

logger = logging.getLogger(__name__)

# A moving mean over this share of the logged steps; the losses of single small batches are noisy.
_SMOOTHING = 0.05
_PLOTTED_SCORES = ("mask_ap50", "mask_ap", "box_ap")


def draw_curves(metrics: Path, target: Path) -> bool:
    """Plot the losses and the scores of a run over its steps.

    Args:
        metrics: the run's `metrics.jsonl`.
        target: the PNG file to write.

    Returns:
        whether it was written: not without matplotlib, which the extra `train` installs, nor without a logged step.
    """
    lines = read_metrics(metrics)
    steps = [line for line in lines if "losses" in line]
    evaluations = [line for line in lines if line.get("evaluation")]
    if not steps:
        return False
    figure_class = _load_figure(target)
    if figure_class is None:
        return False
    figure = figure_class(figsize=(9, 8 if evaluations else 4.5), layout="constrained")
    axes = figure.subplots(2 if evaluations else 1, 1, squeeze=False, sharex=True)[:, 0]
    _draw_losses(axes[0], steps)
    if evaluations:
        _draw_scores(axes[1], evaluations)
    axes[-1].set_xlabel("step")
    figure.savefig(target, format="png", dpi=110)
    return True


def draw_range_test(rates: Sequence[float], losses: Sequence[float], suggestion: float, target: Path) -> bool:
    """Plot the losses of a range test over its learning rates, with the suggested one; False without matplotlib."""
    figure_class = _load_figure(target)
    if figure_class is None:
        return False
    figure = figure_class(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="black")
    axes.axvline(suggestion, color="C3", linestyle="--", label=f"suggested: {suggestion:.1e}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("total loss, smoothed")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, format="png", dpi=110)
    return True


def _load_figure(target: Path) -> Any:
    """Return matplotlib's Figure; None, with a warning, where it is not installed."""
    try:
        # The object interface: pyplot would need a display.
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: plotting needs matplotlib (pip install 'htc-batch[train]')", target.name)
        return None
    return Figure


def _draw_losses(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    numbers = [line["step"] for line in lines]
    for index, name in enumerate(lines[0]["losses"]):
        if "loss" not in name and name != "total":
            continue
        values = _smooth([line["losses"][name] for line in lines])
        is_total = name == "total"
        colour = "black" if is_total else f"C{index}"
        # HTC has twelve losses, matplotlib's colour cycle ten colours.
        dashes = "-" if index < 10 or is_total else "--"
        axes.plot(numbers, values, label=name, color=colour, linestyle=dashes, linewidth=2.2 if is_total else 1.0)
    axes.set_yscale("log")
    axes.set_ylabel("loss, weighted")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)


def _draw_scores(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    numbers = [line["step"] for line in lines]
    for data_set in lines[-1]["evaluation"]:
        for name in _PLOTTED_SCORES:
            values = [line["evaluation"].get(data_set, {}).get(name) for line in lines]
            if any(value is not None for value in values):
                axes.plot(numbers, _gaps(values), marker="o", markersize=3, label=f"{_short(data_set)} {name}")
    axes.set_ylim(0, 1)
    axes.set_ylabel("average precision")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")


def _short(data_set: str) -> str:
    # Files of two data sets often have the same name in different folders.
    return "/".join(Path(data_set).with_suffix("").parts[-2:])


def _gaps(values: Iterable[float | None]) -> list[float]:
    # COCO gives -1 where there is nothing to score: a gap in the line.
    return [float("nan") if value is None or value < 0 else value for value in values]


def _smooth(values: Sequence[float]) -> list[float]:
    half = int(len(values) * _SMOOTHING / 2)
    windows = (values[max(0, index - half) : index + half + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]
