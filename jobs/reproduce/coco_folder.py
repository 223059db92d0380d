"""COCO's validation set as it is unpacked: DIR/val2017 and DIR/annotations/instances_val2017.json."""

from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError, SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, join

# Where COCO's consortium serves them (cocodataset.org, "Download"): 0.8 GB, and 0.25 GB for the annotations.
PHOTOS_URL = "http://images.cocodataset.org/zips/val2017.zip"
ANNOTATIONS_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
VAL2017_IMAGES = 5000
VAL2017_CLASSES = 80


@dataclass(frozen=True)
class CocoFolder:
    """uri: of the folder. photos, truth: uris below it. images: how many the annotations list."""

    uri: str
    photos: str
    truth: str
    images: int


def open_coco(folder: str, storage: Storage) -> CocoFolder:
    """Check that photos and annotations are there, before hours of computing.

    Raises:
        InputError: something is missing; the message says where it comes from.
        SpecError: the annotations are not COCO's instances.
    """
    uri = absolute_uri(folder)
    photos, truth = join(uri, "val2017"), join(uri, "annotations", "instances_val2017.json")
    if storage.kind(uri) == "absent":
        raise InputError(
            f"The folder {uri} does not exist; unpack COCO's {PHOTOS_URL} and {ANNOTATIONS_URL} in one folder, and "
            "name it with --coco."
        )
    if storage.kind(photos) != "folder" or next(storage.list(photos), None) is None:
        raise InputError(f"There are no photos in {photos}; unpack {PHOTOS_URL} in {uri}.")
    if storage.kind(truth) != "file":
        raise InputError(f"There are no annotations {truth}; unpack {ANNOTATIONS_URL} in {uri}.")
    return CocoFolder(uri, photos, truth, _count_images(read_coco(truth, storage), truth))


def _count_images(document: Any, uri: str) -> int:
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images or not isinstance(document.get("annotations"), list):
        raise SpecError(
            f"{uri} is not COCO's file of instances: it needs lists `images` and `annotations`; unpack "
            f"{ANNOTATIONS_URL} again."
        )
    return len(images)
