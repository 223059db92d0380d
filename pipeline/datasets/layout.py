"""Where the parts of a data set lie: COCO JSON files, one for each split, and the images that they name."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.split_names import SPLIT_NAMES, known_split
from pipeline.errors import InputError, SpecError, StorageError
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, base_name, folder_of, join

ANNOTATIONS = "annotations.json"
IMAGES = "images"
REPORT = "convert_report.json"
SPLITS = ("train", "val", "test")

_JSON_SUFFIXES = (".json", ".json.gz")
# Roboflow's, one folder for each split.
_ROBOFLOW = "_annotations.coco.json"
_TRIED_IMAGES = 5


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    name: such as "train". annotations: URI of its COCO JSON. images: URI of the folder where file names begin; None
        leaves it to `locate_images`. is_trained: whether it is trained on, for a training with several such parts; the
        first part always is.
    """

    name: str
    annotations: str
    images: str | None = None
    is_trained: bool = False


def json_name(split: str) -> str:
    """Return the name of a split's JSON file; what could be no file name becomes an underscore."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', split)}.json"


def find_splits(dataset: str, storage: Storage | None = None, *, images: str | None = None) -> list[Split]:
    """Find the splits of a data set.

    Args:
        dataset: a COCO JSON file, or a folder with train.json, val.json and test.json, with annotations.json, with
            annotations/instances_*.json (COCO), with train/_annotations.coco.json (Roboflow), or with one JSON file.
        storage: reads it, from wherever it is.
        images: the folder of the images, where it is none of the usual ones.

    Raises:
        InputError: there is no such file or folder, or it has no JSON file that must be one of these.
    """
    storage = storage or Storage()
    uri = absolute_uri(dataset)
    folder = None if images is None else absolute_uri(images)
    kind = storage.kind(uri)
    if kind == "absent":
        raise InputError(f"{dataset} does not exist.")
    if kind == "file":
        return [Split(_split_name(base_name(uri)), uri, folder)]
    names = sorted(name for name in storage.list_names(uri) if name.endswith(_JSON_SUFFIXES) and name != REPORT)
    known = {_split_name(name): name for name in names if _split_name(name) in SPLITS}
    if known:
        return [Split(split, join(uri, known[split]), folder) for split in SPLITS if split in known]
    if ANNOTATIONS in names:
        return [Split("annotations", join(uri, ANNOTATIONS), folder)]
    coco = [name for name in storage.list_names(join(uri, "annotations")) if name.endswith(_JSON_SUFFIXES)]
    # COCO's own folder has captions and key points, too.
    instances = sorted(name for name in coco if name.startswith("instances"))
    nested = instances or sorted(coco)
    if nested and not names:
        found = [Split(_split_name(name), join(uri, "annotations", name), folder) for name in nested]
        return sorted(found, key=lambda split: (_order(split.name), split.name))
    roboflow = [
        Split(split, join(uri, name, _ROBOFLOW), folder)
        for name, split in SPLIT_NAMES.items()
        if storage.exists(join(uri, name, _ROBOFLOW))
    ]
    if roboflow:
        return sorted(roboflow, key=lambda split: _order(split.name))
    if len(names) == 1:
        return [Split(_split_name(names[0]), join(uri, names[0]), folder)]
    if names:
        raise InputError(f"{dataset} has several JSON files ({', '.join(names[:3])}); name one of them.")
    raise InputError(
        f"{dataset} has no COCO JSON; `htc dataset convert {dataset} --to DIR` makes one from labelme, CVAT, YOLO and "
        "label maps."
    )


def find_whole(dataset: str, storage: Storage, *, images: str | None = None) -> Split:
    """Find the one JSON file of a data set that is not split, or was not before.

    Raises:
        InputError: it consists of splits only.
    """
    uri = absolute_uri(dataset)
    if storage.kind(uri) == "folder" and storage.exists(join(uri, ANNOTATIONS)):
        return Split("annotations", join(uri, ANNOTATIONS), None if images is None else absolute_uri(images))
    splits = find_splits(dataset, storage, images=images)
    if len(splits) > 1:
        raise InputError(
            f"{dataset} is split already ({', '.join(base_name(split.annotations) for split in splits)}); name one of "
            "its JSON files to split that one."
        )
    return splits[0]


def _split_name(name: str) -> str:
    stem = name.removesuffix(".gz").removesuffix(".json")
    return known_split(stem) or stem.removeprefix("instances_") or stem


def _order(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else len(SPLITS)


def locate_images(split: Split, file_names: Sequence[str], storage: Storage) -> str:
    """Find the folder where a split's file names begin: the usual folder that has the first few of them.

    Args:
        file_names: of the split's images.

    Returns:
        Its URI; the first usual folder if none has any of them.
    """
    if split.images is not None:
        return split.images
    home = folder_of(split.annotations)
    above = folder_of(home)
    stem = base_name(split.annotations).removesuffix(".gz").removesuffix(".json").removeprefix("instances_")
    usual = [join(home, IMAGES), home, *(join(home, name) for name in (f"{IMAGES}/{split.name}", split.name, stem))]
    if base_name(home) == "annotations":
        usual += [
            join(above, name) for name in (IMAGES, stem, f"{IMAGES}/{stem}", split.name, f"{IMAGES}/{split.name}")
        ]
    tried = list(file_names[:: max(1, len(file_names) // _TRIED_IMAGES)][:_TRIED_IMAGES])
    hits = {folder: sum(_exists(join(folder, name), storage) for name in tried) for folder in dict.fromkeys(usual)}
    return max(hits, key=lambda folder: hits[folder])


def _exists(uri: str, storage: Storage) -> bool:
    try:
        return storage.kind(uri) == "file"
    except StorageError:
        return False


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file; it appears under its name only when it is whole.

    Raises:
        SpecError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as sink:
            # surrogates of file names that are not UTF-8 are escaped, and read back as they are.
            json.dump(document, sink, ensure_ascii=True)
            sink.write("\n")
        aside.replace(path)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)
