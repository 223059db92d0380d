"""The best evaluation is the first with the highest mask AP."""

import pytest

from htc_model.training.best import find_best, selection_score


def line(step: int, **scores: float) -> dict:
    return {"step": step, "epoch": step, "evaluation": {"val.json": scores}}


def test_the_first_of_equals_is_the_best_and_later_ones_are_counted() -> None:
    lines = [
        {"step": 1, "losses": {}},
        line(1, mask_ap=0.1),
        line(2, mask_ap=0.3),
        line(3, mask_ap=0.3),
        line(4, mask_ap=0.2),
    ]
    best = find_best(lines)
    assert best is not None
    assert (best.step, best.score, best.evaluations_since) == (2, 0.3, 2)


def test_nothing_scored_is_no_best() -> None:
    assert find_best([]) is None
    assert find_best([line(1, mask_ap=-1.0)]) is None


def test_the_score_is_mask_ap_else_box_ap_averaged_over_the_sets() -> None:
    assert selection_score({"a": {"mask_ap": 0.2, "box_ap": 0.9}}) == 0.2
    assert selection_score({"a": {"box_ap": 0.4}}) == 0.4
    assert selection_score({"a": {"mask_ap": 0.2}, "b": {"mask_ap": 0.4}, "c": {"mask_ap": -1.0}}) == pytest.approx(0.3)
