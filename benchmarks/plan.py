"""Compares the estimates of `htc plan` with runs: time and cost, from a probe and from the run before.

Each round plans the same input twice, by a probe and by the last run (from the second round on), and then runs it as a
user would, in a process of its own. Prints one JSON line: per round the estimated and the measured seconds and cost,
and estimate by measurement. A run of a few minutes has much start-up and tail; both are part of the estimate.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "examples" / "photos"
PRICE = 1.0


def write_input(folder: Path, images: int) -> None:
    """Fill a folder with so many copies of the example photos."""
    folder.mkdir(parents=True)
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(images):
        shutil.copy(photos[number % len(photos)], folder / f"{number:05d}.jpg")


def htc(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Run a command with --json; return its wall time in seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments, "--json"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"htc {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return seconds, json.loads(done.stdout)


def pool_of(plan: dict[str, Any]) -> dict[str, float]:
    """Return the estimate for the only pool: seconds, their range, and the cost as a run counts it."""
    (pool,) = plan["estimate"]["pools"]
    return {key: pool[key] for key in ("seconds", "low_seconds", "high_seconds", "start_up_s", "network_s", "amount")}


def compare(estimate: dict[str, float], seconds: float, amount: float, network_s: float) -> dict[str, Any]:
    """Return an estimate with its ratios to what was measured."""
    low, high = estimate["low_seconds"], estimate["high_seconds"]
    return {
        "estimate_s": round(estimate["seconds"], 1),
        "range_s": [round(low, 1), round(high, 1)] if low is not None and high is not None else None,
        "is_in_range": low <= seconds <= high if low is not None and high is not None else None,
        "ratio_s": round(estimate["seconds"] / seconds, 3),
        "estimate_network_s": round(estimate["network_s"], 1),
        "ratio_network_s": round(estimate["network_s"] / network_s, 3),
        "estimate_cost": round(estimate["amount"], 5),
        "ratio_cost": round(estimate["amount"] / amount, 3),
    }


def run_round(folder: Path, workers: int, weights: str, *, has_run: bool) -> dict[str, Any]:
    """Plan, run, compare."""
    common = [str(folder / "in"), str(folder / "out"), "--weights", weights, "--workers", str(workers), "--fresh"]
    priced = [*common, "--price-per-hour", str(PRICE)]
    probe_s, by_probe = htc("plan", *priced, "--probe")
    estimates = {"probe": by_probe}
    if has_run:
        _, estimates["last_run"] = htc("plan", *priced, "--no-model")
    seconds, summary = htc("run", *priced)
    busy_s = summary["worker_use"]["busy_s"] / workers
    amount = summary["cost"]["amount"]
    return {
        "measured_s": round(seconds, 1),
        "measured_start_up_s": summary["start_up_s"]["worker"],
        "measured_network_s": round(busy_s, 1),
        "measured_cost": round(amount, 5),
        "probe_took_s": round(probe_s, 1),
        **{name: compare(pool_of(plan), seconds, amount, busy_s) for name, plan in estimates.items()},
    }


def main() -> None:
    """Run the rounds and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "in", options.images)
        rounds = [
            run_round(folder, options.workers, options.weights, has_run=number > 0) for number in range(options.rounds)
        ]
    ratios = {
        source: round(statistics.median(each[source]["ratio_s"] for each in rounds if source in each), 3)
        for source in ("probe", "last_run")
        if any(source in each for each in rounds)
    }
    line = {"benchmark": "plan", "images": options.images, "workers": options.workers, "rounds": rounds}
    print(json.dumps({**line, "ratios": ratios}))


if __name__ == "__main__":
    main()
