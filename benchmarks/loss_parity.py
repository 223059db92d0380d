"""Prints the training step's differences from MMDetection's goldens: losses, targets, boxes, gradients.

    python benchmarks/loss_parity.py [--goldens DIR] [--only SUBSTRING] [--all]

Discrete quantities (assignments, samples, labels) must be equal. Of the others the worst of each golden are printed,
all of them with --all. The last line is JSON; the exit code is 1 if a quantity is out of tolerance.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.goldens.losses import LOSS_GOLDENS, load_loss_golden, measure_step, run_golden  # noqa: E402


def main() -> int:
    """Print the table; the exit code is 1 if a quantity is out of tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--goldens", type=Path, default=LOSS_GOLDENS)
    parser.add_argument("--only", default="", help="take goldens whose file name contains this")
    parser.add_argument("--all", action="store_true", help="one line per quantity")
    arguments = parser.parse_args()
    started = time.monotonic()
    paths = [path for path in sorted(arguments.goldens.glob("*__*.npz")) if arguments.only in path.name]
    quantities = failed = 0
    print("| golden | quantity | worst | tolerance | unit | ok |\n|---|---|---|---|---|---|")
    for path in paths:
        golden = load_loss_golden(path)
        rows = list(measure_step(golden, run_golden(golden)))
        quantities += len(rows)
        failed += sum(not row.is_ok for row in rows)
        nearest = sorted(rows, key=lambda row: row.worst / row.tolerance if row.tolerance else row.worst)[-5:]
        shown = rows if arguments.all else [row for row in rows if row in nearest or not row.is_ok]
        for row in shown:
            verdict = "yes" if row.is_ok else "NO"
            print(f"| {path.stem} | {row.quantity} | {row.worst:.2g} | {row.tolerance:g} | {row.unit} | {verdict} |")
    summary = {
        "benchmark": "loss_parity",
        "compares": "one training step with MMDetection 3.3.0's, deterministic weights, all samples taken",
        "goldens": len(paths),
        "quantities": quantities,
        "out_of_tolerance": failed,
        "seconds": round(time.monotonic() - started, 1),
        "torch": torch.__version__,
    }
    print(json.dumps(summary))
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
