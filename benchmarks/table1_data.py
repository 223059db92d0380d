"""The data of table1_small: training and held-out photos of coco_person1 and coco_mini, with six classes.

The classes are the groups that COCO calls supercategories and of which coco_mini has at least a hundred training
objects and thirty held-out ones: single categories have too few. In coco_person1 only persons are annotated.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLASSES = ("person", "vehicle", "animal", "kitchen", "food", "furniture")
PERSON = "person"
# Where all of the classes are annotated; the other folder's photos are scored for persons only.
COMPLETE_FOLDER = "coco_mini"
DATA_FOLDERS = ("coco_person1", COMPLETE_FOLDER)
# Determines the images of a smaller training set, the same for all cells.
_SUBSET_SEED = 1901

Document = dict[str, Any]


def write_documents(data: Path, output: Path, *, limit: int = 0) -> list[Path]:
    """Merge the data sets' files; file names are relative to `data`.

    Args:
        data: the folder of coco_person1/ and coco_mini/.
        output: the folder of the two new files.
        limit: number of training images; 0 takes all that contain an object of the classes.

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


def merge_documents(data: Path, file_name: str, *, is_grouped: bool = True) -> Document:
    """Merge the folders' files of that name, with new ids of images and annotations.

    Args:
        is_grouped: objects have the classes of `CLASSES` as categories 1, 2, …, and others are left out; otherwise
            they keep their own categories.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    own_categories: dict[int, Mapping[str, Any]] = {}
    for folder in DATA_FOLDERS:
        document = json.loads((data / folder / file_name).read_text(encoding="utf-8"))
        own_categories |= {category["id"]: category for category in document["categories"]}
        numbers = {}
        for image in document["images"]:
            numbers[image["id"]] = len(images) + 1
            path = f"{folder}/images/{image['file_name']}"
            images.append(
                {"id": len(images) + 1, "file_name": path, "height": image["height"], "width": image["width"]}
            )
        for annotation in document["annotations"]:
            category = annotation["category_id"]
            if is_grouped:
                group = _group_of(own_categories[category])
                if group not in CLASSES:
                    continue
                category = CLASSES.index(group) + 1
            values = {"id": len(annotations) + 1, "image_id": numbers[annotation["image_id"]], "category_id": category}
            annotations.append({**annotation, **values})
    grouped = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    own = [{"id": number, "name": category["name"]} for number, category in sorted(own_categories.items())]
    return {"images": images, "annotations": annotations, "categories": grouped if is_grouped else own}


def _group_of(category: Mapping[str, Any]) -> str:
    return str(category.get("supercategory") or category["name"])


def _choose_images(document: Document, limit: int) -> Document:
    """Leave out images without an object, and all but the first `limit` of a fixed shuffle."""
    with_object = {entry["image_id"] for entry in document["annotations"] if not entry.get("iscrowd")}
    images = [image for image in document["images"] if image["id"] in with_object]
    random.Random(_SUBSET_SEED).shuffle(images)
    images = images[: limit or None]
    kept = {image["id"] for image in images}
    annotations = [entry for entry in document["annotations"] if entry["image_id"] in kept]
    return {**document, "images": images, "annotations": annotations}
