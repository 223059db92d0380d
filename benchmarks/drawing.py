"""Measures how fast instances are drawn over photos, beside supervision, or beside a plain loop where that is missing.

    python benchmarks/drawing.py [--images 12] [--rounds 5]

The photos and masks are those of examples/training/three_classes, as run lengths, at three sizes: as they are, as
thumbnails of 200 pixels, and enlarged to 12 megapixels. Both draw fills, outlines and labels that avoid each other,
from the run lengths to the array of the finished picture, on one thread. The peer decodes the masks with pycocotools,
as it takes bitmaps only; for thumbnails it draws the photo and scales that, as it has no other way. `pip install
supervision` installs the peer.

The last line is one JSON object: images per CPU second, the median of the rounds, which alternate with the peer's.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from jobs.results.drawing import DrawnInstance, Style, colour_of, draw_overlay

DATA = Path(__file__).resolve().parent.parent / "examples" / "training" / "three_classes"
THUMBNAIL_PX = 200
LARGE_PIXELS = 12_000_000

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photo:
    """A photo and its instances."""

    pixels: Pixels
    instances: tuple[DrawnInstance, ...]


def read_photos(count: int, pixels: int | None) -> list[Photo]:
    """Read photos with the most instances, enlarged to about so many pixels."""
    document = json.loads((DATA / "train.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        if isinstance(annotation["segmentation"], list):
            annotations.setdefault(annotation["image_id"], []).append(annotation)
    chosen = sorted(document["images"], key=lambda image: (-len(annotations.get(image["id"], [])), image["id"]))[:count]
    photos = []
    for image in chosen:
        picture = Image.open(DATA / "images" / image["file_name"]).convert("RGB")
        scale = 1.0 if pixels is None else (pixels / (picture.width * picture.height)) ** 0.5
        if scale != 1:
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        found = []
        for number, annotation in enumerate(annotations[image["id"]]):
            polygons = [[value * scale for value in ring] for ring in annotation["segmentation"]]
            rle = coco.merge(coco.frPyObjects(polygons, picture.height, picture.width))
            found.append(DrawnInstance(names[annotation["category_id"]], 0.9 - 0.01 * number, mask=rle, number=number))
        photos.append(Photo(np.asarray(picture), tuple(found)))
    return photos


def draw_here(photo: Photo, long_side: int | None) -> Pixels:
    """Draw with this package."""
    return draw_overlay(photo.pixels, photo.instances, Style(long_side=long_side))


def _bitmaps(photo: Photo) -> NDArray[np.bool_]:
    return np.stack([coco.decode(instance.mask) for instance in photo.instances]).astype(bool)


def _boxes(photo: Photo) -> NDArray[np.float64]:
    boxes = np.array([coco.toBbox(instance.mask) for instance in photo.instances])
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _scaled(pixels: Pixels, long_side: int | None) -> Pixels:
    if long_side is None:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((long_side, long_side))
    return np.asarray(picture)


def supervision_peer() -> Callable[[Photo, int | None], Pixels]:
    """Return how a user of supervision draws the same."""
    import supervision as sv

    names = [category["name"] for category in json.loads((DATA / "train.json").read_text())["categories"]]
    fill, outline = sv.MaskAnnotator(opacity=0.38), sv.PolygonAnnotator(thickness=2)
    label = sv.LabelAnnotator(smart_position=True)

    def draw(photo: Photo, long_side: int | None) -> Pixels:
        classes = [names.index(each.category) for each in photo.instances]
        scores = np.array([each.score for each in photo.instances])
        found = sv.Detections(xyxy=_boxes(photo), mask=_bitmaps(photo), confidence=scores, class_id=np.array(classes))
        texts = [f"{each.category} {each.score:.2f}" for each in photo.instances]
        scene = outline.annotate(fill.annotate(photo.pixels.copy(), found), found)
        return _scaled(np.asarray(label.annotate(scene, found, labels=texts)), long_side)

    return draw


def plain_peer() -> Callable[[Photo, int | None], Pixels]:
    """Return a plain loop: a bitmap of the whole photo for each instance, blended, with its contour and a label."""

    def draw(photo: Photo, long_side: int | None) -> Pixels:
        canvas = photo.pixels.copy()
        for instance, mask in zip(photo.instances, _bitmaps(photo), strict=True):
            colour = np.array(colour_of(instance.category))
            canvas[mask] = (canvas[mask] * 0.62 + colour * 0.38).astype(np.uint8)
            eroded = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MinFilter(3))) > 0
            canvas[mask & ~eroded] = colour
        picture = Image.fromarray(canvas)
        pen = ImageDraw.Draw(picture)
        for instance, box in zip(photo.instances, _boxes(photo), strict=True):
            pen.text((box[0], box[1]), f"{instance.category} {instance.score:.2f}", fill=(255, 255, 255))
        return _scaled(np.asarray(picture), long_side)

    return draw


def measure(draw: Callable[[Photo, int | None], Pixels], photos: Sequence[Photo], long_side: int | None) -> float:
    """Return the images per CPU second."""
    start = time.process_time()
    for photo in photos:
        draw(photo, long_side)
    return len(photos) / (time.process_time() - start)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    has_supervision = importlib.util.find_spec("supervision") is not None
    peer_name = "supervision" if has_supervision else "plain_loop"
    peer = supervision_peer() if has_supervision else plain_peer()
    if has_supervision:
        import cv2

        cv2.setNumThreads(1)
    cases = {
        "photos": (read_photos(options.images, None), None),
        "thumbnails": (read_photos(options.images, None), THUMBNAIL_PX),
        "12_megapixels": (read_photos(max(1, options.images // 4), LARGE_PIXELS), None),
    }
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        measured = {}
        for name, (photos, long_side) in cases.items():
            measured[f"{name}_images_per_s"] = measure(draw_here, photos, long_side)
            measured[f"{name}_{peer_name}_images_per_s"] = measure(peer, photos, long_side)
        rounds.append({key: round(value, 2) for key, value in measured.items()})
        print(json.dumps(rounds[-1]), flush=True)
    medians = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    ratios = {
        f"{name} beside {peer_name}": round(
            medians[f"{name}_images_per_s"] / medians[f"{name}_{peer_name}_images_per_s"], 2
        )
        for name in cases
    }
    print(
        json.dumps(
            {
                "benchmark": "drawing",
                "compares": f"draw_overlay with {peer_name.replace('_', ' ')}",
                "instances_per_photo": round(statistics.mean(len(p.instances) for p in cases["photos"][0]), 1),
                **{key: round(value, 2) for key, value in medians.items()},
                "ratios": ratios,
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
