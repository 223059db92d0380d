"""The data of table1_small: one training and one held-out COCO file, with persons only."""

import json
import random
from pathlib import Path
from typing import Any

_FOLDERS = ("coco_person1", "coco_mini")
_PERSON = "person"
# Determines the images of a smaller training set, the same for all cells.
_SUBSET_SEED = 1901


def write_documents(data: Path, output: Path, *, limit: int = 0) -> list[Path]:
    """Merge the data sets' files; only persons are kept, and file names are relative to `data`.

    Args:
        data: the folder of coco_person1/ and coco_mini/.
        output: the folder of the two new files.
        limit: number of training images; 0 takes all that contain a person.

    Returns:
        the paths of train.json and heldout.json.
    """
    paths = []
    for name in ("train", "heldout"):
        merged = merge_documents(data, f"instances_{name}.json")
        if name == "train":
            merged = _choose_images(merged, limit)
        path = output / f"{name}.json"
        path.write_text(json.dumps(merged, sort_keys=True), encoding="utf-8")
        paths.append(path)
    return paths


def merge_documents(data: Path, file_name: str) -> dict[str, Any]:
    """Merge the folders' files of that name, with new ids of images and annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for folder in _FOLDERS:
        document = json.loads((data / folder / file_name).read_text(encoding="utf-8"))
        person = next(category["id"] for category in document["categories"] if category["name"] == _PERSON)
        numbers = {}
        for image in document["images"]:
            numbers[image["id"]] = len(images) + 1
            path = f"{folder}/images/{image['file_name']}"
            images.append(
                {"id": len(images) + 1, "file_name": path, "height": image["height"], "width": image["width"]}
            )
        for annotation in document["annotations"]:
            if annotation["category_id"] == person:
                values = {"id": len(annotations) + 1, "image_id": numbers[annotation["image_id"]], "category_id": 1}
                annotations.append({**annotation, **values})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": _PERSON}]}


def _choose_images(document: dict[str, Any], limit: int) -> dict[str, Any]:
    """Leave out images without a person, and all but the first `limit` of a fixed shuffle."""
    with_person = {entry["image_id"] for entry in document["annotations"] if not entry.get("iscrowd")}
    images = [image for image in document["images"] if image["id"] in with_person]
    random.Random(_SUBSET_SEED).shuffle(images)
    images = images[: limit or None]
    kept = {image["id"] for image in images}
    annotations = [entry for entry in document["annotations"] if entry["image_id"] in kept]
    return {**document, "images": images, "annotations": annotations}
