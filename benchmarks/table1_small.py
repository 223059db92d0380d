"""The paper's comparison at small scale: Mask R-CNN, PANet, Cascade Mask R-CNN, HTC without and with semantic branch.

    python benchmarks/table1_small.py OUTPUT --data FOLDER [--seeds 0 1 2] [--epochs 1] [--device cuda]

FOLDER holds coco_person1/ and coco_mini/ (docs/models/htc_lite0_fpn.md). All systems have one backbone and are trained
on the same images in the same order for equally many steps; layers that two systems share start with the same numbers.
The train config is each system's published one (htc_model/training/train_config.py). HTC's three switches are also
turned on one by one in Cascade Mask R-CNN; there, mask information flow without interleaving means that mask head t
also receives the features of head t-1, but is trained on the boxes that entered stage t, not on those that box head t
has just refined. The semantic branch learns the maps of table1_stuff.py.

The start is neutral: with --start-epochs, a Mask R-CNN is trained first, whose backbone, neck and proposal network all
systems take and train on; the heads start at random. With 0, all systems start from the backbone's ImageNet weights.

Each (system, seed) is one cell, trained and evaluated by this project's code in one process. Finished cells are kept in
OUTPUT/cells and skipped, and a stopped one continues at its checkpoint, so the command can be stopped and run again.
OUTPUT/table.md and table.json hold the table of the finished cells; --report only writes them, with intervals over
resampled held-out photos, and puts the table into a page, between its two marks.
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

from table1_data import CLASSES, DATA_FOLDERS, merge_documents, write_documents  # noqa: E402
from table1_report import MAIN_SYSTEMS, SWITCHES_ALONE, check_page, describe_cells, put_into_page  # noqa: E402
from table1_scores import match_cell, save_matches, score_cell  # noqa: E402
from table1_stuff import count_labels, write_stuff_maps  # noqa: E402

from htc_model.config import config_from_dict  # noqa: E402
from htc_model.network.detector import HTC, build_model  # noqa: E402
from htc_model.training.evaluate import detect_results  # noqa: E402
from htc_model.training.run import EvaluationSet  # noqa: E402
from htc_model.training.spec import TrainingSpec  # noqa: E402
from htc_model.weights.load import load_into, load_weights, save_weights, state_sha256  # noqa: E402
from pipeline.storage.storage import Storage  # noqa: E402
from pipeline.training.data import load_data  # noqa: E402
from pipeline.training.single import train_alone  # noqa: E402

# What the start provides: all parts before the compared heads.
_SHARED_PARTS = ("backbone.", "neck.", "rpn_head.")
# The seed of the Mask R-CNN that the start is taken from, which no cell has.
_START_SEED = 1901
_NO_SWITCH = {"interleaved": False, "mask_info_flow": False, "semantic": False}
SYSTEMS: dict[str, dict[str, Any]] = {
    "Mask R-CNN": {**_NO_SWITCH, "stages": 1},
    "PANet": {**_NO_SWITCH, "stages": 1, "neck": "pafpn", "roi_head": "panet"},
    "Cascade Mask R-CNN": _NO_SWITCH,
    "HTC without semantic": {"interleaved": True, "mask_info_flow": True, "semantic": False},
    "HTC": {"interleaved": True, "mask_info_flow": True, "semantic": True},
    "Cascade + interleaved": {**_NO_SWITCH, "interleaved": True},
    "Cascade + mask information flow": {**_NO_SWITCH, "mask_info_flow": True},
    "Cascade + semantic": {**_NO_SWITCH, "semantic": True},
}


@dataclass(frozen=True)
class Prepared:
    """What all cells read: the two documents and the start, with their SHA-256, and the maps' folder.

    start: a weights file, or None for the backbone's own. labels: how many the maps have. hashes: of the other files.
    """

    train: Path
    heldout: Path
    stuff: Path
    labels: int
    start: Path | None
    hashes: Mapping[Path, str]


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

    @property
    def matches(self) -> Path:
        """The file of the matched detections."""
        return self.folder / "matches.npz"


def prepare(arguments: argparse.Namespace, output: Path) -> Prepared:
    """Write the documents, the semantic maps and the start, as far as they are not there."""
    data = Path(arguments.data).absolute()
    train, heldout = write_documents(data, output, limit=arguments.pictures)
    full = merge_documents(data, "instances_train.json", is_grouped=False)
    write_stuff_maps(full, data, output / "stuff")
    initial = [path for path in [Path(arguments.initial)] if path.is_file()]
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (train, heldout, *initial)}
    prepared = Prepared(train, heldout, output / "stuff", count_labels(full), None, hashes)
    if not arguments.start_epochs:
        return prepared
    given = argparse.Namespace(**{**vars(arguments), "epochs": arguments.start_epochs})
    cell = plan_cell(given, output / "start", "Mask R-CNN", _START_SEED, prepared)
    start = write_start(run_start(cell, arguments.device))
    # Not of the file, whose header may come in another order.
    digest = state_sha256(load_weights(start).state)
    return Prepared(train, heldout, prepared.stuff, prepared.labels, start, {**hashes, start: digest})


def plan_cells(arguments: argparse.Namespace, output: Path, prepared: Prepared) -> Iterator[Cell]:
    """List the cells seed by seed, first of the main systems, then of the switches, so that any prefix is balanced."""
    for systems in (MAIN_SYSTEMS, SWITCHES_ALONE):
        for seed in arguments.seeds:
            for system in systems:
                if arguments.systems is None or system in arguments.systems:
                    yield plan_cell(arguments, output, system, seed, prepared)


def plan_cell(arguments: argparse.Namespace, output: Path, system: str, seed: int, prepared: Prepared) -> Cell:
    """Build the complete spec of one training."""
    data = str(Path(arguments.data).absolute())
    switches = SYSTEMS[system]
    learns_maps = switches["semantic"]
    values: dict[str, Any] = {
        "train": [
            {
                "annotations": str(prepared.train),
                "images": data,
                "stuff": str(prepared.stuff) if learns_maps else None,
            }
        ],
        "output": ".",
        "model": {
            "preset": arguments.preset,
            "classes": list(CLASSES),
            "initial": str(prepared.start or arguments.initial),
            "frozen_stages": arguments.frozen_stages,
            "short_side": arguments.short_side,
            "long_side": arguments.short_side * 5 // 3,
            "semantic_classes": prepared.labels if learns_maps else None,
            **switches,
        },
        "optimiser": {
            "learning_rate": arguments.learning_rate,
            "trunk_factor": 0.3,
            "warmup_steps": 50,
            "ema_decay": 0.99,
        },
        "sampling": {"rois": arguments.rois, "proposals": arguments.proposals},
        "augmentation": {"flip": 0.5, "scale": [0.8, 1.25], "colour": 0.2},
        "class_balance": 0.3,
        "seed": seed,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "checkpoint_steps": 100,
        "log_steps": 10,
        "loaders": arguments.loaders,
    }
    # The key depends on the files' contents, not on their paths.
    text = json.dumps({**values, "loaders": 0}, sort_keys=True)
    for path, text_of in ((Path(data), "DATA"), (prepared.stuff, "MAPS"), *prepared.hashes.items()):
        text = text.replace(str(path), text_of)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    values["output"] = str(output / "cells" / f"{system.lower().replace(' ', '_')}-seed{seed}-{key}")
    return Cell(system, seed, TrainingSpec.model_validate(values), key)


def run_start(cell: Cell, device: str) -> Path:
    """Train the network that the start is taken from, or find it trained."""
    weights = cell.folder / "weights.safetensors"
    if not weights.exists():
        print("the start: Mask R-CNN", flush=True)
        train_alone(cell.spec, device=device, on_step=_print_step)
    return weights


def write_start(weights: Path) -> Path:
    """Write the part of a weights file that all systems share, beside it."""
    loaded = load_weights(weights)
    shared = {name: tensor for name, tensor in loaded.state.items() if name.startswith(_SHARED_PARTS)}
    path = weights.with_name("start.safetensors")
    save_weights(path, shared, None, {"from_sha256": loaded.sha256})
    return path


def run_cell(cell: Cell, heldout: EvaluationSet, device: str) -> dict[str, Any]:
    """Train and evaluate a cell, or read the result of a finished one."""
    if cell.result.exists():
        done: dict[str, Any] = json.loads(cell.result.read_text(encoding="utf-8"))
        return done
    started = time.process_time()
    weights = train_alone(cell.spec, device=device, on_step=_print_step)
    trained = time.process_time()
    found = detect_results(load_model(weights, device), heldout.annotations, heldout.load_image)
    save_matches(cell.matches, match_cell(found, heldout.annotations))
    result = {
        "system": cell.system,
        "seed": cell.seed,
        "key": cell.key,
        "steps": load_weights(weights).metadata["steps"],
        "pictures": len(json.loads(Path(cell.spec.train[0].annotations).read_text(encoding="utf-8"))["images"]),
        "heldout": len(heldout.annotations.images),
        "scores": score_cell(found, heldout.annotations),
        "training_cpu_s": round(trained - started, 1),
        "cpu_s": round(time.process_time() - started, 1),
        "machine": _machine(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": cell.spec.model_dump(mode="json"),
    }
    aside = cell.result.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.replace(cell.result)
    # A checkpoint is ten times as large as the weights, and a finished cell does not resume.
    (cell.folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def load_model(weights: Path, device: str) -> HTC:
    """Build the network of a training's weights file."""
    loaded = load_weights(weights)
    model = build_model(config_from_dict(loaded.metadata["config"]))
    load_into(model, loaded)
    return model.to(device)


