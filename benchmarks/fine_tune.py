"""Fine-tuning on own classes: the bundled model against ImageNet's backbone alone, on twenty photos.

    python benchmarks/fine_tune.py [--epochs N] [--seeds N ...] [--data FOLDER] [--keep FOLDER] [--markdown FILE]

Both runs are `htc train FOLDER OUTPUT --from demo|imagenet`, with the recipe's own settings (docs/training.md), equal
epochs and equal image sizes; only the initial weights and, by the recipe, the learning rate differ. They are scored
with the photos of val.json after the last epoch: the best evaluation is not chosen, since it would be chosen by the
photos that it is scored with. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "training" / "three_classes"
STARTS = ("demo", "imagenet")
NAMES = {"demo": "the bundled model", "imagenet": "ImageNet's backbone alone"}


def fine_tune(start: str, data: Path, output: Path, *, epochs: int, seed: int) -> dict[str, Any]:
    """Train from one start, and return the scores of the last epoch and of every class."""
    began = time.monotonic()
    command = [
        *(sys.executable, "-m", "jobs", "train", str(data), str(output), "--from", start, "--epochs", str(epochs)),
        *("--short-side", "256", "--long-side", "400", "--seed", str(seed)),
    ]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "evaluation" in line][-1]
    (scores,) = last["evaluation"].values()
    (classes,) = last["classes"].values()
    return {
        "mask_ap": scores["mask_ap"],
        "mask_ap50": scores["mask_ap50"],
        "box_ap": scores["box_ap"],
        "classes": {name: found["mask_ap"] for name, found in classes.items()},
        "steps": last["step"],
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def write_table(found: dict[str, list[dict[str, Any]]], classes: list[str]) -> str:
    """Format the means over the seeds as Markdown."""
    columns = ["begun with", "mask AP", "mask AP50", "box AP", *(f"mask AP of {name}" for name in classes)]
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for start, runs in found.items():
        values = [[run["mask_ap"], run["mask_ap50"], run["box_ap"]] for run in runs]
        values = [
            numbers + [run["classes"][name] for name in classes] for numbers, run in zip(values, runs, strict=True)
        ]
        means = [sum(column) / len(runs) for column in zip(*values, strict=True)]
        rows.append(f"| {NAMES[start]} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Train from both starts and print the comparison; 1 if the bundled model is not the better start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with train.json, val.json and images/")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", type=Path, help="keep the outputs in this folder")
    parser.add_argument("--markdown", type=Path, help="write the table into this file")
    arguments = parser.parse_args()
    for name in ("train.json", "val.json", "images"):
        if not (arguments.data / name).exists():
            print(f"skipped: {arguments.data / name} is not there")
            return 0
    categories = json.loads((arguments.data / "train.json").read_text())["categories"]
    found: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
    with tempfile.TemporaryDirectory() as work:
        folder = arguments.keep or Path(work)
        for seed in arguments.seeds:
            for start in STARTS:
                output = folder / f"{start}_{seed}"
                found[start].append(fine_tune(start, arguments.data, output, epochs=arguments.epochs, seed=seed))
    table = write_table(found, [category["name"] for category in categories])
    print(table)
    if arguments.markdown:
        arguments.markdown.write_text(table, encoding="utf-8")
    means = {start: sum(run["mask_ap"] for run in runs) / len(runs) for start, runs in found.items()}
    record = {
        "benchmark": "fine_tune",
        "photos": len(json.loads((arguments.data / "train.json").read_text())["images"]),
        "held_out": len(json.loads((arguments.data / "val.json").read_text())["images"]),
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "mask_ap": {start: round(mean, 4) for start, mean in means.items()},
        "runs": found,
        "torch": version("torch"),
    }
    print(json.dumps(record))
    return 0 if means["demo"] > means["imagenet"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
