"""COCO's average precision of table1_small's cells, over all held-out photos and over resampled ones.

A class is scored on the photos where it is annotated: persons on all, the other classes on those of coco_mini.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from table1_data import COMPLETE_FOLDER, PERSON

from htc_model.training.annotations import CocoAnnotations
from htc_model.training.coco_engines import quiet
from htc_model.training.coco_eval import KINDS, STATS, coco_document, score_tables

# Where the recall-precision curve is read (COCOeval's recThrs).
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """The detections of one class and one kind of overlap, most confident first, and which of them are right.

    images: [N], each detection's image. is_hit, is_ignored: [10, N] bool, by IoU threshold 0.5 … 0.95.
    objects: [images], how many objects count in each image.
    """

    images: NDArray[np.int64]
    is_hit: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]

    def average_precision(self, weights: NDArray[np.float64] | None = None) -> float:
        """Compute COCO's AP over all thresholds in [0, 1], NaN without an object.

        Args:
            weights: [images], how often each image is taken; None is once.
        """
        weights = np.ones(len(self.objects)) if weights is None else weights
        total = float(weights @ self.objects)
        if total == 0:
            return float("nan")
        each = weights[self.images]
        hits = np.cumsum(self.is_hit * each, axis=1)
        misses = np.cumsum(~(self.is_hit | self.is_ignored) * each, axis=1)
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
        # The best precision at this recall or a higher one.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / total
        found = [
            np.append(each_precision, 0.0)[np.searchsorted(each_recall, _RECALLS, side="left")]
            for each_precision, each_recall in zip(precision, recall, strict=True)
        ]
        return float(np.mean(found))


def images_of_class(name: str, annotations: CocoAnnotations) -> list[int]:
    """List the indices of the images on which a class is scored."""
    return [
        number
        for number, image in enumerate(annotations.images)
        if name == PERSON or f"/{COMPLETE_FOLDER}/" in f"/{image.file_name}"
    ]


def score_cell(results: Sequence[Mapping[str, Any]], annotations: CocoAnnotations) -> dict[str, dict[str, float]]:
    """Score detections by COCO's program: `STATS` of "box" and "mask" by class, and "mean" over the classes.

    Sizes that no object of a class has are left out of the mean.
    """
    document = coco_document(annotations)
    scores: dict[str, dict[str, float]] = {}
    for name, category in zip(annotations.classes, annotations.category_ids, strict=True):
        tables = score_tables(
            results, document, images_of_class(name, annotations), [category], has_masks=True, engine="pycocotools"
        )
        scores[name] = {
            f"{kind}_{stat}": value
            for kind, table in tables.items()
            for stat, value in zip(STATS, table.stats, strict=False)
        }
    keys = [f"{kind}_{stat}" for kind in KINDS for stat in STATS]
    scores["mean"] = {key: _mean([each.get(key, -1.0) for each in scores.values()]) for key in keys}
    return scores


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if value > -1]
    return float(np.mean(present)) if present else -1.0


def match_cell(results: Sequence[Mapping[str, Any]], annotations: CocoAnnotations) -> dict[str, Matches]:
    """Match detections with objects by COCO's program: by "box person", "mask person", …."""
    document = coco_document(annotations)
    return {
        f"{kind} {name}": _match(results, document, number, images_of_class(name, annotations), coco_kind)
        for kind, coco_kind in KINDS.items()
        for name, number in zip(annotations.classes, annotations.category_ids, strict=True)
    }


def _match(
    results: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    category: int,
    images: Sequence[int],
    coco_kind: str,
) -> Matches:
    with quiet():
        truth = _index({**document, "annotations": [dict(entry) for entry in document["annotations"]]})
        kept = [dict(each) for each in results if each["category_id"] == category]
        # loadRes reads the first result.
        found = truth.loadRes(kept) if kept else _index({**document, "annotations": []})
        evaluation = COCOeval(truth, found, coco_kind)
        evaluation.params.imgIds, evaluation.params.catIds = list(images), [category]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluation.params.maxDets = [_MOST_DETECTIONS]
        evaluation.evaluate()
    parts = [part for part in evaluation.evalImgs if part is not None]
    thresholds = len(evaluation.params.iouThrs)
    scores = np.concatenate([np.zeros(0), *(part["dtScores"] for part in parts)])
    order = np.argsort(-scores, kind="mergesort")
    objects = np.zeros(len(document["images"]), np.int64)
    for part in parts:
        objects[part["image_id"]] = len(part["gtIgnore"]) - int(np.sum(part["gtIgnore"]))
    numbers = [np.full(len(part["dtScores"]), part["image_id"], np.int64) for part in parts]
    nothing = np.zeros((thresholds, 0), np.bool_)
    hits = [np.asarray(part["dtMatches"]).reshape(thresholds, -1) > 0 for part in parts]
    ignored = [np.asarray(part["dtIgnore"]).reshape(thresholds, -1) > 0 for part in parts]
    is_ignored = np.concatenate([nothing, *ignored], axis=1)[:, order]
    return Matches(
        np.concatenate([np.zeros(0, np.int64), *numbers])[order],
        np.concatenate([nothing, *hits], axis=1)[:, order] & ~is_ignored,
        is_ignored,
        objects,
    )


def _index(document: Mapping[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def save_matches(path: Path, matches: Mapping[str, Matches]) -> None:
    """Write matches to a .npz file."""
    arrays = {f"{key}/{name}": array for key, each in matches.items() for name, array in vars(each).items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_matches(path: str | Path) -> dict[str, Matches]:
    """Read what `save_matches` wrote."""
    parts: dict[str, dict[str, Any]] = {}
    with np.load(path) as arrays:
        for full_name in arrays.files:
            key, name = full_name.split("/")
            parts.setdefault(key, {})[name] = arrays[full_name]
    return {key: Matches(**values) for key, values in parts.items()}


def resample_images(groups: Sequence[Sequence[int]], draws: int, *, seed: int) -> NDArray[np.float64]:
    """Draw images with replacement, within each group: [draws, images], how often each is drawn."""
    random = np.random.default_rng(seed)
    weights = np.zeros((draws, sum(map(len, groups))))
    for draw in weights:
        for group in groups:
            np.add.at(draw, random.choice(np.asarray(group), len(group)), 1.0)
    return weights


def resampled_scores(
    matches: Mapping[str, Matches], weights: NDArray[np.float64], kind: str, classes: Sequence[str]
) -> NDArray[np.float64]:
    """Compute the mean AP over the classes with objects for each draw of images: [draws], in [0, 1], or NaN."""
    parts = [matches[f"{kind} {name}"] for name in classes]
    each = np.array([[part.average_precision(draw) for part in parts] for draw in weights]).reshape(-1, len(parts))
    counts = np.count_nonzero(~np.isnan(each), axis=1)
    return np.where(counts, np.nan_to_num(each).sum(axis=1) / np.maximum(counts, 1), np.nan)
