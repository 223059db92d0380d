"""What the report says of an evaluation: COCO's metrics, curves, errors, categories and the worst images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from htc_model.training.coco_engines import METRICS
from jobs.results.drawing import short_names
from jobs.results.evaluation import Evaluation, evaluate_run
from jobs.results.evaluation.errors import ErrorKind
from jobs.results.evaluation.text import EXPLAINED, percent
from jobs.results.report import charts
from pipeline.text import count_of, printable

if TYPE_CHECKING:
    from pipeline.output.results import Results

SHOWN_CATEGORIES, SHOWN_WORST = 100, 10
_ERRORS = {
    ErrorKind.classification: "right place, wrong category",
    ErrorKind.localisation: "right category, wrong place",
    ErrorKind.both: "wrong place and wrong category",
    ErrorKind.duplicate: "object was found already",
    ErrorKind.background: "nothing is there",
    ErrorKind.missed: "object was not found",
}


@dataclass(frozen=True)
class EvaluationSection:
    """An evaluation as texts and pictures.

    kinds: "box" and perhaps "mask". metrics: name, a value of each kind, what it is. errors: what is wrong, how many,
    what they cost; its bar. categories: name, objects, values. worst: names of images with their mistakes.
    """

    truth: str
    kinds: tuple[str, ...]
    metrics: tuple[tuple[str, ...], ...]
    curves: Markup
    curve_names: tuple[str, ...]
    curve_rows: tuple[tuple[str, ...], ...]
    errors_of: str
    errors: tuple[tuple[str, str, str, Markup], ...]
    categories: tuple[tuple[str, ...], ...]
    category_count: int
    worst: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def evaluation_section(results: "Results", truth: str, run: str) -> EvaluationSection:
    """Judge a run against COCO annotations.

    Raises:
        InputError: the annotations are of other images.
        SpecError: they cannot be read.
    """
    found = evaluate_run(results, truth, results.storage, run=run)
    kinds, best = tuple(found.kinds), found.kinds[found.best_kind]
    metrics, worst = found.metrics, found.worst[:SHOWN_WORST]
    means = best.curves.mean
    names = tuple(f"IoU {name.replace(':', ' to ')}" for name in means)
    return EvaluationSection(
        truth=printable(truth),
        kinds=kinds,
        metrics=tuple((name, *(percent(metrics[kind][name]) for kind in kinds), EXPLAINED[name]) for name in METRICS),
        curves=charts.lines(
            [[float(value) for value in values] for values in means.values()],
            ["0", "0.25", "0.5", "0.75", "1"],
            description=f"Precision over recall of the {found.best_kind} predictions, at IoU {', '.join(means)}; "
            "the table has the numbers.",
        ),
        curve_names=names,
        curve_rows=tuple(
            (f"{place / 100:g}", *(f"{float(values[place]):.3f}" for values in means.values()))
            for place in range(0, 101, 10)
        ),
        errors_of=found.best_kind,
        errors=_error_rows(found),
        categories=_category_rows(found),
        category_count=len(found.classes),
        worst=tuple(
            (
                printable(name),
                f"{image.mistakes.right:,}",
                f"{image.mistakes.wrong:,}",
                f"{image.mistakes.missed:,}",
            )
            for image, name in zip(worst, short_names([image.uri for image in worst]), strict=True)
        ),
        notes=tuple(printable(note) for note in _notes(found)),
    )


def _error_rows(found: Evaluation) -> tuple[tuple[str, str, str, Markup], ...]:
    errors = found.kinds[found.best_kind].errors
    ranked = sorted(ErrorKind, key=lambda kind: -errors.costs[kind])
    return tuple(
        (
            f"{kind.value}: {_ERRORS[kind]}",
            f"{errors.counts[kind]:,}",
            percent(max(errors.costs[kind], 0.0)),
            charts.bar(errors.costs[kind], kind="mark-bad"),
        )
        for kind in ranked
    )


def _category_rows(found: Evaluation) -> tuple[tuple[str, ...], ...]:
    rows = sorted(found.category_rows(), key=lambda row: (-row["objects"], row["name"]))
    return tuple(
        (
            printable(row["name"]),
            f"{row['objects']:,}",
            *(percent(row[kind][metric]) for kind in found.kinds for metric in ("AP", "AP50")),
        )
        for row in rows[:SHOWN_CATEGORIES]
    )


def _notes(found: Evaluation) -> list[str]:
    notes = [f"{count_of(found.images, 'image')} with {count_of(found.objects['all'], 'object')} were scored."]
    if found.missing:
        notes.append(f"Not scored: {count_of(len(found.missing), 'annotated image')} without a row in the run.")
    if found.bad:
        notes.append(f"Left out: {count_of(len(found.bad), 'invalid annotation')}.")
    best = found.kinds[found.best_kind].curves.best
    if best is not None:
        notes.append(
            f"Detections are best kept from a score of {best.score:.2f} on: then precision is {best.precision:.0%} and "
            f"recall {best.recall:.0%}, at an IoU of 0.5."
        )
    return [*notes, *found.notes]
