"""Average precision of the bundled model: a complete run over held-out COCO images, scored from its tables.

    python benchmarks/demo_model_ap.py FOLDER [--weights FILE] [--markdown FILE]

FOLDER holds coco_person1/ and coco_mini/, each with images/ and instances_heldout.json (docs/models/htc_lite0_fpn.md).
The script uses `htc run` to segment the images of the annotations (from a listing) and `htc evaluate` to score the
tables. Instances with scores of at least 0.001 are kept, since COCO's protocol needs the unsure ones, too. The last
line is JSON.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SETS = {"coco_person1": "photos of one person", "coco_mini": "crowded photos and photos without persons"}
COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
# The score threshold of MMDetection's configs for HTC (test_cfg.rcnn.score_thr).
SCORE_THRESHOLD = 0.001


def score_set(folder: Path, work: Path, weights: str) -> dict[str, Any]:
    """Segment one set's held-out images and score them."""
    from jobs.results.evaluation import evaluate_run
    from pipeline.driver.run_job import run
    from pipeline.job_spec.job import load_spec
    from pipeline.output.results import open_results
    from pipeline.storage.storage import Storage

    annotations = folder / "instances_heldout.json"
    names = [image["file_name"] for image in json.loads(annotations.read_text())["images"]]
    work.mkdir()
    listing = work / "images.txt"
    listing.write_text("".join(f"{(folder / 'images' / name).absolute()}\n" for name in names))
    overrides = {
        "input.uri": str(listing),
        "output.uri": str(work / "out"),
        "model.weights": weights,
        "model.score_threshold": SCORE_THRESHOLD,
        "compute.shard_images": 8,
    }
    summary = run(load_spec(None, overrides))
    if summary.exit_code:
        raise SystemExit(f"the run over {folder} ended with exit code {summary.exit_code}")
    storage = Storage()
    evaluation = evaluate_run(open_results(str(work / "out"), storage), str(annotations), storage)
    if evaluation.missing or evaluation.images != len(names):
        raise SystemExit(f"{len(evaluation.missing)} images of {annotations} have no row")
    return {"images": evaluation.images, "detections": evaluation.instances, **evaluation.scores}


def describe(scores: dict[str, dict[str, Any]]) -> str:
    """Format a Markdown table of average precisions in percent."""
    lines = ["| held-out photos | | AP | AP50 | AP75 | small | medium | large |", "|---|---|---|---|---|---|---|---|"]
    for name, found in scores.items():
        for kind in ("mask", "box"):
            title = f"`{name}`, {found['images']} {SETS[name]}" if kind == "mask" else ""
            cells = (f"{100 * found[f'{kind}_{column}']:.1f}" for column in COLUMNS)
            lines.append(f"| {title} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds coco_person1/ and coco_mini/")
    parser.add_argument("--weights", default="demo", help="demo (the bundled model) or a .safetensors file")
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        scores = {name: score_set(options.folder / name, Path(work) / name, options.weights) for name in SETS}
    table = describe(scores)
    if options.markdown:
        options.markdown.write_text(table + "\n")
    print(table)
    versions = {name: version(name) for name in ("torch", "torchvision", "ray", "pycocotools")}
    print(
        json.dumps({"machine": platform.machine(), "python": platform.python_version(), **versions, "scores": scores})
    )


if __name__ == "__main__":
    main()
