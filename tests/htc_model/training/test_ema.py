"""The exponential moving average of the weights."""

import pytest
import torch
from torch import nn

from htc_model.training.ema import WeightAverage


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


def test_the_average_resumes_from_a_saved_state():
    model = nn.BatchNorm1d(3)
    average, resumed = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    nn.init.constant_(model.weight, 5.0)
    average.update(model)
    resumed.load_state_dict(average.state_dict())
    average.update(model)
    resumed.update(model)
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in average.state.items())
