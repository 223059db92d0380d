"""An evaluation as tables for a terminal, and as CSV."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from htc_model.training.coco_engines import METRICS
from jobs.results.evaluation.errors import ErrorKind
from jobs.results.evaluation.result import Evaluation
from jobs.results.evaluation.truth import listed
from jobs.results.formats import QueryResult, write_answer
from jobs.terminal.console import Alignment, write_line, write_table
from pipeline.text import count_of

EXPLAINED: Mapping[str, str] = {
    "AP": "average precision at IoU 0.50 … 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "of small objects, up to 32 x 32 pixels",
    "APm": "of medium objects, up to 96 x 96",
    "APl": "of large objects",
    "AR1": "average recall, 1 detection an image",
    "AR10": "average recall, 10 detections",
    "AR100": "average recall, 100 detections",
    "ARs": "of small objects",
    "ARm": "of medium objects",
    "ARl": "of large objects",
}
_SIZE_OF = {"s": "small", "m": "medium", "l": "large"}
SHOWN_CONFUSED = 5


def percent(score: float) -> str:
    """Return a share in percent; "-" for -1, where there is no such object."""
    return "-" if score < 0 else f"{100 * score:.1f}"


def objects_of(evaluation: Evaluation, metric: str) -> int:
    """Return how many objects a metric is of."""
    return evaluation.objects[_SIZE_OF.get(metric[-1], "all")]


def write_text(evaluation: Evaluation, *, per_category: bool) -> None:
    """Write the metrics, what errors cost, and the worst images to stdout."""
    kinds = list(evaluation.kinds)
    rows = [
        (
            name,
            *(percent(evaluation.metrics[kind][name]) for kind in kinds),
            f"{objects_of(evaluation, name):,}",
            EXPLAINED[name],
        )
        for name in METRICS
    ]
    right: list[Alignment] = ["right"] * len(kinds)
    write_table(["", *kinds, "objects", ""], rows, alignments=["left", *right, "right", "left"])
    write_line(
        f"Run {evaluation.run}: {count_of(evaluation.images, 'image')}, "
        f"{count_of(evaluation.instances, 'detection')} of {listed(evaluation.classes)}; "
        f"in percent, as pycocotools computes it (by {evaluation.engine})."
    )
    if per_category:
        _write_categories(evaluation)
    _write_errors(evaluation)
    _write_confused(evaluation)
    _write_worst(evaluation)


def _write_categories(evaluation: Evaluation) -> None:
    shown = ("AP", "AP50", "AP75", "AR100")
    columns = [f"{kind} {metric}" for kind in evaluation.kinds for metric in shown]
    rows = [
        (
            row["name"],
            f"{row['objects']:,}",
            *(percent(row[kind][metric]) for kind in evaluation.kinds for metric in shown),
        )
        for row in evaluation.category_rows()
    ]
    right: list[Alignment] = ["right"] * (len(columns) + 1)
    write_table(["category", "objects", *columns], rows, alignments=["left", *right])


def _write_errors(evaluation: Evaluation) -> None:
    rows = []
    for kind in ErrorKind:
        cells = []
        for result in evaluation.kinds.values():
            cells += [f"{result.errors.counts[kind]:,}", f"{100 * result.errors.costs[kind]:.1f}"]
        rows.append((kind.value, *cells))
    columns = [text for name in evaluation.kinds for text in (f"{name} errors", f"{name} dAP")]
    right: list[Alignment] = ["right"] * len(columns)
    write_table(["error (TIDE)", *columns], rows, alignments=["left", *right])
    write_line("dAP: the points that AP50 would gain, were all errors of this kind repaired.")


def _write_confused(evaluation: Evaluation) -> None:
    pairs = [
        (pair.truth, pair.detected, f"{pair.count:,}")
        for pair in evaluation.kinds[evaluation.best_kind].confusion
        if pair.truth is not None and pair.detected is not None and pair.truth != pair.detected
    ]
    if pairs:
        write_table(
            ["most confused", f"detected as ({evaluation.best_kind})", "count"],
            pairs[:SHOWN_CONFUSED],
            alignments=["left", "left", "right"],
        )


def _write_worst(evaluation: Evaluation) -> None:
    if not evaluation.worst:
        return
    rows = [
        (str(each.mistakes.wrong), str(each.mistakes.missed), str(each.mistakes.right), each.uri)
        for each in evaluation.worst
    ]
    write_table(
        ["wrong", "missed", "right", f"worst images, detections that score at least {evaluation.min_score:g}"],
        rows,
        alignments=["right", "right", "right", "left"],
    )


def write_csv(evaluation: Evaluation, file: Path | None, *, per_category: bool) -> None:
    """Write a row for each kind, and with `per_category` for each kind and category; scores in [0, 1] or -1."""
    columns = [("kind", "VARCHAR"), ("category", "VARCHAR"), ("objects", "BIGINT")]
    columns += [(name, "DOUBLE") for name in METRICS]
    write_answer(QueryResult(columns, _csv_rows(evaluation, per_category=per_category)), "csv", file)


def _csv_rows(evaluation: Evaluation, *, per_category: bool) -> Iterator[list[object]]:
    """Yield the rows; the category of the row over all of them is null, so that no category is called "all"."""
    for kind, metrics in evaluation.metrics.items():
        yield [kind, None, evaluation.objects["all"], *metrics.values()]
    for row in evaluation.category_rows() if per_category else ():
        for kind in evaluation.kinds:
            yield [kind, row["name"], row["objects"], *(row[kind][name] for name in METRICS)]
