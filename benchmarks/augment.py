"""Test-time augmentation with the bundled model: what it gains in average precision, and what it costs.

    python benchmarks/augment.py FOLDER [--images N] [--rounds N]

FOLDER holds coco_person1/ and coco_mini/, each with images/ and instances_heldout.json (docs/models/htc_lite0_fpn.md).
Every way (plain, flip, flip at three scales) segments all held-out photos in a process of its own, in each round, so
that the ways are interleaved and peak memory is each way's own. pycocotools scores instances from 0.001. The last line
is JSON; `ratio` is to the plain way of the same run.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SETS = ("coco_person1", "coco_mini")
WAYS: dict[str, Any] = {"plain": None, "flip": "flip", "flip, 3 scales": "full"}
# The score threshold of MMDetection's configs for HTC (test_cfg.rcnn.score_thr).
SCORE_THRESHOLD = 0.001


def segment(folder: Path, way: str, limit: int | None) -> dict[str, Any]:
    """Segment the held-out photos in one way, in this process; return scores, seconds and peak memory."""
    import torch
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from htc_model.inference.precision import PrecisionChoice
    from pipeline.inputs.decode import decode_image
    from pipeline.job_spec.job import load_spec
    from pipeline.worker.segmenter import DecodedImage, Segmenter, augment, load_model, prepare_for_cpu

    torch.set_num_threads(1)
    overrides = {"input.uri": "in", "output.uri": "out", "model.score_threshold": SCORE_THRESHOLD}
    section = load_spec(None, overrides | {"model.augment": WAYS[way]}).model
    precision = PrecisionChoice("fp32", "by default")
    model = augment(prepare_for_cpu(load_model(section), precision), section)
    segmenter = Segmenter(model, torch.device("cpu"), precision=precision, batch_size=1)
    found: dict[str, Any] = {"images": 0, "seconds": 0.0, "scores": {}}
    for name in SETS:
        annotations = folder / name / "instances_heldout.json"
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations))
        results = []
        ids = sorted(truth.imgs)[:limit]
        for image_id in ids:
            path = folder / name / "images" / truth.imgs[image_id]["file_name"]
            pixels = decode_image(path.read_bytes())
            start = time.perf_counter()
            ((_, outcome),) = segmenter.segment([DecodedImage(0, str(path), pixels)])
            detections = segmenter.encode(outcome)  # type: ignore[arg-type]
            found["seconds"] += time.perf_counter() - start
            results += [
                {
                    "image_id": image_id,
                    "category_id": segmenter.model.config.category_ids[int(label)],
                    "score": float(score),
                    "segmentation": mask,
                    "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                }
                for (x1, y1, x2, y2), score, label, mask in zip(
                    detections.boxes_xyxy, detections.scores, detections.labels, detections.masks or [], strict=True
                )
            ]
        found["images"] += len(ids)
        with contextlib.redirect_stdout(io.StringIO()):
            loaded = truth.loadRes(results)
            for kind, label in (("segm", "mask"), ("bbox", "box")):
                evaluation = COCOeval(truth, loaded, kind)
                evaluation.params.imgIds = ids
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                found["scores"][f"{name}_{label}_ap"] = round(float(evaluation.stats[0]), 4)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds coco_person1/ and coco_mini/")
    parser.add_argument("--images", type=int, help="of each set, the first ones; all by default")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(segment(options.folder, options.way, options.images)))
        return
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        rounds.append({way: _in_a_process(options, way) for way in WAYS})
        print(json.dumps(rounds[-1]), flush=True)
    seconds = {way: statistics.median(each[way]["seconds"] for each in rounds) for way in WAYS}
    ways = {
        way: {
            **rounds[0][way]["scores"],
            "images_per_s": round(rounds[0][way]["images"] / seconds[way], 3),
            "peak_mib": max(each[way]["peak_mib"] for each in rounds),
            "ratio": round(seconds["plain"] / seconds[way], 3),
        }
        for way in WAYS
    }
    print(json.dumps({"benchmark": "augment", "images": rounds[0]["plain"]["images"], "ways": ways}))


def _in_a_process(options: argparse.Namespace, way: str) -> dict[str, Any]:
    limit = [] if options.images is None else ["--images", str(options.images)]
    command = [sys.executable, __file__, str(options.folder), "--way", way, *limit]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
