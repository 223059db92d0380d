"""Runs the precision gate: does bfloat16 give the detections of float32, for one model on one device?

    python benchmarks/precision_gate.py [--device cuda] [--weights demo|FILE] [--heldout FOLDER] [--goldens NAMES]
                                        [--photos 16] [--heldout-images 0] [--write]

Detections are compared on the example photos and, with the deterministic weights, on goldens; mask AP on held-out
photos: FOLDER holds coco_person1/ and coco_mini/, each with images/ and instances_heldout.json
(docs/models/htc_lite0_fpn.md); of each set the first --heldout-images are taken, 0 for all. On a CPU, the dynamic path
of the folded network runs in torch's bfloat16, which processors without such instructions emulate; on a GPU, the plans
run. --write adds the record to htc_model/inference/precision_records.json, which `precision: auto` consults. The last
line is JSON; the exit status is 0 whether the gate passes or not.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from htc_model.config import config_from_dict, load_preset  # noqa: E402
from htc_model.inference.fast_model import FastModel  # noqa: E402
from htc_model.inference.precision import (  # noqa: E402
    RECORDS,
    GateRecord,
    Matches,
    device_kind,
    forbid_tf32,
    match_detections,
    parse_records,
)
from htc_model.network.detector import HTC, build_model  # noqa: E402
from htc_model.preprocess import build_batch  # noqa: E402
from htc_model.structures import ImageBatch, RawDetections  # noqa: E402
from htc_model.weights.load import LoadedWeights, load_into, load_weights  # noqa: E402

BUNDLED = ROOT / "htc_model" / "weights" / "bundled" / "htc_lite0_fpn.safetensors"
SETS = ("coco_person1", "coco_mini")
# The spec's default for comparing detections, and MMDetection's threshold of HTC for average precision.
SCORE_THRESHOLD, AP_SCORE_THRESHOLD = 0.05, 0.001
GOLDENS = "mask_rcnn_r50__p0_397133,htc_r50__p0_397133"

Infer = Callable[[ImageBatch], list[RawDetections]]


def read_pixels(path: Path) -> Any:
    """Decode as the pipeline does: [H, W, 3] uint8 RGB."""
    from pipeline.inputs.decode import decode_image

    return decode_image(path.read_bytes())


def load_model(weights: LoadedWeights, preset: str | None, score_threshold: float) -> HTC:
    config = weights.metadata.get("config")
    known = config_from_dict(config) if isinstance(config, dict) else load_preset(preset or "htc_r50_fpn")
    model = build_model(replace(known, score_threshold=score_threshold)).eval()
    load_into(model, weights)
    return model


def both_precisions(model: HTC, device: torch.device) -> tuple[Infer, Infer]:
    return FastModel(model, device, precision="fp32").infer, FastModel(model, device, precision="bf16").infer


def compare(pair: tuple[Infer, Infer], batches: Iterator[ImageBatch]) -> tuple[int, Matches]:
    """Count the batches, and how many of their detections both precisions have."""
    images, total = 0, Matches()
    for batch in batches:
        reference, other = (infer(batch) for infer in pair)
        for one, two in zip(reference, other, strict=True):
            total += match_detections(
                (one.boxes_xyxy, one.scores, one.labels), (two.boxes_xyxy, two.scores, two.labels)
            )
            images += 1
    return images, total


def compare_goldens(names: Sequence[str], device: torch.device) -> dict[str, Matches]:
    """Compare on the goldens' images with the deterministic weights."""
    from tests.support.goldens.network import DATA, build_golden_model, golden_batch, load_golden

    found = {}
    for name in names:
        golden = load_golden(DATA / "goldens" / f"{name}.npz")
        model = build_golden_model(golden["meta"]["model"])
        batch = golden_batch(golden, model)
        batch = replace(batch, pixels=batch.pixels.to(device))
        _, found[name] = compare(both_precisions(model, device), iter([batch]))
        print(name, found[name], f"{found[name].share:.3f}", flush=True)
    return found


