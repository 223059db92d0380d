"""COCO's annotation format: one JSON file, run-length masks as they are in the tables or polygons."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from jobs.results.export.polygons import cut_open, with_polygons
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import InputError, SpecError

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.results.export.selection import Selection

FILE = "annotations.json"
_OF_ERROR = "Invalid Input Error: "
# DuckDB writes the JSON: no Python object is made for an instance.
_ROWS = """
SELECT to_json({
    'id': {done} + row_number() OVER (ORDER BY number, instance), 'image_id': number, 'category_id': category_id,
    'segmentation': CASE
        WHEN mask IS NULL THEN '[]'::JSON
        WHEN mask_is_valid(mask) THEN to_json({'size': mask.size, 'counts': mask.counts})
        ELSE error(uri || ': the mask of instance ' || instance || ' is damaged; '
            || '--where "mask_is_valid(mask)" leaves such instances out')
    END,
    'area': coalesce(area, round(bbox.width * bbox.height)),
    'bbox': [bbox.x, bbox.y, bbox.width, bbox.height], 'iscrowd': 0, 'score': score
})::VARCHAR AS line
FROM exported JOIN piece_images USING (image_id, uri, run) ORDER BY number, instance
"""
_IMAGES = """
SELECT to_json({'id': number, 'file_name': {name}, 'width': width, 'height': height, 'coco_url': uri})::VARCHAR AS line
FROM exported_images ORDER BY number
"""


def write_coco(
    selection: "Selection",
    folder: ExportFolder,
    progress: Progress,
    *,
    tolerance_px: float | None,
    is_beside: bool = False,
) -> None:
    """Write `annotations.json`.

    Args:
        is_beside: whether the images are in `images/`, where two that differ by suffix only got different names.
        tolerance_px: None writes run-length masks, exact; a number writes polygons, see `with_polygons`.
    """
    head = {
        "info": {"description": f"htc export of run {selection.run}"},
        "licenses": [],
        "categories": [{"id": each.category_id, "name": each.name} for each in selection.categories],
    }
    rows = (
        _lines(selection.piece_batches(_ROWS))
        if tolerance_px is None
        else _polygon_lines(selection, folder, tolerance_px)
    )
    try:
        with folder.file(FILE).open("wb") as sink:
            sink.write(json.dumps(head, ensure_ascii=False).removesuffix("}").encode())
            write_list(
                sink,
                "images",
                image_lines(selection, is_beside=is_beside),
                lambda _: None,
            )
            write_list(sink, "annotations", rows, progress)
            sink.write(b"}\n")
    except OSError as error:
        raise SpecError(f"{folder.final / FILE} cannot be written: {error.strerror or error}.") from error


def image_lines(selection: "Selection", *, is_beside: bool) -> Iterator[list[str]]:
    """Yield the images as COCO's JSON, in pieces."""
    return _lines(selection.batches(_IMAGES.replace("{name}", "stem || suffix" if is_beside else "name")))


def write_list(sink: BinaryIO, name: str, batches: Iterator[list[str]], progress: Progress) -> None:
    """Write a list of JSON as a further value of an object that is still open."""
    sink.write(f', "{name}": ['.encode())
    separator = b"\n"
    for lines in batches:
        sink.write(separator + ",\n".join(lines).encode())
        separator = b",\n"
        progress(len(lines))
    sink.write(b"\n]")


def _lines(batches: "Iterator[pa.RecordBatch]") -> Iterator[list[str]]:
    try:
        for batch in batches:
            if len(batch):
                yield batch.column("line").to_pylist()
    except SpecError as error:
        # DuckDB's words before those of our own `error(...)`.
        if str(error).startswith(_OF_ERROR):
            raise InputError(str(error).removeprefix(_OF_ERROR)) from None
        raise


def _polygon_lines(selection: "Selection", folder: ExportFolder, tolerance_px: float) -> Iterator[list[str]]:
    number = 0
    for image, shapes in with_polygons(selection.by_image(is_sparse=True), tolerance_px):
        lines = []
        for each in image.instances:
            number += 1
            parts = shapes.get(each.instance, [])
            folder.counts["{n} with holes, which COCO's polygons reach by a cut"] += any(
                len(part) > 1 for part in parts
            )
            row: dict[str, Any] = {
                "id": number,
                "image_id": image.number,
                "category_id": each.category.category_id,
                "segmentation": [cut_open(part).ravel().tolist() for part in parts],
                "area": each.area if each.area is not None else round(each.bbox_xywh[2] * each.bbox_xywh[3]),
                "bbox": list(each.bbox_xywh),
                "iscrowd": 0,
                "score": each.score,
            }
            lines.append(json.dumps(row))
        if lines:
            yield lines
