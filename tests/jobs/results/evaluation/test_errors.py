"""TIDE's six kinds of errors, the confusion matrix and the best score, on cases made by hand.

Every object is 10 x 10 pixels; a detection that is shifted by s pixels to the right has an IoU of (10 - s) / (10 + s).
"""

from typing import Any

import pytest

from jobs.results.evaluation.curves import find_best_score
from jobs.results.evaluation.errors import ErrorBreakdown, ErrorKind, break_down
from jobs.results.evaluation.matching import confident, confuse, count_mistakes, match_objects
from jobs.results.evaluation.overlaps import Overlaps, measure_overlaps

CAT, DOG = 1, 2
CLASSES = ("cat", "dog")
SIDE = 10
# Shifts with an IoU of 0.82, 0.43 and 0.05.
NEAR, LOOSE, FAR = 1, 4, 9


def box(x: float, y: float = 0.0) -> list[float]:
    return [x, y, SIDE, SIDE]


def truth(*objects: tuple[int, float], crowds: tuple[tuple[int, float], ...] = ()) -> dict[str, Any]:
    """Objects of one image, by category and place."""
    entries = [(category, x, 0) for category, x in objects] + [(category, x, 1) for category, x in crowds]
    return {
        "images": [{"id": 0, "height": 100, "width": 1000}],
        "annotations": [
            {"id": place, "image_id": 0, "category_id": category, "bbox": box(x), "area": 100, "iscrowd": crowd}
            for place, (category, x, crowd) in enumerate(entries, start=1)
        ],
    }


def overlaps_of(document: dict[str, Any], *found: tuple[int, float, float]) -> Overlaps:
    """Detections by category, place and score."""
    detections = [
        {"image_id": 0, "category_id": category, "score": score, "bbox": box(x)} for category, x, score in found
    ]
    return measure_overlaps(document, detections, [0], [CAT, DOG], "box")


def errors_of(document: dict[str, Any], *found: tuple[int, float, float]) -> ErrorBreakdown:
    overlaps = overlaps_of(document, *found)
    return break_down(overlaps, match_objects(overlaps), len(CLASSES))


def some(breakdown: ErrorBreakdown) -> dict[str, int]:
    return {kind.value: count for kind, count in breakdown.counts.items() if count}


TWO = truth((CAT, 0), (CAT, 100))
RIGHT = (CAT, 0, 0.9)


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        ([(DOG, 100 + NEAR, 0.8)], {"classification": 1}),
        ([(CAT, 100 + LOOSE, 0.8)], {"localisation": 1}),
        ([(DOG, 100 + LOOSE, 0.8)], {"both": 1, "missed": 1}),
        ([(CAT, NEAR, 0.8)], {"duplicate": 1, "missed": 1}),
        ([(CAT, 100 + FAR, 0.8)], {"background": 1, "missed": 1}),
        ([(CAT, 500, 0.8)], {"background": 1, "missed": 1}),
        ([], {"missed": 1}),
        ([(CAT, 100 + NEAR, 0.8)], {}),
        # Loose on an object that has its detection: still of localisation, and the other object is missed.
        ([(CAT, LOOSE, 0.8)], {"localisation": 1, "missed": 1}),
    ],
)
def test_each_kind_alone(found: list[tuple[int, float, float]], kinds: dict[str, int]) -> None:
    assert some(errors_of(TWO, RIGHT, *found)) == kinds


def test_what_repairs_gain() -> None:
    # One of two cats is found: precision is 1 up to a recall of 0.5, so AP is 51 of the 101 recalls.
    half = 51 / 101
    for found, kind in (
        ((CAT, 100 + LOOSE, 0.8), ErrorKind.localisation),
        ((DOG, 100 + NEAR, 0.8), ErrorKind.classification),
    ):
        breakdown = errors_of(TWO, RIGHT, found)
        assert breakdown.ap50 == pytest.approx(half)
        assert {each: cost for each, cost in breakdown.costs.items() if cost} == {kind: pytest.approx(1 - half)}
    missed = errors_of(TWO, RIGHT)
    assert missed.costs[ErrorKind.missed] == pytest.approx(1 - half)
    assert missed.false_negatives == pytest.approx(1 - half)
    assert missed.false_positives == 0
    # A false detection before the right one halves the precision, up to the recall that is reached.
    for false, kind in (((CAT, 500, 0.95), ErrorKind.background), ((DOG, 100 + LOOSE, 0.95), ErrorKind.both)):
        breakdown = errors_of(TWO, RIGHT, false)
        own = 1.0 if false[0] == DOG else 0.5
        assert breakdown.ap50 == pytest.approx(half * own)
        assert breakdown.costs[kind] == pytest.approx(half * (1 - own))


