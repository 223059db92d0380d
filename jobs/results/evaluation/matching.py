"""Which detection found which object at an IoU of 0.5: COCO's rule, the confusion matrix, the mistakes of an image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.results.evaluation.overlaps import FOREGROUND_IOU, Integers, Overlaps


@dataclass(frozen=True)
class Matching:
    """Detections and objects of one category, one to one.

    object_of: [D], -1 without one. detection_of: [G], -1 without one. is_false: [D] bool, neither with an object nor
    in a crowd.
    """

    object_of: Integers
    detection_of: Integers
    is_false: NDArray[np.bool_]


@dataclass(frozen=True)
class ConfusedPair:
    """One cell of the confusion matrix.

    truth: a category; None where a detection has no object. detected: a category; None where an object has no
    detection.
    """

    truth: str | None
    detected: str | None
    count: int


@dataclass(frozen=True)
class ImageMistakes:
    """What a confident reader of one image would notice: detections with an object, without one, objects missed."""

    image: int
    right: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, in [0, 1]; 1 where nothing is there and nothing was found."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


def match_objects(overlaps: Overlaps) -> Matching:
    """Match as COCO does: by falling score, each detection takes the free object of its category it overlaps most."""
    chosen = np.flatnonzero(overlaps.is_same_label & (overlaps.pair_iou >= FOREGROUND_IOU))
    rank = np.empty(len(overlaps.det_score), np.int64)
    rank[overlaps.by_score] = np.arange(len(rank))
    # Of equal overlaps COCO takes the later object.
    order = np.lexsort((-overlaps.pair_obj[chosen], -overlaps.pair_iou[chosen], rank[overlaps.pair_det[chosen]]))
    return _taken(overlaps, chosen[order])


def _taken(overlaps: Overlaps, pairs: Integers) -> Matching:
    object_of = np.full(len(overlaps.det_score), -1, np.int64)
    detection_of = np.full(len(overlaps.obj_label), -1, np.int64)
    for detection, entry in zip(overlaps.pair_det[pairs].tolist(), overlaps.pair_obj[pairs].tolist(), strict=True):
        if object_of[detection] < 0 and detection_of[entry] < 0:
            object_of[detection], detection_of[entry] = entry, detection
    return Matching(object_of, detection_of, (object_of < 0) & ~overlaps.in_crowd)


def confident(overlaps: Overlaps, matching: Matching, min_score: float) -> Matching:
    """Return the matching of the detections that score at least `min_score`; the others are neither right nor wrong."""
    is_sure = overlaps.det_score >= min_score
    object_of = np.where(is_sure, matching.object_of, -1)
    has_one = matching.detection_of >= 0
    kept = np.zeros(len(has_one), bool)
    kept[has_one] = is_sure[matching.detection_of[has_one]]
    return Matching(object_of, np.where(kept, matching.detection_of, -1), matching.is_false & is_sure)


def confuse(overlaps: Overlaps, sure: Matching, classes: Sequence[str]) -> tuple[ConfusedPair, ...]:
    """Count which category was detected for which, the most frequent first.

    What `sure` matches is right. Of the rest, a detection and an object of other categories belong together if their
    IoU is at least 0.5, the largest overlaps first, each once.
    """
    is_free = sure.is_false[overlaps.pair_det] & (sure.detection_of[overlaps.pair_obj] < 0)
    chosen = np.flatnonzero(is_free & ~overlaps.is_same_label & (overlaps.pair_iou >= FOREGROUND_IOU))
    mixed = _taken(overlaps, chosen[np.argsort(-overlaps.pair_iou[chosen], kind="stable")])
    cells: Counter[tuple[int, int]] = Counter()
    for matching in (sure, mixed):
        found = np.flatnonzero(matching.object_of >= 0)
        cells.update(
            zip(overlaps.obj_label[matching.object_of[found]].tolist(), overlaps.det_label[found].tolist(), strict=True)
        )
    alone = sure.is_false & (mixed.object_of < 0)
    cells.update((-1, label) for label in overlaps.det_label[alone].tolist())
    lost = (sure.detection_of < 0) & (mixed.detection_of < 0)
    cells.update((label, -1) for label in overlaps.obj_label[lost].tolist())
    names = [*classes, None]
    return tuple(
        ConfusedPair(names[truth], names[detected], count)
        for (truth, detected), count in sorted(cells.items(), key=lambda cell: (-cell[1], cell[0]))
    )


def count_mistakes(overlaps: Overlaps, sure: Matching, image_ids: Sequence[int]) -> list[ImageMistakes]:
    """Count each image's mistakes."""
    size = max(image_ids, default=-1) + 1

    def counted(images: Integers) -> Integers:
        return np.bincount(images, minlength=size)

    right = counted(overlaps.det_image[sure.object_of >= 0])
    wrong = counted(overlaps.det_image[sure.is_false])
    missed = counted(overlaps.obj_image[sure.detection_of < 0])
    return [ImageMistakes(each, int(right[each]), int(wrong[each]), int(missed[each])) for each in image_ids]
