"""The paper's comparison at small scale: Mask R-CNN, Cascade Mask R-CNN, HTC without and with its semantic branch.

    python benchmarks/table1_small.py OUTPUT --data FOLDER [--start WEIGHTS] [--seeds 0 1 2] [--epochs 1]

FOLDER holds coco_person1/ and coco_mini/ (docs/models/htc_lite0_fpn.md). All systems have htc_lite0_fpn's backbone and
are trained on the same images of persons in the same order for equally many steps; layers that two systems share start
with the same numbers. The train config is each system's published one (htc_model/training/train_config.py). HTC's three
switches are also turned on one by one in Cascade Mask R-CNN; there, mask information flow without interleaving means
that mask head t also receives the features of head t-1, but is trained on the boxes that entered stage t, not on those
that box head t has just refined. The semantic branch learns the class of each pixel, made from the instances' masks
(smaller ones over larger ones, crowds ignored, the rest one class), since the data has no stuff maps.

--start gives all systems the same trained backbone, neck and proposal network; the heads always start at random.

Each (system, seed) is one cell, trained and evaluated by this project's code in one process. Finished cells are kept in
OUTPUT/cells and skipped, so the command can be stopped and run again. OUTPUT/table.md and table.json hold the table of
the finished cells.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from table1_data import write_documents  # noqa: E402
from table1_report import MAIN_SYSTEMS, SWITCHES_ALONE, describe_cells  # noqa: E402

from htc_model.training.metrics_file import read_metrics  # noqa: E402
from htc_model.training.spec import TrainingSpec  # noqa: E402
from htc_model.weights.load import load_weights, save_weights  # noqa: E402
from pipeline.training.single import train_alone  # noqa: E402

# What `--start` provides: all parts before the compared heads.
_SHARED_PARTS = ("backbone.", "neck.", "rpn_head.")
_NO_SWITCH = {"interleaved": False, "mask_info_flow": False, "semantic": False}
SYSTEMS: dict[str, dict[str, Any]] = {
    "Mask R-CNN": {**_NO_SWITCH, "stages": 1},
    "Cascade Mask R-CNN": _NO_SWITCH,
    "HTC without semantic": {"interleaved": True, "mask_info_flow": True, "semantic": False},
    "HTC": {"interleaved": True, "mask_info_flow": True, "semantic": True},
    "Cascade + interleaved": {**_NO_SWITCH, "interleaved": True},
    "Cascade + mask information flow": {**_NO_SWITCH, "mask_info_flow": True},
    "Cascade + semantic": {**_NO_SWITCH, "semantic": True},
}


@dataclass(frozen=True)
class Cell:
    """One training: a system and a seed. key: a hash of everything that determines the result."""

    system: str
    seed: int
    spec: TrainingSpec
    key: str

    @property
    def folder(self) -> Path:
        """The folder of the training's state and result."""
        return Path(self.spec.output)

    @property
    def result(self) -> Path:
        """The file of the result, which exists if the cell is finished."""
        return self.folder / "result.json"


def plan_cells(arguments: argparse.Namespace, output: Path) -> Iterator[Cell]:
    """List the cells seed by seed, first of the main systems, then of the switches, so that any prefix is balanced."""
    documents = write_documents(Path(arguments.data), output, limit=arguments.pictures)
    start = write_start(arguments.start, output)
    files = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*documents, *start]}
    for systems in (MAIN_SYSTEMS, SWITCHES_ALONE):
        for seed in arguments.seeds:
            for system in systems:
                yield plan_cell(arguments, output, system, seed, files=files)


