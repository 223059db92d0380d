"""COCO's panoptic format: one JSON file, and a PNG per image whose colours are numbers of segments."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.results.drawing.colours import Colour, instance_colour, stuff_colour
from jobs.results.export.coco import image_lines, write_list
from jobs.results.export.label_maps import images_with_rows, masks_of, png_of
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from jobs.results.export.selection import ExportedImage, Selection
    from pipeline.output.results import Results

FILE = "panoptic.json"
# Where readers look for the PNGs: the folder beside the file, of its name without the ending.
FOLDER = "panoptic"
_COLUMNS = ("image_id", "segment", "category_id", "category", "is_thing", "instance", "score", "area", "bbox", "mask")


def write_coco_panoptic(
    selection: "Selection", folder: ExportFolder, progress: Progress, results: "Results", *, is_beside: bool = False
) -> None:
    """Write `panoptic.json` and `panoptic/NAME.png` of each image.

    The number of a segment is red + 256 green + 65536 blue of its pixels, black is no segment
    (cocodataset.org/#format-data, 4). The colours set segments apart.

    Args:
        is_beside: whether the images are in `images/`, where two that differ by suffix only got different names.
    """
    head = {
        "info": {"description": f"htc export of run {selection.run}"},
        "licenses": [],
        "categories": [
            {"id": each.category_id, "name": each.name, "isthing": int(each.is_thing)} for each in selection.categories
        ],
    }
    try:
        with folder.file(FILE).open("wb") as sink:
            sink.write(json.dumps(head, ensure_ascii=False).removesuffix("}").encode())
            write_list(sink, "images", image_lines(selection, is_beside=is_beside), lambda _: None)
            write_list(sink, "annotations", _annotations(selection, folder, progress, results), lambda _: None)
            sink.write(b"}\n")
    except OSError as error:
        raise SpecError(f"{folder.final / FILE} cannot be written: {error.strerror or error}.") from error


def _annotations(
    selection: "Selection", folder: ExportFolder, progress: Progress, results: "Results"
) -> Iterator[list[str]]:
    """Yield each image's annotation, and write its PNG."""
    for image, rows in images_with_rows(selection, results, "panoptic", _COLUMNS):
        colours = _colours_of(rows)
        numbers = [red + 256 * green + 65536 * blue for red, green, blue in colours]
        name = f"{image.stem}.png"
        folder.write(f"{FOLDER}/{name}", _png(image, rows, colours))
        segments = [_segment(row, number) for row, number in zip(rows, numbers, strict=True)]
        annotation = {"image_id": image.number, "file_name": name, "segments_info": segments}
        yield [json.dumps(annotation, ensure_ascii=False)]
        progress(len(rows))


def _png(image: "ExportedImage", rows: Sequence[dict[str, Any]], colours: Sequence[Colour]) -> bytes:
    palette = np.array([(0, 0, 0), *colours], np.uint8)

    def paint(labels: NDArray[np.int32]) -> NDArray[Any]:
        return palette[labels]

    return png_of(masks_of(image, rows), (image.height, image.width), "RGB", paint)


def _segment(row: dict[str, Any], number: int) -> dict[str, Any]:
    box = row["bbox"]
    segment = {
        "id": number,
        "category_id": row["category_id"],
        "area": row["area"],
        "bbox": [box["x"], box["y"], box["width"], box["height"]],
        "iscrowd": 0,
    }
    return segment if row["score"] is None else segment | {"score": row["score"], "instance": row["instance"]}


def _colours_of(rows: Sequence[dict[str, Any]]) -> list[Colour]:
    """Return a colour of its own for each segment, none of them black: the segment's colour, or one that is near."""
    taken: set[int] = {0}
    found: list[Colour] = []
    for place, row in enumerate(rows):
        red, green, blue = instance_colour(place) if row["is_thing"] else stuff_colour(row["category"])
        number = red + 256 * green + 65536 * blue
        while number in taken:
            number = (number + 1) % (1 << 24)
        taken.add(number)
        found.append((number % 256, number // 256 % 256, number // 65536))
    return found
