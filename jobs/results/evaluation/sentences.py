"""Sentences on what the scores of a run mean, and what they leave out."""

from collections.abc import Mapping, Sequence
from typing import Any

from htc_model.training.annotations import CocoAnnotations
from htc_model.training.coco_engines import PYCOCOTOOLS
from jobs.results.evaluation.truth import listed
from pipeline.text import count_of

# A share over n images has a standard error of up to 0.5 / sqrt(n): five points here.
FEW_IMAGES = 100


def other_categories(others: Mapping[str, int], uri: str, classes: Sequence[str]) -> list[str]:
    """Name the categories whose detections are not scored because the truth lacks them."""
    if not others or classes:
        return []
    names = sorted(others, key=lambda name: (-others[name], name))
    return [
        f"Not scored: {count_of(sum(others.values()), 'detection')} of "
        f"{count_of(len(others), 'category', 'categories')} that {uri} does not have ({listed(names)})."
    ]


def caveats(
    truth: CocoAnnotations,
    scored: Sequence[int],
    detections: Sequence[Mapping[str, Any]],
    *,
    makes_masks: bool,
    has_mask_scores: bool,
) -> list[str]:
    """Return why there is no mask AP, and how uncertain the averages are, as sentences."""
    sentences = []
    objects = [[entry for entry in truth.images[number].objects if not entry.is_crowd] for number in scored]
    without = sum(entry.segmentation is None for entries in objects for entry in entries)
    if not detections:
        sentences.append("The run has no detection of these classes on the scored images, so every average is 0.")
    if not makes_masks:
        sentences.append("No mask AP: the run's model predicts boxes only.")
    elif not has_mask_scores:
        sentences.append("No mask AP: the annotations have boxes only.")
    elif without:
        sentences.append(
            f"{count_of(without, 'object')} of the annotations without a mask: the box AP counts them; the mask AP "
            "ignores detections of them."
        )
    with_objects = sum(map(bool, objects))
    if with_objects < FEW_IMAGES:
        sentences.append(
            f"Only {count_of(with_objects, 'scored image')} with objects: an average over fewer than {FEW_IMAGES} may "
            "be off by several points, and the average of a size with few objects by more."
        )
    return sentences


def slow_engine(engine: str) -> list[str]:
    if not engine.startswith(PYCOCOTOOLS):
        return []
    return [
        f"Scored by {engine}, because faster-coco-eval is not installed: the numbers are the same, and take several "
        "times as long; `pip install faster-coco-eval`."
    ]