def plan_cell(arguments: argparse.Namespace, output: Path, system: str, seed: int, *, files: Mapping[str, str]) -> Cell:
    """Build the complete spec of one training; files: the two documents, and the start if any, with their SHA-256."""
    train, heldout, *start = files
    values: dict[str, Any] = {
        "train": [{"annotations": train, "images": str(Path(arguments.data).absolute())}],
        "evaluate": [{"annotations": heldout, "images": str(Path(arguments.data).absolute())}],
        "output": ".",
        "model": {
            "preset": "htc_lite0_fpn",
            "classes": ["person"],
            "initial": start[0] if start else "imagenet",
            "frozen_stages": arguments.frozen_stages,
            "short_side": arguments.short_side,
            "long_side": arguments.short_side * 5 // 3,
            **SYSTEMS[system],
        },
        "optimiser": {"learning_rate": arguments.learning_rate, "warmup_steps": 30, "ema_decay": 0.98},
        "sampling": {"rois": arguments.rois, "proposals": 150},
        "seed": seed,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "checkpoint_steps": 50,
        "log_steps": 5,
    }
    # The key depends on the files' contents, not on their paths.
    text = json.dumps(values, sort_keys=True).replace(str(Path(arguments.data).absolute()), "DATA")
    for path, sha256 in files.items():
        text = text.replace(path, sha256)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    values["output"] = str(output / "cells" / f"{system.lower().replace(' ', '_')}-seed{seed}-{key}")
    return Cell(system, seed, TrainingSpec.model_validate(values), key)


def write_start(weights: str | None, output: Path) -> list[Path]:
    """Write the part of a weights file that all systems share; returns an empty list without a file."""
    if weights is None:
        return []
    loaded = load_weights(weights)
    shared = {name: tensor for name, tensor in loaded.state.items() if name.startswith(_SHARED_PARTS)}
    path = output / "start.safetensors"
    save_weights(path, shared, None, {"from_sha256": loaded.sha256})
    return [path]


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and evaluate a cell, or read the result of a finished one."""
    if cell.result.exists():
        done: dict[str, Any] = json.loads(cell.result.read_text(encoding="utf-8"))
        return done
    started = time.process_time()
    train_alone(cell.spec, on_step=_print_step)
    lines = read_metrics(cell.folder / "metrics.jsonl")
    scores = next(iter(lines[-1]["evaluation"].values()))
    result = {
        "system": cell.system,
        "seed": cell.seed,
        "key": cell.key,
        "steps": lines[-1]["step"],
        "pictures": _count_images(cell.spec.train[0].annotations),
        "heldout": _count_images(cell.spec.evaluate[0].annotations),
        "scores": scores,
        "cpu_s": round(time.process_time() - started, 1),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": cell.spec.model_dump(mode="json"),
    }
    aside = cell.result.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.replace(cell.result)
    # A checkpoint is ten times as large as the weights, and a finished cell does not resume.
    (cell.folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def _count_images(document: str) -> int:
    return len(json.loads(Path(document).read_text(encoding="utf-8"))["images"])


def _print_step(step: int, steps: int, losses: Any) -> None:
    if step % 50 == 0 or step == steps:
        print(f"  step {step}/{steps}, loss {losses['total']:.3f}", flush=True)


def write_table(results: Sequence[dict[str, Any]], output: Path) -> str:
    """Write table.json and table.md; returns the latter's text."""
    text = describe_cells(results)
    (output / "table.json").write_text(json.dumps(list(results), indent=1), encoding="utf-8")
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


def read_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--data", required=True, help="the folder of coco_person1/ and coco_mini/")
    parser.add_argument("--start", help="weights whose backbone, neck and proposal network all systems start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=640, help="number of training images; 0: all with a person")
    parser.add_argument("--short-side", type=int, default=192)
    parser.add_argument("--rois", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--frozen-stages", type=int, default=4, help="4: the whole backbone stays as it is")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the cells that are not finished, and write the table after each."""
    arguments = read_arguments(given)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    output = Path(arguments.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    cells = list(plan_cells(arguments, output))
    results = [json.loads(cell.result.read_text(encoding="utf-8")) for cell in cells if cell.result.exists()]
    for index, cell in enumerate(cells, start=1):
        if cell.result.exists():
            continue
        print(f"{index}/{len(cells)} {cell.system}, seed {cell.seed}", flush=True)
        results.append(run_cell(cell))
        scores = results[-1]["scores"]
        seconds = results[-1]["cpu_s"]
        print(f"  box AP {scores['box_ap']:.3f}, mask AP {scores['mask_ap']:.3f}, {seconds} CPU s", flush=True)
        write_table(results, output)
    print(write_table(results, output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
