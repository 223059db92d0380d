"""Small photos with annotations in the formats that `htc dataset convert` reads."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40
SQUARE = [[10.0, 5.0], [30.0, 5.0], [30.0, 25.0], [10.0, 25.0]]


def write_photo(path: Path, number: int = 0, *, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1) -> Path:
    """Write a photo of (width, height) pixels as stored, whose content depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, **({"exif": exif} if orientation != 1 else {}))
    return path


def labelme_shape(
    points: list[list[float]], label: str = "cat", *, kind: str = "polygon", group: int | None = None, **more: Any
) -> dict[str, Any]:
    """Build one of labelme's shapes."""
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def write_labelme(
    path: Path, shapes: list[dict[str, Any]], *, image: str | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    """Write a labelme file."""
    document = {
        "version": "6.3.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image if image is not None else f"{path.stem}.png",
        "imageData": None,
        "imageHeight": size[1],
        "imageWidth": size[0],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def png_base64(bitmap: "np.ndarray[Any, Any]") -> str:
    """Encode a bitmap as labelme does."""
    file = io.BytesIO()
    Image.fromarray(bitmap.astype(np.uint8)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_cvat(path: Path, images: str, labels: tuple[str, ...] = ("dog", "cat")) -> Path:
    """Write CVAT's XML with these <image> elements."""
    names = "".join(f"<label><name>{name}</name><color>#ff0000</color></label>" for name in labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><task><labels>{names}</labels></task></meta>{images}</annotations>\n"
    )
    return path


def write_yolo(folder: Path, labels: dict[str, str], names: object = ("cat", "dog"), **keys: Any) -> Path:
    """Write data.yaml, images/train/NAME.png and labels/train/NAME.txt."""
    import yaml

    for number, (name, text) in enumerate(labels.items()):
        write_photo(folder / "images" / "train" / f"{name}.png", number)
        (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (folder / "labels" / "train" / f"{name}.txt").write_text(text)
    names = list(names) if isinstance(names, tuple) else names
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": ".", "train": "images/train", "names": names, **keys}))
    return folder


def square_annotation(number: int, image: int, category: int = 1, **changes: Any) -> dict[str, Any]:
    """Build a COCO annotation of a square of 20 x 20 pixels."""
    corners = [value for point in SQUARE for value in point]
    plain = {"id": number, "image_id": image, "category_id": category, "bbox": [10, 5, 20, 20], "area": 400}
    return {**plain, "segmentation": [corners], "iscrowd": 0, **changes}


def write_coco(
    path: Path,
    *,
    photos: int = 3,
    names: tuple[str, ...] = ("cat",),
    annotations: list[dict[str, Any]] | None = None,
    first: int = 0,
    images: list[dict[str, Any]] | None = None,
    folder: str = "images",
) -> dict[str, Any]:
    """Write photos to images/ and a COCO file with one square on each, by default.

    Args:
        first: number of the first photo; photos of other numbers have other content.
    """
    numbers = range(first, first + photos)
    for number in numbers:
        write_photo(path.parent / folder / f"{number}.png", number)
    document = {
        "images": images
        or [{"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in numbers],
        "annotations": [square_annotation(number + 1, number) for number in numbers]
        if annotations is None
        else annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    path.write_text(json.dumps(document))
    return document
