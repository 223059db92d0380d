"""Sampling: limits, order, and the seed."""

import pytest
import torch

from htc_model.training.matcher import BACKGROUND, UNUSED
from htc_model.training.sampler import SampleRule, sample_assigned


def assignment(positives: int, negatives: int, unused: int = 3) -> torch.Tensor:
    parts = [torch.arange(positives), torch.full((negatives,), BACKGROUND), torch.full((unused,), UNUSED)]
    mixed = torch.cat(parts)
    return mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(1))]


def test_counts_equal_the_reference(unit):
    for positives, negatives, count, fraction, kept_positives, kept_negatives, factor in unit("sampler.rows").tolist():
        rule = SampleRule(int(count), fraction)
        sample = sample_assigned(assignment(int(positives), int(negatives)), rule)
        found = (len(sample.positives), len(sample.negatives), sample.average_factor)
        assert found == (kept_positives, kept_negatives, factor), (positives, negatives, count, fraction)


def test_taking_all_keeps_the_order_and_uses_no_random_numbers():
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    assigned = assignment(700, 900)
    sample = sample_assigned(assigned, SampleRule(None, 0.25), generator)
    assert torch.equal(sample.positives, torch.nonzero(assigned >= 0).squeeze(1))
    assert torch.equal(sample.negatives, torch.nonzero(assigned == BACKGROUND).squeeze(1))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("count", [8, 64])
def test_the_seed_decides_what_is_sampled(count):
    assigned = assignment(100, 300)
    rule = SampleRule(count, 0.25)
    first, again, other = (sample_assigned(assigned, rule, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.positives, again.positives)
    assert torch.equal(first.negatives, again.negatives)
    assert not torch.equal(first.negatives, other.negatives)
    assert (assigned[first.positives] >= 0).all()
    assert (assigned[first.negatives] == BACKGROUND).all()
    assert len(first.negatives.unique()) == len(first.negatives) == count - count // 4
