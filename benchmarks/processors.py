"""Compares the network with MMDetection's goldens on the code paths of other processors.

    python benchmarks/processors.py [--only SUBSTRING] [--path NAME ...]

Runs benchmarks/parity.py once per path, in a separate process, since oneDNN chooses its path when it is loaded. Prints
the worst differences on each path, for tensors as a share of the tolerance; the last line is JSON. All goldens take an
hour on one core, most of it on SSE4.1.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.goldens.network import CODE_PATHS  # noqa: E402


def main() -> int:
    """Print the table; the exit code is 1 if a line is out of tolerance on any path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="take goldens whose file name contains this")
    parser.add_argument("--path", action="append", choices=list(CODE_PATHS), help="all by default; may be repeated")
    arguments = parser.parse_args()
    print(
        "| code path | tensors, of their tolerance | detections missing | at no decision | box, px | out of tolerance |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    failed = {}
    for path in arguments.path or CODE_PATHS:
        command = [sys.executable, str(ROOT / "benchmarks" / "parity.py"), "--all", "--only", arguments.only]
        environment = {**os.environ, **CODE_PATHS[path], "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
        rows = [line for line in lines if len(line) == 7 and line[6] in {"yes", "NO"}]
        worst = {
            quantity: max((float(row[3]) for row in rows if row[2] == quantity), default=0.0)
            for quantity in ("detections missing", "missing at no decision", "box")
        }
        shares = [float(row[3]) / float(row[4].split()[1]) for row in rows if row[5] == "std"]
        failed[path] = sum(row[6] == "NO" for row in rows) if done.returncode in {0, 1} and rows else -1
        print(
            f"| {path} | {max(shares, default=0):.2f} | {worst['detections missing']:.1%} "
            f"| {worst['missing at no decision']:.0f} | {worst['box']:.3f} | {failed[path]} of {len(rows)} |",
            flush=True,
        )
    print(json.dumps({"benchmark": "processors", "out_of_tolerance": failed}))
    return int(any(failed.values()))


if __name__ == "__main__":
    raise SystemExit(main())
