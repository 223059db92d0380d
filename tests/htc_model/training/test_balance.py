"""Images of rare classes are repeated, and every epoch has as many batches as any other."""

from dataclasses import replace

import numpy as np
import pytest

from htc_model.training.balance import count_repeats, repeat_factors
from htc_model.training.coco_reader import read_annotations
from htc_model.training.dataset import BatchPlan
from tests.support.builders.training_data import small_document


def annotations_of(rare: int, frequent: int):
    document = small_document(rare + frequent)
    for number, entry in enumerate(document["annotations"]):
        entry["category_id"] = 3 if number < rare else 7
    return read_annotations(document)


def test_factors_are_those_of_lvis() -> None:
    factors = repeat_factors(annotations_of(2, 14), 0.5)
    # sqrt(0.5 / (2 / 16)) for the rare class; the other is on more than half of the images.
    assert factors.tolist() == [2.0, 2.0] + [1.0] * 14
    assert repeat_factors(annotations_of(2, 14), 0.1).tolist() == [1.0] * 16


def test_an_image_takes_the_largest_factor_and_crowds_do_not_count() -> None:
    annotations = annotations_of(1, 8)
    rare = annotations.images[0].objects[0]
    crowd = replace(rare, is_crowd=True)
    changed = [replace(image, objects=(*image.objects, crowd)) for image in annotations.images[1:]]
    both = replace(annotations.images[1], objects=(*annotations.images[1].objects, rare))
    annotations = replace(annotations, images=(annotations.images[0], both, *changed[1:]))
    factors = repeat_factors(annotations, 0.9)
    assert factors[0] == factors[1] == pytest.approx((0.9 / (2 / 9)) ** 0.5)
    assert factors[2] == pytest.approx(1.0062, abs=1e-3)


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.999])
def test_every_image_is_taken_and_the_sum_is_fixed(offset: float) -> None:
    factors = np.array([1.0, 2.5, 1.0, 1.3, 3.1])
    counts = count_repeats(factors, offset)
    assert counts.sum() == 9
    assert (counts >= np.floor(factors)).all()
    assert count_repeats(np.zeros(0), offset).tolist() == []


def test_repeats_are_right_on_average() -> None:
    factors = np.array([1.0, 1.25, 1.0, 1.75])
    counts = np.mean([count_repeats(factors, offset) for offset in np.linspace(0, 1, 200, endpoint=False)], axis=0)
    assert counts == pytest.approx(factors, abs=0.02)


def test_all_epochs_have_as_many_batches_and_repeats_have_places_of_their_own() -> None:
    factors = np.array([1.0, 1.4, 1.0, 2.3, 1.0, 1.1, 1.7])
    ratios = [1.5, 0.7, 1.5, 1.5, 0.7, 0.7, 1.5]
    counts = set()
    for epoch in range(20):
        plan = BatchPlan(ratios, 2, seed=0, epoch=epoch, repeats=factors)
        places = [place for batch in plan for place in batch]
        assert len(set(places)) == len(places)
        assert {place[1] for place in places} == set(range(7))
        counts.add((plan.batch_count, len(places)))
    assert len(counts) == 1


def test_without_repeats_the_plan_is_the_one_of_earlier_releases() -> None:
    plan = list(BatchPlan([1.0] * 5, 2, seed=3, epoch=1))
    ones = list(BatchPlan([1.0] * 5, 2, seed=3, epoch=1, repeats=np.ones(5)))
    assert sorted(place for batch in plan for place in batch) == sorted(place for batch in ones for place in batch)
    assert plan == list(BatchPlan([1.0] * 5, 2, seed=3, epoch=1))
    assert all(len(place) == 2 for batch in plan for place in batch)
