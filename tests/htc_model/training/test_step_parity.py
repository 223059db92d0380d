"""A complete training step, losses and gradients, against another implementation."""

import pytest

from tests.support.goldens.losses import LOSS_GOLDENS, load_loss_golden, measure_step, run_golden

GOLDENS = sorted(path.name for path in LOSS_GOLDENS.glob("*__*.npz"))


def test_all_goldens_are_here():
    assert len(GOLDENS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_the_step_equals_the_reference(name):
    golden = load_loss_golden(LOSS_GOLDENS / name)
    rows = list(measure_step(golden, run_golden(golden)))
    assert [row for row in rows if not row.is_ok] == []
    assert len(rows) >= 20