def read_heldout(spec: TrainingSpec, heldout: Path) -> EvaluationSet:
    """Read the held-out photos for a cell's spec; all cells have the same classes."""
    section = {"annotations": str(heldout), "images": spec.train[0].images}
    return load_data(TrainingSpec.model_validate({**spec.model_dump(), "evaluate": [section]}), Storage()).evaluation[0]


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread"


def _print_step(step: int, steps: int, losses: Any) -> None:
    if step % 50 == 0 or step == steps:
        print(f"  step {step}/{steps}, loss {losses['total']:.3f}", flush=True)


def read_finished(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Read the results of the finished cells, with the path of their matched detections."""
    return [
        {**json.loads(cell.result.read_text(encoding="utf-8")), "matches": str(cell.matches)}
        for cell in cells
        if cell.result.exists()
    ]


def write_table(results: Sequence[dict[str, Any]], output: Path, *, draws: int = 0) -> str:
    """Write table.json and table.md; returns the latter's text. draws: of held-out photos, for the intervals."""
    text = describe_cells(results, output / "heldout.json", draws=draws)
    (output / "table.json").write_text(json.dumps(list(results), indent=1), encoding="utf-8")
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


def read_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, and stop with a sentence if what it names is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--data", required=True, help="the folder of coco_person1/ and coco_mini/")
    parser.add_argument("--preset", default="htc_lite0_fpn", help="whose backbone and widths all systems have")
    parser.add_argument("--initial", default="imagenet", help="the backbone's weights: imagenet, or a file")
    parser.add_argument("--start-epochs", type=int, default=1, help="of the Mask R-CNN that all start from; 0: none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help="some of the systems only")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=0, help="number of training images; 0: all with an object")
    parser.add_argument("--short-side", type=int, default=192)
    parser.add_argument("--rois", type=int, default=48)
    parser.add_argument("--proposals", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--frozen-stages", type=int, default=1, help="4: the whole backbone stays as it is")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16", "auto"))
    parser.add_argument("--loaders", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--report", action="store_true", help="train nothing; write the table of the finished cells")
    parser.add_argument("--draws", type=int, default=1000, help="of held-out photos, for the report's intervals")
    parser.add_argument("--page", type=Path, help="with --report: a Markdown page that the table is put into")
    arguments = parser.parse_args(given)
    wanted = Path(arguments.data) / DATA_FOLDERS[0] / "instances_train.json"
    if not wanted.is_file():
        parser.error(f"{wanted} does not exist; --data is the folder of {' and '.join(DATA_FOLDERS)}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; leave --device out")
    if arguments.page is not None:
        try:
            check_page(arguments.page)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Run the cells that are not finished, and write the table after each."""
    arguments = read_arguments(given)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    output = Path(arguments.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    prepared = prepare(arguments, output)
    cells = list(plan_cells(arguments, output, prepared))
    if arguments.report:
        text = write_table(read_finished(cells), output, draws=arguments.draws)
        if arguments.page is not None:
            put_into_page(text, arguments.page)
        print(text)
        return 0
    heldout = read_heldout(cells[0].spec, prepared.heldout)
    for index, cell in enumerate(cells, start=1):
        if cell.result.exists():
            continue
        print(f"{index}/{len(cells)} {cell.system}, seed {cell.seed}", flush=True)
        result = run_cell(cell, heldout, arguments.device)
        scores, seconds = result["scores"]["mean"], result["cpu_s"]
        print(f"  box AP {scores['box_ap']:.4f}, mask AP {scores['mask_ap']:.4f}, {seconds} CPU s", flush=True)
        write_table(read_finished(cells), output)
    print(write_table(read_finished(cells), output, draws=arguments.draws))
    return 0


if __name__ == "__main__":
    sys.exit(main())