def average_precision(infer: Infer, model: HTC, folder: Path, images: int, device: torch.device) -> tuple[float, int]:
    """Compute the mask AP in percent over both held-out sets together, and the number of images."""
    from htc_model.masks.encode import encode_detections
    from htc_model.training.coco_eval import score_results

    results: list[dict[str, Any]] = []
    truth: dict[str, list[Any]] = {"images": [], "annotations": []}
    category_ids = model.config.category_ids
    for name in SETS:
        document = json.loads((folder / name / "instances_heldout.json").read_text())
        chosen = document["images"][: images or None]
        renamed = {image["id"]: f"{name}/{image['id']}" for image in chosen}
        numbers = {key: len(truth["images"]) + index for index, key in enumerate(renamed)}
        for image in chosen:
            truth["images"].append({**image, "id": numbers[image["id"]]})
            pixels = read_pixels(folder / name / "images" / image["file_name"])
            found = encode_detections(infer(build_batch([pixels], model.config, device))[0])
            for index in range(len(found)):
                x1, y1, x2, y2 = found.boxes_xyxy[index].tolist()
                result = {
                    "image_id": numbers[image["id"]], "category_id": category_ids[int(found.labels[index])],
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(found.scores[index]),
                }  # fmt: skip
                results.append(result | {"segmentation": found.masks[index]} if found.masks else result)
        for entry in document["annotations"]:
            if entry["image_id"] in numbers and entry["category_id"] in category_ids:
                number = len(truth["annotations"]) + 1
                truth["annotations"].append({**entry, "image_id": numbers[entry["image_id"]], "id": number})
    document = {**truth, "categories": [{"id": number} for number in category_ids]}
    ids = list(range(len(truth["images"])))
    scores = score_results(results, document, ids, category_ids, has_masks=True)
    return 100 * scores["mask_ap"], len(ids)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", default="demo", help="demo (the bundled model) or a weights file")
    parser.add_argument("--preset", help="of a weights file that does not name it")
    parser.add_argument("--photos", type=int, default=0, help="how many of the example photos; 0 for all")
    parser.add_argument("--heldout", type=Path, help="the folder of the held-out sets; without it the gate cannot pass")
    parser.add_argument("--heldout-images", type=int, default=0)
    parser.add_argument("--goldens", default=GOLDENS, help="names in tests/data/goldens, separated by commas")
    parser.add_argument("--write", action="store_true", help="add the record to the program's records")
    options = parser.parse_args()
    forbid_tf32()
    device = torch.device(options.device)
    weights = load_weights(BUNDLED if options.weights == "demo" else options.weights)

    model = load_model(weights, options.preset, SCORE_THRESHOLD)
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))[: options.photos or None]
    batches = (build_batch([read_pixels(photo)], model.config, device) for photo in photos)
    count, matches = compare(both_precisions(model, device), batches)
    print(f"{count} photos", matches, f"{matches.share:.3f}", flush=True)

    mask_ap, ap_images = {"fp32": 0.0, "bf16": 0.0}, 0
    if options.heldout:
        model = load_model(weights, options.preset, AP_SCORE_THRESHOLD)
        for name, infer in zip(mask_ap, both_precisions(model, device), strict=True):
            mask_ap[name], ap_images = average_precision(infer, model, options.heldout, options.heldout_images, device)
            print(f"mask AP of {ap_images} held-out photos, {name}: {mask_ap[name]:.3f}", flush=True)

    names = [name for name in options.goldens.split(",") if name]
    record = GateRecord(
        preset=model.config.name, weights_sha256=weights.sha256, device=device_kind(device), torch=torch.__version__,
        photo_count=count, photos=matches, ap_images=ap_images,
        mask_ap_fp32=round(mask_ap["fp32"], 4), mask_ap_bf16=round(mask_ap["bf16"], 4),
        goldens=compare_goldens(names, device),
    )  # fmt: skip
    print("passes" if not record.failures else "refused: " + "; ".join(record.failures))
    if options.write:
        path = ROOT / "htc_model" / "inference" / RECORDS
        key = (record.preset, record.weights_sha256, record.device)
        kept = [
            other
            for other in parse_records(path.read_text())
            if (other.preset, other.weights_sha256, other.device) != key
        ]
        path.write_text(json.dumps([other.to_dict() for other in [*kept, record]], indent=2) + "\n")
    print(json.dumps({"benchmark": "precision_gate", "passes": not record.failures, **record.to_dict()}))


if __name__ == "__main__":
    main()
