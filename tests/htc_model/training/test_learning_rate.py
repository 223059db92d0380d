"""Learning rate schedules and warm-up."""

import pytest

from htc_model.training.learning_rate import cooldown_start, learning_rate_factor


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


def test_flat_does_not_depend_on_the_number_of_steps_until_it_falls():
    def course(epochs):
        falls_from = cooldown_start(epochs, 10)
        rule = {"steps": 10 * epochs, "warmup_steps": 5, "kind": "flat", "falls_from": falls_from}
        return [learning_rate_factor(step, **rule) for step in range(10 * epochs)], falls_from

    (short, falls_from), (long, _) = course(10), course(30)
    assert falls_from == 80
    assert short[:80] == long[:80]
    assert short[5:80] == [1.0] * 75
    assert short[79:] == sorted(short[79:], reverse=True)
    assert len(set(short[80:])) == 20
    assert short[-1] < 0.05


@pytest.mark.parametrize(("epochs", "expected"), [(1, 0), (2, 10), (3, 20), (12, 100), (50, 400)])
def test_the_fall_begins_with_an_epoch(epochs, expected):
    assert cooldown_start(epochs, 10) == expected
