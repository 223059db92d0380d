"""The learning rate's course, and the average of the weights."""

import pytest
import torch
from torch import nn

from htc_model.training.ema import WeightAverage
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


def test_the_average_follows_slowly_and_forgets_the_start():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, decay=0.9)
    nn.init.constant_(model.weight, 1.0)
    values = []
    for _ in range(60):
        average.update(model)
        values.append(average.state["weight"].item())
    assert values == sorted(values)
    assert values[0] == pytest.approx(1 - 2 / 11)
    assert values[-1] > 0.99
    assert model.weight.item() == 1


def test_the_average_goes_on_from_a_saved_state():
    model = nn.BatchNorm1d(3)
    average, resumed = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    nn.init.constant_(model.weight, 5.0)
    average.update(model)
    resumed.load_state_dict(average.state_dict())
    average.update(model)
    resumed.update(model)
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in average.state.items())
