"""The GPU benchmark runs from end to end where there is no GPU, on tiny networks."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

BENCHMARK = str(ROOT / "benchmarks" / "gpu_model.py")


@pytest.mark.slow
def test_it_runs_on_a_cpu() -> None:
    command = [sys.executable, BENCHMARK, "--device", "cpu", "--small", "--presets", "htc_lite0_fpn"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["different"] == []
    rows = {(row["engine"], row["precision"]): row for row in report["rows"]}
    assert set(rows) == {(engine, how) for engine in ("dynamic", "plan", "graphs") for how in ("fp32", "bf16")}
    assert rows["dynamic", "fp32"]["matched"] == 1
    assert rows["dynamic", "fp32"]["compared"] > 0
    assert rows["plan", "fp32"]["syncs_per_image"] == 0 < rows["dynamic", "fp32"]["syncs_per_image"]
    assert all(row["gflop_per_image"] > 0 for row in rows.values())
