"""Compares what a checkpoint of transformers finds here with what the library's own processor makes of it.

    python benchmarks/transformers_parity.py [--side 384]

One tiny random network of each family, the bundled photos: the largest difference of the input, in grey levels; of the
scores; of the boxes, in pixels; and the IoU of the masks, both of the photo's size. What is compared with: the families
with `post_process_instance_segmentation` that gives bitmaps, with those; EoMT with the maps before it paints them into
one; DETR with the boxes of `post_process_object_detection`, and with its maps stretched bilinearly, since the library's
function gives every pixel to one query. The last line is one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks.frames import encode_maps
from htc_model.masks.rle import decode_rle
from htc_model.structures import FrameDetections
from pipeline.models import transformers_models
from pipeline.models.pixels import FormatPixels
from tests.support.builders.tiny_transformers import FAMILIES, save_checkpoint
from tests.support.paths import ROOT

PHOTOS = ROOT / "examples" / "photos"
# Below it a random network's scores are of nothing.
THRESHOLD = 0.01
Masks = NDArray[np.bool_]


def load_photo(path: Path) -> NDArray[np.uint8]:
    """Load a photo as [H, W, 3]."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def run_library(
    family: str, processor: Any, network: torch.nn.Module, photo: NDArray[np.uint8]
) -> tuple[torch.Tensor, NDArray[np.float64], Masks, NDArray[np.float64] | None]:
    """Return the library's input, scores, masks, and boxes where the family has them, most confident first."""
    size = (photo.shape[0], photo.shape[1])
    inputs = processor(images=Image.fromarray(photo), return_tensors="pt")
    taken = {key: value for key, value in inputs.items() if key in {"pixel_values", "pixel_mask"}}
    outputs = network(**taken)
    if family in {"mask2former", "maskformer", "rf_detr"}:
        found = processor.post_process_instance_segmentation(
            outputs, threshold=THRESHOLD, target_sizes=[size], return_binary_maps=True
        )[0]
        scores = np.array([each["score"] for each in found["segments_info"]], dtype=float)
        masks = found["segmentation"].numpy().astype(bool)
    elif family == "eomt":
        found = processor.post_process_instance_segmentation(outputs, target_sizes=[size], threshold=THRESHOLD)[0]
        scores = np.array([each["score"] for each in found["segments_info"]], dtype=float)
        side = processor.size["shortest_edge"]
        maps = F.interpolate(outputs.masks_queries_logits, size=(side, side), mode="bilinear")
        masks = (processor.unpad_image(maps, [size], processor.size)[0] > 0).numpy()
    else:
        found = processor.post_process_object_detection(outputs, threshold=THRESHOLD, target_sizes=[size])[0]
        queries = outputs.pred_boxes.shape[1]
        scores = found["scores"].double().numpy()[:queries]
        masks = (F.interpolate(outputs.pred_masks, size=size, mode="bilinear")[0] > 0).numpy()
    boxes = None
    if hasattr(outputs, "pred_boxes"):
        found = processor.post_process_object_detection(outputs, threshold=THRESHOLD, target_sizes=[size])[0]
        boxes = found["boxes"].double().numpy()[: len(scores)]
    return inputs["pixel_values"], scores, masks, boxes


def draw(found: FrameDetections) -> Masks:
    """Return the encoded masks as bitmaps."""
    return np.stack([decode_rle(each) for each in encode_maps(found.masks, found.original_size, threshold=0.0)[0]])


def best_ious(masks: Masks, others: Masks) -> list[float]:
    """Return each mask's IoU with the other that is most alike: networks of queries have many alike."""
    return [max(float((one & each).sum() / max(1, (one | each).sum())) for each in others) for one in masks]


def compare(family: str, folder: Path, side: int) -> dict[str, object]:
    """Compare one family on all photos."""
    settings = (
        {}
        if family in {"eomt", "detr", "conditional_detr", "maskformer"}
        else {"size": {"height": side, "width": side}}
    )
    if family in {"detr", "conditional_detr", "maskformer"}:
        settings = {"size": {"shortest_edge": side, "longest_edge": 2 * side}}
    checkpoint = save_checkpoint(family, folder, **settings)
    model = transformers_models.make(str(checkpoint))
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
    levels, scores_off, boxes_off, overlaps, instances = 0.0, 0.0, 0.0, [], 0
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo = load_photo(path)
        batch = FormatPixels(model.pixels).build([photo], "cpu")
        found = model.infer(batch)[0]
        pixels, scores, masks, boxes = run_library(family, processor, model.network, photo)
        height, width = batch.image_sizes[0]
        off = (batch.pixels - pixels)[:, :, :height, :width].abs().amax((0, 2, 3))
        levels = max(levels, float((off * torch.tensor(model.pixels.std_rgb)).max()))
        order = torch.argsort(found.scores, descending=True, stable=True)
        best = np.argsort(-scores, kind="stable")
        if len(order) != len(best):
            raise SystemExit(f"{family}: {len(order)} instances, and {len(best)} of the library, on {path.name}")
        instances += len(best)
        scores_off = max(scores_off, float(np.abs(found.scores[order].double().numpy() - scores[best]).max()))
        if boxes is not None and found.boxes_xyxy is not None:
            limits = np.array([photo.shape[1], photo.shape[0]] * 2)
            wanted = boxes[best].clip(0, limits)
            boxes_off = max(boxes_off, float(np.abs(found.boxes_xyxy[order].double().numpy() - wanted).max()))
        overlaps += best_ious(draw(found), masks)
    return {
        "family": family,
        "instances": instances,
        "input_grey_levels": round(levels, 5),
        "score": float(f"{scores_off:.1e}"),
        "box_px": round(boxes_off, 4),
        "mask_iou_worst": round(min(overlaps), 4),
        "mask_iou_mean": round(float(np.mean(overlaps)), 5),
    }


def main() -> None:
    """Compare every family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=384, help="of the resized photos, EoMT's excepted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows = [compare(family, Path(folder) / family, options.side) for family in FAMILIES]
    print(json.dumps({"benchmark": "transformers_parity", "transformers": transformers.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
