"""Goldens of another implementation, for the tests of this folder."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.paths import DATA

GOLDENS = DATA / "losses"


@pytest.fixture(scope="session")
def unit() -> Callable[[str], Tensor]:
    """Read one array of `units.npz` as a tensor."""
    with np.load(GOLDENS / "units.npz") as archive:
        arrays = {name: archive[name] for name in archive.files if name != "notes"}
    return lambda name: torch.from_numpy(np.array(arrays[name]))
