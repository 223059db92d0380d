"""An evaluation as one HTML file: no script, no request to anywhere, every name escaped."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from htc_model.training.coco_engines import METRICS
from jobs.results.evaluation.errors import ErrorKind
from jobs.results.evaluation.page_parts import figure, page_table, whole_page
from jobs.results.evaluation.pictures import Picture
from jobs.results.evaluation.plots import MISSING, NOTHING
from jobs.results.evaluation.result import Evaluation
from jobs.results.evaluation.text import EXPLAINED, objects_of, percent
from pipeline.text import count_of

MAX_CONFUSED_ROWS = 30
# Recalls of the table of precisions, every tenth of the 101.
_SHOWN_RECALLS = range(0, 101, 10)
_ALT = {
    "curves": "Precision over recall, at IoU 0.50, 0.75 and the mean of ten; the table below has the numbers.",
    "errors": "Bars of what each kind of error costs; the table below has the numbers.",
    "confusion": "Matrix of true and detected categories; the table below has the largest counts.",
}


def build_page(evaluation: Evaluation, plots: Mapping[str, bytes], pictures: Sequence[Picture]) -> str:
    """Return the page.

    Args:
        plots: SVGs by their names; those that are missing are tables only.
    """
    title = f"Evaluation of {evaluation.run}"
    return whole_page(title, "\n".join(_sections(evaluation, plots, pictures)))


def _sections(evaluation: Evaluation, plots: Mapping[str, bytes], pictures: Sequence[Picture]) -> Iterator[str]:
    yield _head(evaluation)
    if not plots:
        yield f"<p>{escape(MISSING)}</p>"
    yield "<h2>COCO's metrics</h2>"
    yield _metrics(evaluation)
    yield "<h2>Precision and recall</h2>"
    yield _plot(plots, "curves")
    yield from _curves(evaluation)
    yield "<h2>What errors cost</h2>"
    yield _plot(plots, "errors")
    yield _errors(evaluation)
    yield "<h2>Confusion</h2>"
    yield _plot(plots, "confusion")
    yield _confusion(evaluation)
    yield "<h2>Categories</h2>"
    yield _categories(evaluation)
    yield "<h2>The worst images</h2>"
    yield from _pictures(evaluation, pictures)


def _head(evaluation: Evaluation) -> str:
    facts = {
        "Truth": evaluation.truth,
        "Images": f"{evaluation.images:,} scored, {len(evaluation.missing):,} annotated ones without a row in the run",
        "Objects": f"{evaluation.objects['all']:,} of {count_of(len(evaluation.classes), 'category', 'categories')}",
        "Detections": f"{evaluation.instances:,}",
        "Computed by": f"{evaluation.engine}, as pycocotools computes it",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in evaluation.notes)
    return f"<dl>{listed}</dl>" + (f"<ul>{notes}</ul>" if notes else "")


def _metrics(evaluation: Evaluation) -> str:
    kinds = list(evaluation.kinds)
    rows = [
        [
            name,
            *(percent(evaluation.metrics[kind][name]) for kind in kinds),
            f"{objects_of(evaluation, name):,}",
            EXPLAINED[name],
        ]
        for name in METRICS
    ]
    caption = "In percent; a dash where there is no such object."
    return page_table(caption, ["metric", *kinds, "objects", "what it is"], rows, texts={0, len(kinds) + 2})


def _curves(evaluation: Evaluation) -> Iterator[str]:
    for name, kind in evaluation.kinds.items():
        best = kind.curves.best
        if best is not None:
            yield (
                f"<p>{escape(name.capitalize())}: detections are best kept from a score of {best.score:.2f} on; "
                f"precision is then {percent(best.precision)} %, recall {percent(best.recall)} %, "
                f"F1 {percent(best.f1)} %.</p>"
            )
    rows = [
        [f"{name}, IoU {iou}", *(percent(float(values[recall])) for recall in _SHOWN_RECALLS)]
        for name, kind in evaluation.kinds.items()
        for iou, values in kind.curves.mean.items()
    ]
    header = ["precision at recall", *(f"{recall / 100:g}" for recall in _SHOWN_RECALLS)]
    yield page_table("In percent, the mean over the categories that have objects.", header, rows)


def _errors(evaluation: Evaluation) -> str:
    header = ["kind", *(text for name in evaluation.kinds for text in (f"{name} errors", f"{name} dAP"))]
    rows = [
        [
            kind.value,
            *(
                text
                for result in evaluation.kinds.values()
                for text in (f"{result.errors.counts[kind]:,}", f"{100 * result.errors.costs[kind]:.1f}")
            ),
        ]
        for kind in ErrorKind
    ]
    return page_table(
        "dAP: the points that AP50 would gain, were all errors of this kind repaired (TIDE).", header, rows
    )


def _confusion(evaluation: Evaluation) -> str:
    pairs = [pair for pair in evaluation.kinds[evaluation.best_kind].confusion if pair.truth != pair.detected]
    rows = [
        [
            NOTHING if pair.truth is None else pair.truth,
            NOTHING if pair.detected is None else pair.detected,
            f"{pair.count:,}",
        ]
        for pair in pairs[:MAX_CONFUSED_ROWS]
    ]
    caption = (
        f"By {evaluation.best_kind}, at an IoU of 0.5, of detections that score at least {evaluation.min_score:g}; "
        f"the {len(rows)} most frequent of {count_of(len(pairs), 'mistake', 'kinds of mistakes')}."
    )
    return page_table(caption, ["truth", "detected", "count"], rows, texts={0, 1})


def _categories(evaluation: Evaluation) -> str:
    shown = ("AP", "AP50", "AP75", "AR100")
    rows = [
        [
            row["name"],
            f"{row['objects']:,}",
            *(percent(row[kind][metric]) for kind in evaluation.kinds for metric in shown),
        ]
        for row in evaluation.category_rows()
    ]
    header = ["category", "objects", *(f"{kind} {metric}" for kind in evaluation.kinds for metric in shown)]
    return page_table("In percent.", header, rows)


def _pictures(evaluation: Evaluation, pictures: Sequence[Picture]) -> Iterator[str]:
    if not pictures:
        yield "<p>None is drawn.</p>"
        return
    yield (
        f"<p>Those with most mistakes among detections that score at least {evaluation.min_score:g}, by "
        f"{escape(evaluation.best_kind)}: left the truth, right the detections; found in blue, missed and wrong in "
        "orange, crowds in grey.</p>"
    )
    for picture in pictures:
        mistakes = picture.image.mistakes
        said = (
            f"{picture.image.uri}: {count_of(mistakes.wrong, 'wrong detection')}, "
            f"{count_of(mistakes.missed, 'missed object')}, {mistakes.right:,} right"
        ) + (f"; {picture.problem}" if picture.problem else "")
        yield figure(picture.jpeg, said)


def _plot(plots: Mapping[str, bytes], name: str) -> str:
    if name not in plots:
        return ""
    data = base64.b64encode(plots[name]).decode()
    return f'<img class="plot" src="data:image/svg+xml;base64,{data}" alt="{escape(_ALT[name])}">'
