"""The programs that compute COCO's average precision: faster-coco-eval, or pycocotools where that is not installed."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The order of COCOeval.stats.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
FASTER = "faster-coco-eval"
PYCOCOTOOLS = "pycocotools"


@dataclass(frozen=True)
class CocoTable:
    """What an engine computed, for one kind of overlap; -1 wherever there is no object.

    stats: the twelve `METRICS`, in [0, 1].
    precision, scores: [T, R, K, A, M] float64: IoU thresholds 0.5, 0.55 … 0.95; recalls 0, 0.01 … 1; categories;
        areas all, small, medium, large; at most 1, 10 and 100 detections of a category in an image. `scores` is the
        score of the detection at which that recall is reached.
    recall: [T, K, A, M] float64.
    engine: the program and its version.
    """

    stats: tuple[float, ...]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    recall: NDArray[np.float64]
    engine: str

    def metrics(self) -> dict[str, float]:
        """Return the twelve metrics over all categories."""
        return dict(zip(METRICS, self.stats, strict=True))

    def metrics_of(self, category: int) -> dict[str, float]:
        """Return the twelve metrics of one category, given by its place among the categories."""
        precision, recall = self.precision[:, :, category], self.recall[:, category]
        values = [
            _mean(precision[:, :, 0, -1]),
            _mean(precision[0, :, 0, -1]),
            _mean(precision[5, :, 0, -1]),
            *(_mean(precision[:, :, area, -1]) for area in (1, 2, 3)),
            *(_mean(recall[:, 0, limit]) for limit in (0, 1, 2)),
            *(_mean(recall[:, area, -1]) for area in (1, 2, 3)),
        ]
        return dict(zip(METRICS, values, strict=True))


def choose_engine() -> str:
    """Return the engine that is used by default: the fast one if it can be imported."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        return PYCOCOTOOLS
    return FASTER


def run_engine(
    document: Mapping[str, Any],
    detections: Sequence[dict[str, Any]],
    kind: str,
    *,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    engine: str | None = None,
) -> CocoTable:
    """Compare detections with the truth as COCO does.

    Args:
        document: a COCO document; its annotations and the detections are written into.
        kind: "bbox" or "segm".
        category_ids: in ascending order, as the engines sort them.
        engine: `FASTER` or `PYCOCOTOOLS`; None takes `choose_engine`. The two give the same numbers.
    """
    engine = engine or choose_engine()
    make_coco: Any
    make_evaluation: Any
    if engine == FASTER:
        import faster_coco_eval

        make_coco = faster_coco_eval.COCO
        # Its threads hold Python's lock for most of the time: they cost more than they save.
        make_evaluation = partial(faster_coco_eval.COCOeval_faster, rle_iou_max_workers=1)
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        make_coco, make_evaluation = COCO, COCOeval
    with quiet():
        truth = _coco(make_coco, document)
        # loadRes reads the first result.
        found = truth.loadRes(detections) if detections else _coco(make_coco, {**document, "annotations": []})
        evaluation = make_evaluation(truth, found, kind)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    tables = evaluation.eval
    return CocoTable(
        stats=tuple(float(value) for value in evaluation.stats[: len(METRICS)]),
        precision=np.asarray(tables["precision"], np.float64),
        scores=np.asarray(tables["scores"], np.float64),
        recall=np.asarray(tables["recall"], np.float64),
        engine=f"{engine} {version(engine)}",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence pycocotools, which prints its tables, and uses numpy in a way that numpy has deprecated."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _coco(make_coco: Any, document: Mapping[str, Any]) -> Any:
    coco = make_coco()
    coco.dataset = document
    coco.createIndex()
    return coco


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is scored; -1 if nothing is."""
    scored = values[values > -1]
    return float(scored.mean()) if len(scored) else -1.0
