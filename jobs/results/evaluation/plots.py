"""Plots of an evaluation with matplotlib, of the extra `plots`: curves, costs of errors, the confusion matrix."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.results.evaluation.curves import RECALLS
from jobs.results.evaluation.errors import ErrorKind
from jobs.results.evaluation.result import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "Plots need matplotlib: pip install 'htc-batch[plots]'."
# More names could not be read.
MAX_CONFUSED = 24
# More lines would be a grey area.
MAX_CURVES = 100
NOTHING = "(nothing)"
# Okabe and Ito's blue, vermilion and green.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_STYLES = ("-", "--", ":")


def has_matplotlib() -> bool:
    """Return whether plots can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def draw_plots(evaluation: Evaluation) -> "dict[str, Figure]":
    """Draw the plots, by their names; none without matplotlib."""
    if not has_matplotlib():
        return {}
    return {
        "curves": _draw_curves(evaluation),
        "errors": _draw_errors(evaluation),
        "confusion": _draw_confusion(evaluation),
    }


def save(figure: "Figure", picture_format: str) -> bytes:
    """Return a plot as "png" or "svg", whose text is text."""
    import matplotlib as mpl

    sink = io.BytesIO()
    # Without a date, the same evaluation gives the same file.
    metadata: Mapping[str, Any] = {"Date": None} if picture_format == "svg" else {}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "htc"}), warnings.catch_warnings():
        # A name in a script that the font lacks; in an SVG the browser has one.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        figure.savefig(sink, format=picture_format, dpi=110, metadata=dict(metadata))
    return sink.getvalue()


def _new(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw_curves(evaluation: Evaluation) -> "Figure":
    figure = _new(4.6 * len(evaluation.kinds), 4.2)
    all_axes = figure.subplots(1, len(evaluation.kinds), squeeze=False)[0]
    for axes, (name, kind) in zip(all_axes, evaluation.kinds.items(), strict=True):
        of_categories = kind.curves.by_category[kind.curves.by_category[:, 0] > -1]
        if 1 < len(of_categories) <= MAX_CURVES:
            axes.plot(RECALLS, of_categories.T, color="#888888", linewidth=0.6, alpha=0.35)
            axes.plot([], [], color="#888888", linewidth=0.6, label="IoU 0.50, each category")
        for (iou, values), colour, line in zip(kind.curves.mean.items(), _COLOURS, _STYLES, strict=True):
            axes.plot(RECALLS, values, color=colour, linestyle=line, label=f"IoU {iou}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=name)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    return figure


def _draw_errors(evaluation: Evaluation) -> "Figure":
    figure = _new(6.4, 3.4)
    axes = figure.subplots()
    names = [kind.value for kind in ErrorKind]
    places = np.arange(len(names))
    height = 0.8 / len(evaluation.kinds)
    for number, (name, kind) in enumerate(evaluation.kinds.items()):
        costs = [100 * kind.errors.costs[each] for each in ErrorKind]
        bars = axes.barh(places + number * height, costs, height, color=_COLOURS[number], label=name)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_yticks(places + height * (len(evaluation.kinds) - 1) / 2, names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("dAP: points that AP50 would gain without these errors")
    axes.legend()
    return figure


def confused_names(evaluation: Evaluation) -> list[str]:
    """Return the categories of the matrix, by their places: all, or those with the most mistakes."""
    pairs = evaluation.kinds[evaluation.best_kind].confusion
    counts = dict.fromkeys(evaluation.classes, 0)
    for pair in pairs:
        if pair.truth != pair.detected:
            for name in (pair.truth, pair.detected):
                if name is not None:
                    counts[name] += pair.count
    most = sorted(counts, key=lambda name: -counts[name])[:MAX_CONFUSED]
    return [name for name in evaluation.classes if name in set(most)]


def _draw_confusion(evaluation: Evaluation) -> "Figure":
    names: Sequence[str | None] = [*confused_names(evaluation), None]
    places = {name: place for place, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    totals = np.zeros((len(names), 1), np.int64)
    for pair in evaluation.kinds[evaluation.best_kind].confusion:
        if pair.truth in places:
            # Also of the categories that are not shown.
            totals[places[pair.truth]] += pair.count
            if pair.detected in places:
                counts[places[pair.truth], places[pair.detected]] += pair.count
    shares = counts / np.maximum(totals, 1)
    side = max(3.6, 0.42 * len(names) + 1.8)
    figure = _new(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # A name with two dollar signs is a name, not a formula.
    labels = [NOTHING if name is None else name for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    axes.set(xlabel="detected", ylabel="truth")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=7)
    return figure
