"""What an evaluation found, as values and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from htc_model.training.annotations import BadAnnotation
from htc_model.training.coco_engines import CocoTable
from htc_model.training.coco_eval import flat_scores
from jobs.results.evaluation.curves import Curves
from jobs.results.evaluation.errors import ErrorBreakdown, ErrorKind
from jobs.results.evaluation.matching import ConfusedPair, ImageMistakes
from jobs.results.evaluation.overlaps import FOREGROUND_IOU
from jobs.terminal.html_table import html_line, html_table
from pipeline.text import count_of


@dataclass(frozen=True)
class KindResult:
    """The result for boxes or for masks."""

    table: CocoTable
    curves: Curves
    errors: ErrorBreakdown
    confusion: tuple[ConfusedPair, ...]


@dataclass(frozen=True)
class WorstImage:
    """An image with mistakes: its row's id and uri in the run, its name in the truth, what the row says of it."""

    image_id: int
    uri: str
    file_name: str
    status: str
    mistakes: ImageMistakes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "image_id": str(self.image_id),
            "uri": self.uri,
            "file_name": self.file_name,
            "status": self.status,
            "right": self.mistakes.right,
            "wrong": self.mistakes.wrong,
            "missed": self.mistakes.missed,
            "F1": self.mistakes.f1,
        }


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The judgement of a run.

    kinds: "box", and "mask" if masks could be scored. images: number of scored images. instances: number of detections
    on them. classes: names of the scored classes. objects: number of scored objects, see `count_by_size`;
    objects_by_class: the same by class. missing: annotated images without a row in the run, not scored. bad, mended:
    flaws of the annotations, left out or still counted. notes: sentences on what the scores mean. worst: the images
    with most mistakes among detections that score at least `min_score`; by masks if they are scored. truth: where the
    annotations are. engine: the program that computed the metrics.
    """

    run: str
    truth: str
    engine: str
    kinds: Mapping[str, KindResult]
    images: int
    instances: int
    classes: tuple[str, ...]
    objects: Mapping[str, int]
    objects_by_class: tuple[int, ...]
    min_score: float
    worst: tuple[WorstImage, ...] = ()
    missing: tuple[str, ...] = ()
    bad: tuple[BadAnnotation, ...] = ()
    mended: tuple[BadAnnotation, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def scores(self) -> dict[str, float]:
        """The six average precisions of each kind, as `score_results` names them."""
        return flat_scores({name: kind.table for name, kind in self.kinds.items()})

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """COCO's twelve metrics by kind; -1 where there is no such object."""
        return {name: kind.table.metrics() for name, kind in self.kinds.items()}

    @property
    def best_kind(self) -> str:
        """The kind by which images are ranked and pictures drawn: "mask" if masks are scored."""
        return "mask" if "mask" in self.kinds else "box"

    def category_rows(self) -> list[dict[str, Any]]:
        """Return of each class its name, its objects, the twelve metrics and the errors of each kind."""
        return [
            {
                "name": name,
                "objects": self.objects_by_class[place],
                **{
                    kind: {
                        **result.table.metrics_of(place),
                        "errors": {each.value: int(result.errors.by_category[each][place]) for each in ErrorKind},
                    }
                    for kind, result in self.kinds.items()
                },
            }
            for place, name in enumerate(self.classes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; docs/evaluate.md lists the keys."""
        flaws = {"left_out": self.bad, "mended": self.mended}
        return {
            "run": self.run,
            "truth": self.truth,
            "engine": self.engine,
            "images": self.images,
            "detections": self.instances,
            "objects": dict(self.objects),
            "classes": list(self.classes),
            "metrics": self.metrics,
            # The keys of release 0.2.
            **self.scores,
            "categories": self.category_rows(),
            "curves": {name: kind.curves.to_dict() for name, kind in self.kinds.items()},
            "errors": {name: kind.errors.to_dict() for name, kind in self.kinds.items()},
            "confusion": {
                "min_score": self.min_score,
                "iou": FOREGROUND_IOU,
                **{
                    name: [
                        {"truth": pair.truth, "detected": pair.detected, "count": pair.count} for pair in kind.confusion
                    ]
                    for name, kind in self.kinds.items()
                },
            },
            "worst": [image.to_dict() for image in self.worst],
            "missing": list(self.missing),
            **{
                name: [{"annotation": flaw.annotation_id, "image": flaw.image, "kind": flaw.kind} for flaw in found]
                for name, found in flaws.items()
            },
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        """Return the run and its average precisions."""
        scores = ", ".join(f"{name} {value:.3f}" for name, value in self._average_precisions())
        return f"<Evaluation of run {self.run}: {scores} on {count_of(self.images, 'image')}>"

    def _repr_html_(self) -> str:
        """Return the twelve metrics as a table, for notebooks."""
        metrics = self.metrics
        names = list(next(iter(metrics.values()), {}))
        rows = [[kind, *(_in_words(values[name]) for name in names)] for kind, values in metrics.items()]
        return "".join([html_line(repr(self).strip("<>")), html_table(["", *names], rows), *map(html_line, self.notes)])

    def _average_precisions(self) -> list[tuple[str, float]]:
        return [(f"{kind} AP", values["AP"]) for kind, values in self.metrics.items()]


def _in_words(value: float) -> str:
    # COCO's mark for "no such object".
    return "-" if value < 0 else f"{value:.3f}"
