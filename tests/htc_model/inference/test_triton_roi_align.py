"""The Triton RoIAlign: its numbers in Triton's interpreter, and that it compiles for the cards."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytest.importorskip("triton", reason="torch's wheels for this system come without Triton")

# Of values around 1. bfloat16 has 8 bits and float16 has 11; the interpreter cuts off bits instead of rounding.
TOLERANCES = {
    "boxes": 1e-5,
    "masks": 1e-5,
    "without semantic": 1e-5,
    "bfloat16": 2e-2,
    "float16": 2e-3,
    "no RoIs": 0.0,
}


def test_it_gives_the_numbers_of_the_dynamic_path() -> None:
    """All levels, RoIs at and beyond borders, without area and in empty slots; see the program."""
    # A process of its own: Triton reads TRITON_INTERPRET when it is imported.
    command = [sys.executable, "-m", "tests.support.programs.triton_roi_align"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(TOLERANCES)
    assert {case: worst for case, worst in found.items() if worst[0] > TOLERANCES[case]} == {}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 90), ("fp32", 80)])
def test_it_compiles_for_cards_without_one(dtype: str, capability: int) -> None:
    """To machine code; a cell's channels are read 16 bytes at a time, and threads neither wait nor exchange."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from htc_model.inference import triton_roi_align as module

    kernel = module._pool_kernel
    pointers = dict.fromkeys(("pooled", "p2", "p3", "p4", "p5", "semantic"), f"*{dtype}") | {"rois": "*fp32"}
    constants = {
        "SIDE": 7, "AVERAGED": 2, "HAS_SEMANTIC": True, "FINEST": 56.0, "STRIDE": 4, "SEMANTIC_STRIDE": 8,
        "CELLS": module._CELLS, "CHANNELS": 256, "BLOCK": 256,
    }  # fmt: skip
    types = pointers | dict.fromkeys(module._SIZES, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": module._WARPS})
    assert len(compiled.asm["cubin"]) > 0
    assert "ld.global.v4.b32" in compiled.asm["ptx"]
    assert [word for word in ("bar.sync", "shfl.", "st.local") if word in compiled.asm["ptx"]] == []
