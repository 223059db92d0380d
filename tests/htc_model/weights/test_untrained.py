"""The untrained weights are the same numbers on every machine."""

import zlib
from ast import literal_eval

import pytest
import torch

from htc_model.weights.untrained import untrained_state
from tests.support.paths import DATA

KEYS_FILE = DATA / "crc" / "untrained_keys.tsv"
DTYPES = {"float32": torch.float32, "int64": torch.int64}


def _recorded() -> list[tuple[str, tuple[int, ...], torch.dtype, int]]:
    rows = [line.split("\t") for line in KEYS_FILE.read_text(encoding="utf-8").splitlines()]
    return [(key, literal_eval(shape), DTYPES[dtype], int(crc, 16)) for key, shape, dtype, crc in rows]


def test_values_have_the_recorded_checksums() -> None:
    """One crc32 per key, recorded by another implementation, covering every line of the rule."""
    recorded = _recorded()
    state = untrained_state({key: torch.empty(shape, dtype=dtype, device="meta") for key, shape, dtype, _ in recorded})
    checksums = {key: zlib.crc32(tensor.numpy().tobytes()) for key, tensor in state.items()}
    assert checksums == {key: crc for key, _, _, crc in recorded}
    assert len(recorded) > 50


def test_values_do_not_depend_on_neighbours_or_order() -> None:
    shapes = {"neck.a.weight": (8, 4, 3, 3), "neck.b.weight": (8, 4, 3, 3), "neck.b.bias": (8,)}
    forward = untrained_state({key: torch.empty(shape) for key, shape in shapes.items()})
    backward = untrained_state({key: torch.empty(shape) for key, shape in reversed(shapes.items())})
    assert list(forward) == list(shapes)
    for key in shapes:
        assert torch.equal(forward[key], backward[key])
    assert not torch.equal(forward["neck.a.weight"], forward["neck.b.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_shape_follow_the_model(dtype: torch.dtype) -> None:
    state = untrained_state({"backbone.bn1.weight": torch.zeros(5, dtype=dtype)})
    assert state["backbone.bn1.weight"].dtype == dtype
    assert state["backbone.bn1.weight"].shape == (5,)
    assert (state["backbone.bn1.weight"] >= 0.5).all()
