"""Test-time augmentation and ensembles with the bundled model: what they gain in average precision, and what they cost.

    python benchmarks/augment.py FOLDER [--second WEIGHTS] [--sets NAME ...] [--ways WAY ...] [--images N] [--rounds N]

FOLDER holds coco_person1/ and coco_mini/, each with images/ and instances_heldout.json (docs/models/htc_lite0_fpn.md).
With --second, the weights of a second member (docs/ensembles.md), that one alone and ensembles are measured as well.
Every way (plain, flip, flip at three scales, ensembles) segments all held-out photos in a process of its own, in each
round, so that the ways are interleaved and peak memory is each way's own. pycocotools scores instances from 0.001. The
last line is JSON; images_per_s is by the wall clock, images_per_cpu_s by the time on the core (one thread), which other
work beside it does not change much; `ratio` is of the latter, to the plain way of the same run.
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
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flip": {"augment": "flip"},
    "flip, 3 scales": {"augment": "full"},
}
WITH_SECOND: dict[str, dict[str, Any]] = {
    "second alone": {"is_second": True},
    "ensemble": {"fusion": "nms"},
    "ensemble, wbf": {"fusion": "wbf"},
    "ensemble, flip": {"fusion": "nms", "augment": "flip"},
}
# The score threshold of MMDetection's configs for HTC (test_cfg.rcnn.score_thr).
SCORE_THRESHOLD = 0.001


def spec_keys(way: str, second: str | None) -> dict[str, object]:
    """Return the spec's keys of one way."""
    chosen = (WAYS | WITH_SECOND)[way]
    keys: dict[str, object] = {"model.score_threshold": SCORE_THRESHOLD, "model.augment": chosen.get("augment")}
    if chosen.get("is_second"):
        keys["model.weights"] = second
    elif "fusion" in chosen:
        keys |= {"model.ensemble.members": ["demo", second], "model.ensemble.fusion": chosen["fusion"]}
    return keys


def segment(folder: Path, sets: list[str], way: str, limit: int | None, second: str | None) -> dict[str, Any]:
    """Segment the held-out photos in one way, in this process; return scores, seconds and peak memory."""
    import torch
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from pipeline.inputs.decode import decode_image
    from pipeline.job_spec.job import load_spec
    from pipeline.weights.fingerprint import resolve_preset
    from pipeline.worker.open_model import open_model
    from pipeline.worker.segmenter import DecodedImage, Segmenter

    torch.set_num_threads(1)
    section = load_spec(None, {"input.uri": "in", "output.uri": "out", **spec_keys(way, second)}).model
    device = torch.device("cpu")
    model, precision = open_model(resolve_preset(section), None, device)
    segmenter = Segmenter(model, device, precision=precision, batch_size=1)
    found: dict[str, Any] = {"images": 0, "seconds": 0.0, "cpu_seconds": 0.0, "scores": {}}
    for name in sets:
        annotations = folder / name / "instances_heldout.json"
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations))
        results = []
        ids = sorted(truth.imgs)[:limit]
        for image_id in ids:
            path = folder / name / "images" / truth.imgs[image_id]["file_name"]
            pixels = decode_image(path.read_bytes())
            start, cpu_start = time.perf_counter(), time.process_time()
            ((_, outcome),) = segmenter.segment([DecodedImage(0, str(path), pixels)])
            detections = segmenter.encode(outcome)  # type: ignore[arg-type]
            found["seconds"] += time.perf_counter() - start
            found["cpu_seconds"] += time.process_time() - cpu_start
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
                # Other classes are annotated as well, and would count as missed.
                evaluation.params.catIds = list(segmenter.model.config.category_ids)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                for number, metric in ((0, "ap"), (1, "ap50"), (2, "ap75")):
                    found["scores"][f"{name}_{label}_{metric}"] = round(float(evaluation.stats[number]), 4)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds coco_person1/ and coco_mini/")
    parser.add_argument("--second", help="weights of a second member, as --weights of htc run takes them")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS | WITH_SECOND, help="all by default")
    parser.add_argument("--images", type=int, help="of each set, the first ones; all by default")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS | WITH_SECOND, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(segment(options.folder, options.sets, options.way, options.images, options.second)))
        return
    ways = options.ways or [*WAYS, *(WITH_SECOND if options.second else ())]
    if options.second is None and set(ways) & set(WITH_SECOND):
        parser.error("--second names the weights that these ways need")
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        rounds.append({})
        for way in ways:
            rounds[-1][way] = _in_a_process(options, way)
            print(json.dumps({way: rounds[-1][way]}), flush=True)
    print(json.dumps({"benchmark": "augment", **_summary(rounds, ways)}))


def _summary(rounds: list[dict[str, Any]], ways: list[str]) -> dict[str, Any]:
    def median(way: str, key: str) -> float:
        return statistics.median(each[way][key] for each in rounds)

    images = rounds[0][ways[0]]["images"]
    summary = {
        way: {
            **rounds[0][way]["scores"],
            "images_per_s": round(images / median(way, "seconds"), 3),
            "images_per_cpu_s": round(images / median(way, "cpu_seconds"), 3),
            "peak_mib": max(each[way]["peak_mib"] for each in rounds),
        }
        for way in ways
    }
    if "plain" in ways:
        for way in ways:
            summary[way]["ratio"] = round(median("plain", "cpu_seconds") / median(way, "cpu_seconds"), 3)
    return {"images": images, "rounds": len(rounds), "ways": summary}


def _in_a_process(options: argparse.Namespace, way: str) -> dict[str, Any]:
    limit = [] if options.images is None else ["--images", str(options.images)]
    second = [] if options.second is None else ["--second", options.second]
    flags = ["--way", way, "--sets", *options.sets, *limit, *second]
    printed = subprocess.run(
        [sys.executable, __file__, str(options.folder), *flags], check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
