"""Where average precision is lost: TIDE's six kinds of errors (Bolya and others, ECCV 2020, arXiv:2008.08115)."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.results.evaluation.matching import Matching
from jobs.results.evaluation.overlaps import FOREGROUND_IOU, Integers, Overlaps

# COCOeval's Params.recThrs.
_RECALLS = np.linspace(0, 1, 101)


class ErrorKind(enum.StrEnum):
    """TIDE's kinds, in its order.

    Of a false detection, with the largest IoU to an object of its own category and to one of another category:
    localisation: own from 0.1 to below 0.5. classification: other at least 0.5. duplicate: own at least 0.5, but the
    object has another detection. background: none from 0.1. both: what is left, other from 0.1 to below 0.5. missed:
    an object without a detection that no localisation or classification error is of. The first that holds counts.
    """

    classification = enum.auto()
    localisation = enum.auto()
    both = enum.auto()
    duplicate = enum.auto()
    background = enum.auto()
    missed = enum.auto()


@dataclass(frozen=True)
class ErrorBreakdown:
    """How much AP the errors of each kind cost.

    ap50: AP at an IoU of 0.5, in [0, 1]; -1 without an object. counts, costs: by kind, how many, and by how much the AP
    would be higher were they repaired, all others staying (TIDE's dAP), in [0, 1]. false_positives, false_negatives:
    the same for all false detections placed below the right ones, and for all objects that were not found left out.
    by_category: counts by the place of the category: of a false detection its own, of a missed object that object's.
    """

    ap50: float
    counts: Mapping[ErrorKind, int]
    costs: Mapping[ErrorKind, float]
    false_positives: float
    false_negatives: float
    by_category: Mapping[ErrorKind, Integers]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "AP50": self.ap50,
            "kinds": {kind.value: {"count": self.counts[kind], "dAP": self.costs[kind]} for kind in ErrorKind},
            "false_positives": {"dAP": self.false_positives},
            "false_negatives": {"dAP": self.false_negatives},
        }


@dataclass(frozen=True)
class _Errors:
    """kind: [D] index of the `ErrorKind`, -1 for none. target: [D] the object that it is of, -1 for none."""

    kind: Integers
    target: Integers
    is_missed: NDArray[np.bool_]


def break_down(overlaps: Overlaps, matching: Matching, class_count: int) -> ErrorBreakdown:
    """Sort the errors into their kinds, and repair one kind after the other."""
    errors = _sort(overlaps, matching)
    kinds = list(ErrorKind)
    counted = np.flatnonzero(~overlaps.in_crowd | (matching.object_of >= 0))
    label = overlaps.det_label.copy()
    is_right = matching.object_of >= 0
    objects = np.bincount(overlaps.obj_label, minlength=class_count)
    order = overlaps.by_score
    in_order = order[np.isin(order, counted)]

    def ap(kept: NDArray[np.bool_], right: NDArray[np.bool_], labels: Integers, counts: Integers) -> float:
        rows = in_order[kept[in_order]]
        return _mean_ap(labels[rows], right[rows], counts, objects > 0)

    everything = np.ones(len(label), bool)
    ap50 = ap(everything, is_right, label, objects)
    repaired = _repaired(overlaps, matching, errors)
    costs: dict[ErrorKind, float] = {}
    for number, kind in enumerate(kinds):
        of_kind = errors.kind == number
        if kind is ErrorKind.missed:
            left = objects - np.bincount(overlaps.obj_label[errors.is_missed], minlength=class_count)
            mended = ap(everything, is_right, label, left)
        else:
            fixed = repaired[of_kind[repaired]]
            right, labels = is_right.copy(), label.copy()
            right[fixed] = True
            labels[fixed] = overlaps.obj_label[errors.target[fixed]]
            kept = ~of_kind
            kept[fixed] = True
            mended = ap(kept, right, labels, objects)
        # Interpolation at 101 recalls can make a repair look like a loss; TIDE counts it as 0, too.
        costs[kind] = max(mended - ap50, 0.0)
    found = np.bincount(overlaps.obj_label[matching.detection_of >= 0], minlength=class_count)
    counts_of = {kind: int((errors.kind == number).sum()) for number, kind in enumerate(kinds)}
    by_category = {
        kind: np.bincount(overlaps.det_label[errors.kind == number], minlength=class_count)
        for number, kind in enumerate(kinds)
    }
    missed_labels = overlaps.obj_label[errors.is_missed]
    return ErrorBreakdown(
        ap50,
        counts_of | {ErrorKind.missed: int(errors.is_missed.sum())},
        costs,
        max(ap(is_right, is_right, label, objects) - ap50, 0.0),
        max(ap(everything, is_right, label, found) - ap50, 0.0),
        by_category | {ErrorKind.missed: np.bincount(missed_labels, minlength=class_count)},
    )


def _sort(overlaps: Overlaps, matching: Matching) -> _Errors:
    same = overlaps.is_same_label
    own_iou, own_object = _largest(overlaps, same)
    other_iou, other_object = _largest(overlaps, ~same)
    kinds = {kind: number for number, kind in enumerate(ErrorKind)}
    is_loose = (own_iou > 0) & (own_iou < FOREGROUND_IOU)
    # The order of the paper's figure 2 would leave open what a detection is that is several of these.
    conditions = [is_loose, other_iou >= FOREGROUND_IOU, own_iou >= FOREGROUND_IOU, other_iou == 0]
    names = [ErrorKind.localisation, ErrorKind.classification, ErrorKind.duplicate, ErrorKind.background]
    kind = np.select(conditions, [kinds[name] for name in names], kinds[ErrorKind.both])
    kind = np.where(matching.is_false, kind, -1)
    target = np.where(kind == kinds[ErrorKind.localisation], own_object, -1)
    target = np.where(kind == kinds[ErrorKind.classification], other_object, target)
    is_missed = matching.detection_of < 0
    is_missed[target[target >= 0]] = False
    return _Errors(kind, target, is_missed)


def _largest(overlaps: Overlaps, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], Integers]:
    """Return each detection's largest IoU among some pairs, 0 without one, and that pair's object, -1 without one."""
    iou = np.zeros(len(overlaps.det_score))
    entry = np.full(len(overlaps.det_score), -1, np.int64)
    pairs = np.flatnonzero(chosen)
    # Assigned in this order, the last of a detection stays: the largest, of equal ones the first object.
    pairs = pairs[np.lexsort((-overlaps.pair_obj[pairs], overlaps.pair_iou[pairs]))]
    iou[overlaps.pair_det[pairs]] = overlaps.pair_iou[pairs]
    entry[overlaps.pair_det[pairs]] = overlaps.pair_obj[pairs]
    return iou, entry


def _repaired(overlaps: Overlaps, matching: Matching, errors: _Errors) -> Integers:
    """Return the detections that can become right: of each object that has none, the one that scores highest.

    As in the authors' program, a classification and a localisation error of one object compete: of the two only the
    higher is ever repaired, and the other is left out when its kind is.
    """
    order = overlaps.by_score
    candidates = order[errors.target[order] >= 0]
    candidates = candidates[matching.detection_of[errors.target[candidates]] < 0]
    _, first = np.unique(errors.target[candidates], return_index=True)
    return np.asarray(candidates[first], np.int64)


def _mean_ap(labels: Integers, is_right: NDArray[np.bool_], counts: Integers, is_scored: NDArray[np.bool_]) -> float:
    """Return the mean over the categories that have objects of AP at one IoU; -1 without any.

    Args:
        labels, is_right: [N] of the detections by falling score.
        counts: [C] how many objects there are to find.
        is_scored: [C] bool.
    """
    if not is_scored.any():
        return -1.0
    by_label = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_label], np.arange(len(counts)), side="right")
    begins = np.concatenate([[0], ends[:-1]])
    values = [
        _ap(is_right[by_label[begins[label] : ends[label]]], int(counts[label])) for label in np.flatnonzero(is_scored)
    ]
    return float(np.mean(values))


def _ap(is_right: NDArray[np.bool_], count: int) -> float:
    """Return AP, the mean of the precision at 101 recalls; 0 where nothing is left to find."""
    if not count or not len(is_right):
        return 0.0
    right = np.cumsum(is_right)
    precision = right / np.arange(1, len(right) + 1)
    # The precision at a recall is the largest at that recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / count, _RECALLS, side="left")
    return float(np.where(places < len(precision), precision[np.minimum(places, len(precision) - 1)], 0.0).mean())
