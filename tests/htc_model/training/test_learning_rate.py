"""Learning rate schedules and warm-up."""

import pytest

from htc_model.training.learning_rate import learning_rate_factor


def factors(kind):
    return [learning_rate_factor(s, steps=120, warmup_steps=10, kind=kind) for s in range(120)]


def test_warm_up_rises_from_almost_nothing_to_one():
    course = factors("step")
    assert course[0] == pytest.approx(0.001)
    assert course[:11] == sorted(course[:11])
    assert course[10] == 1


def test_steps_fall_by_ten_at_eight_and_eleven_twelfths():
    course = factors("step")
    assert (course[79], course[80], course[109], course[110]) == pytest.approx((1, 0.1, 0.1, 0.01))


def test_cosine_falls_smoothly_to_its_floor():
    course = factors("cosine")
    assert course[10:] == sorted(course[10:], reverse=True)
    assert course[65] == pytest.approx(0.505, abs=0.01)
    assert course[-1] == pytest.approx(0.01, abs=0.001)
