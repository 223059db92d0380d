"""A folder for training: six images of a bright box, their COCO annotations, and a training spec."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

SIDE = 96


def write_training_folder(folder: Path, *, images: int = 6) -> Path:
    """Write photos/, coco.json and spec.yaml, all paths relative to the folder; one class, "box", with the id 5."""
    (folder / "photos").mkdir()
    entries, annotations = [], []
    for number in range(images):
        left = 10 + 5 * number
        pixels = np.full((SIDE, SIDE, 3), 60, np.uint8)
        pixels[20:70, left : left + 40] = (200, 120, 40)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        corners = [left, 20, left + 40, 20, left + 40, 70, left, 70]
        annotations.append(_annotation(number + 1, number, [left, 20, 40, 50], [corners]))
    document = {"images": entries, "annotations": annotations, "categories": [{"id": 5, "name": "box"}]}
    (folder / "coco.json").write_text(json.dumps(document))
    source = {"annotations": "coco.json", "images": "photos"}
    spec = {
        "train": [source],
        "evaluate": [source],
        "output": "out",
        "model": {"initial": "none", "short_side": SIDE, "long_side": SIDE},
        "sampling": {"rois": 16, "proposals": 20},
        "optimiser": {"warmup_steps": 1},
        "epochs": 2,
        "batch_size": 2,
        "log_steps": 1,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder


def add_annotation(folder: Path, **changes: Any) -> None:
    """Add an annotation to the first image, with the given changes."""
    document = json.loads((folder / "coco.json").read_text())
    valid = _annotation(1000, 0, [1, 1, 5, 5], [[1, 1, 6, 1, 6, 6]])
    document["annotations"].append(valid | changes)
    (folder / "coco.json").write_text(json.dumps(document))


def _annotation(number: int, image: int, box: list[int], polygons: list[list[int]]) -> dict[str, Any]:
    area = box[2] * box[3]
    parts = {"id": number, "image_id": image, "category_id": 5, "bbox": box, "segmentation": polygons}
    return parts | {"area": area, "iscrowd": 0}