def test_a_duplicate_costs_what_it_stands_before() -> None:
    # The duplicate is after the first cat and before the second: the second's precision is 2 / 3.
    breakdown = errors_of(TWO, RIGHT, (CAT, NEAR, 0.8), (CAT, 100, 0.7))
    assert breakdown.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert breakdown.costs[ErrorKind.duplicate] == pytest.approx(1 - breakdown.ap50)
    assert breakdown.false_positives == pytest.approx(1 - breakdown.ap50)


def test_of_two_errors_of_one_object_only_the_higher_is_repaired() -> None:
    breakdown = errors_of(TWO, RIGHT, (CAT, 100 + LOOSE, 0.8), (CAT, 100 - LOOSE, 0.7))
    assert some(breakdown) == {"localisation": 2}
    assert breakdown.costs[ErrorKind.localisation] == pytest.approx(1 - breakdown.ap50)
    # The wrong category scores higher, so it is the one that is repaired.
    mixed = errors_of(TWO, RIGHT, (DOG, 100, 0.8), (CAT, 100 + LOOSE, 0.7))
    assert mixed.costs[ErrorKind.classification] > 0
    assert mixed.costs[ErrorKind.localisation] == 0


def test_detections_in_a_crowd_are_no_errors() -> None:
    document = truth((CAT, 0), crowds=((CAT, 200),))
    breakdown = errors_of(document, RIGHT, (CAT, 200 + NEAR, 0.95), (DOG, 200, 0.94))
    assert breakdown.ap50 == pytest.approx(1)
    assert some(breakdown) == {"background": 1}
    assert breakdown.by_category[ErrorKind.background].tolist() == [0, 1]


def test_the_mean_is_over_the_categories_with_objects() -> None:
    document = truth((CAT, 0), (DOG, 100))
    breakdown = errors_of(document, RIGHT)
    assert breakdown.ap50 == pytest.approx(0.5)
    assert breakdown.by_category[ErrorKind.missed].tolist() == [0, 1]
    assert errors_of(truth((CAT, 0)), RIGHT, (DOG, 300, 0.9)).ap50 == pytest.approx(1)


def test_an_empty_run_has_missed_everything() -> None:
    breakdown = errors_of(TWO)
    assert breakdown.ap50 == 0
    assert some(breakdown) == {"missed": 2}
    assert find_best_score(overlaps_of(TWO), match_objects(overlaps_of(TWO))) is None


def test_only_a_hundred_detections_of_a_category_count() -> None:
    many = [(CAT, 300.0, 0.9)] * 100
    assert errors_of(TWO, *many, (CAT, 0, 0.1)).ap50 == 0
    assert errors_of(TWO, *many[:99], (CAT, 0, 0.1)).ap50 > 0


def test_the_confusion_matrix_counts_confident_detections() -> None:
    document = truth((CAT, 0), (CAT, 100), (CAT, 200), (DOG, 300), crowds=((CAT, 400),))
    overlaps = overlaps_of(
        document,
        (CAT, NEAR, 0.9),
        (DOG, 100 + NEAR, 0.8),
        (CAT, 300, 0.2),
        (CAT, 400, 0.9),
        (DOG, 600, 0.7),
    )
    sure = confident(overlaps, match_objects(overlaps), 0.5)
    cells = {(cell.truth, cell.detected): cell.count for cell in confuse(overlaps, sure, CLASSES)}
    assert cells == {
        ("cat", "cat"): 1,
        ("cat", "dog"): 1,
        ("cat", None): 1,
        ("dog", None): 1,
        (None, "dog"): 1,
    }
    mistakes = count_mistakes(overlaps, sure, [0])[0]
    assert (mistakes.right, mistakes.wrong, mistakes.missed) == (1, 2, 3)
    assert mistakes.f1 == pytest.approx(2 / 7)
    # With the unsure one, a dog was taken for a cat.
    all_of_them = confident(overlaps, match_objects(overlaps), 0.0)
    assert ("dog", "cat") in {(cell.truth, cell.detected) for cell in confuse(overlaps, all_of_them, CLASSES)}


def test_the_best_score_weighs_precision_and_recall() -> None:
    overlaps = overlaps_of(TWO, (CAT, 0, 0.9), (CAT, 100, 0.6), (CAT, 500, 0.6), (CAT, 600, 0.3))
    best = find_best_score(overlaps, match_objects(overlaps))
    assert best is not None
    # Detections of one score are kept together: 2 right of 3.
    assert (best.score, best.recall) == (0.6, 1.0)
    assert best.precision == pytest.approx(2 / 3)
    assert best.f1 == pytest.approx(0.8)
