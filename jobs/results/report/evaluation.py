"""Average precision for the report, against annotations that the user names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.results.evaluate import evaluate_run
from pipeline.text import count_of, printable

if TYPE_CHECKING:
    from pipeline.output.results import Results

_COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}


@dataclass(frozen=True)
class EvaluationTable:
    """Scores in percent as text: a row for boxes and one for masks; and sentences on what they mean."""

    truth: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def evaluation_table(results: "Results", truth: str, run: str) -> EvaluationTable:
    """Score a run against COCO annotations.

    Raises:
        InputError: the annotations are of other images.
        SpecError: they cannot be read.
    """
    found = evaluate_run(results, truth, results.storage, run=run)
    rows = tuple(
        (f"{kind} AP", *(_percent(found.scores[f"{kind}_{name}"]) for name in _COLUMNS))
        for kind in ("box", "mask")
        if f"{kind}_ap" in found.scores
    )
    notes = [f"{count_of(found.images, 'image')} with {count_of(found.objects['all'], 'object')} were scored."]
    if found.missing:
        notes.append(f"{count_of(len(found.missing), 'annotated image')} without a row in the run: not scored.")
    if found.bad:
        notes.append(f"{count_of(len(found.bad), 'invalid annotation')} left out.")
    return EvaluationTable(
        printable(truth), ("", *_COLUMNS.values()), rows, tuple(printable(note) for note in (*notes, *found.notes))
    )


def _percent(score: float) -> str:
    return "-" if score < 0 else f"{100 * score:.1f}"
