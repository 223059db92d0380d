"""A run with panoptic and semantic tables, and a truth in COCO's panoptic format, both drawn as letters.

Each letter is a block of BLOCK x BLOCK pixels, so that shares of pixels are those of letters.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.read import fetch_image
from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.map_rows import PanopticRow, SemanticRow
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import FINGERPRINT, encoded

BLOCK = 12
LETTERS = {"s": "sky-other", "t": "tree", "g": "grass", "d": "dog", "e": "dog", "c": "dog", "p": "person"}
"""The category of each letter; a dot is void. In a truth, c is a crowd of dogs."""
IDS = {"person": 1, "dog": 18, "grass": 124, "sky-other": 157, "tree": 169}
THINGS = ("person", "dog")
SCORES = {"d": 0.9, "e": 0.8, "p": 0.7}


@dataclass(frozen=True)
class PanopticRun:
    """The output's uri, the truth's JSON file and its content, the folder of the images."""

    uri: str
    truth: Path
    document: dict[str, Any]
    photos: Path

    def rewrite(self) -> Path:
        """Write the changed document, and return its path."""
        self.truth.write_text(json.dumps(self.document))
        return self.truth


def drawn(lines: Sequence[str]) -> NDArray[np.uint32]:
    """Return a map of characters, each a block."""
    letters = np.array([[ord(each) for each in line] for line in lines], np.uint32)
    return np.kron(letters, np.ones((BLOCK, BLOCK), np.uint32))


def write_segment_png(path: Path, numbers: NDArray[np.uint32]) -> None:
    """Write numbers as colours: red + 256 green + 65536 blue."""
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(path)


def panoptic_run(
    folder: Path,
    found: Mapping[str, Sequence[str]],
    truth: Mapping[str, Sequence[str]],
    *,
    tables: Sequence[str] = ("panoptic", "semantic"),
    run: str = "night",
    shard_images: int = 2,
    failed: Collection[str] = (),
    damaged: Collection[str] = (),
) -> PanopticRun:
    """Write images, a run's tables and a truth.

    Args:
        found, truth: by an image's name the lines of its map.
        tables: which the run has besides `images` and `instances`.
        failed: names of images that could not be read. damaged: of images whose last segment and region have a mask
            that cannot be read.
    """
    photos = folder / "photos"
    for name, lines in found.items():
        height, width = drawn(lines).shape
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shades = np.linspace(60, 200, width).astype(np.uint8)
        Image.fromarray(np.tile(shades[None, :, None], (height, 1, 3))).save(path)
    storage = Storage()
    keys = {f"model.{table}": True for table in tables}
    overrides: dict[str, object] = {"input.uri": str(photos), "output.uri": str(folder / "out"), **keys}
    spec = load_spec(None, overrides | {"model.preset": "htc_r50_fpn", "compute.shard_images": shard_images})
    opened = open_run(spec, FINGERPRINT, storage, run=run)
    for shard in range(opened.shard_count):
        images, instances = [], []
        maps: dict[str, list[Any]] = {table: [] for table in tables}
        for ref in opened.read_shard(shard).images:
            _, version = fetch_image(ref, storage)
            name = str(Path(ref.uri).relative_to(photos))
            if name in failed:
                images.append(build_image_row(ref, shard=shard, model="m", status="unreadable", error="it is empty"))
                continue
            lines = drawn(found[name])
            rows = _rows(ref, lines)
            row = build_image_row(
                ref, shard=shard, model="m", size=lines.shape, instances=len(rows["instances"]), read=version
            )
            images.append(row)
            instances += rows["instances"]
            for table in tables:
                if name in damaged:
                    rows[table][-1] = replace(rows[table][-1], mask={"size": list(lines.shape), "counts": "7"})
                maps[table] += rows[table]
        commit_shard(storage, opened.output_uri, opened.name, shard, images, instances, maps=maps)  # type: ignore[arg-type]
    opened.close()
    made = PanopticRun(str(folder / "out"), folder / "truth.json", _document(folder / "truth", truth), photos)
    made.rewrite()
    return made


def _rows(ref: Any, lines: NDArray[np.uint32]) -> dict[str, list[Any]]:
    """The rows of one image: things by their scores, then stuff by ids."""
    head = build_image_row(ref, shard=0, model="m")
    common = {"image_id": head.image_id, "uri": head.uri, "model": "m"}
    letters = [chr(number) for number in np.unique(lines) if chr(number) != "."]
    things = sorted((each for each in letters if LETTERS[each] in THINGS), key=lambda each: -SCORES[each])
    stuff = sorted((each for each in letters if each not in things), key=lambda each: IDS[LETTERS[each]])
    rows: dict[str, list[Any]] = {"instances": [], "panoptic": [], "semantic": []}
    for place, letter in enumerate([*things, *stuff]):
        mask = lines == ord(letter)
        name, is_thing = LETTERS[letter], letter in things
        shape = {"area": int(mask.sum()), "bbox": _box(mask), "mask": encoded(mask)}
        rows["panoptic"].append(
            PanopticRow(
                **common,
                segment=place,
                category_id=IDS[name],
                category=name,
                is_thing=is_thing,
                instance=place if is_thing else None,
                score=SCORES[letter] if is_thing else None,
                **shape,
            )
        )
        if is_thing:
            instance = {"instance": place, "category_id": IDS[name], "category": name, "score": SCORES[letter]}
            rows["instances"].append(InstanceRow(**common, **instance, **shape))
    for name in sorted({LETTERS[each] for each in letters}, key=lambda name: IDS[name]):
        mask = np.isin(lines, [ord(each) for each in letters if LETTERS[each] == name])
        rows["semantic"].append(
            SemanticRow(**common, class_id=IDS[name], class_name=name, area=int(mask.sum()), mask=encoded(mask))
        )
    return rows


def _box(mask: NDArray[np.bool_]) -> dict[str, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = float(columns[0]), float(rows[0])
    return {"x": left, "y": top, "width": float(columns[-1]) + 1 - left, "height": float(rows[-1]) + 1 - top}


def _document(folder: Path, truth: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": IDS[name], "name": name, "isthing": int(name in THINGS)} for name in IDS],
    }
    for number, (name, lines) in enumerate(truth.items(), 1):
        letters = drawn(lines)
        height, width = letters.shape
        png = Path(name).with_suffix(".png").name
        # Numbers of more than one byte.
        write_segment_png(folder / png, np.where(letters == ord("."), 0, letters * 1000))
        document["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        segments = [
            {
                "id": int(letter) * 1000,
                "category_id": IDS[LETTERS[chr(letter)]],
                "iscrowd": int(chr(letter) == "c"),
                "area": int((letters == letter).sum()),
                "bbox": list(_box(letters == letter).values()),
            }
            for letter in np.unique(letters)
            if chr(letter) != "."
        ]
        document["annotations"].append({"image_id": number, "file_name": png, "segments_info": segments})
    return document
