"""Pictures of the biggest changes: run A and run B side by side, what changed in colour, the rest in grey."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.results.diff.result import ChangedImage, Diff, InstanceChange
from jobs.results.diff.rules import Kind
from jobs.results.drawing import (
    DrawnInstance,
    ImageReader,
    ReadImage,
    Side,
    Style,
    grey_tile,
    instance_of_row,
    picture_names,
    side_by_side,
    write_picture,
)
from jobs.results.query import read_instances
from pipeline.output.views import query_views

if TYPE_CHECKING:
    import duckdb

    from pipeline.output.results import Results

# Of the palette of Okabe and Ito for all kinds of colour vision (jfly.uni-koeln.de/color); every label says the kind.
_COLOURS = {
    Kind.MOVED: (86, 180, 233),
    Kind.SCORE_CHANGED: (240, 228, 66),
    Kind.CLASS_CHANGED: (204, 121, 167),
    Kind.APPEARED: (0, 158, 115),
    Kind.VANISHED: (213, 94, 0),
}
_GREY = (150, 150, 150)
# Smaller images are enlarged, so that labels do not cover them.
_STYLE = Style(min_long_side=480, opacity=0.3)
_WIDE = 2.0
_GAP_PX = 8
_IMAGE = """
SELECT run, image_id, uri, shard, status, error, etag, bytes, width, height FROM images WHERE run = $run AND uri = $uri
"""
Pixels = NDArray[np.uint8]


def draw_changes(diff: Diff, a: "Results", b: "Results", folder: Path, *, most: int) -> list[Path]:
    """Draw the images that changed most, one picture each.

    An image that is gone or has changed since its run is a grey tile that says so.

    Args:
        a, b: the outputs of the two sides.
        folder: must exist.
        most: how many pictures.

    Returns:
        The files, named by rank and image.

    Raises:
        SpecError: a picture cannot be written.
    """
    images = diff.largest[:most]
    readers = (ImageReader(a), ImageReader(b))
    names = picture_names([each.uri_b for each in images])
    paths = [folder / f"{place:03d}-{name}" for place, name in enumerate(names, 1)]
    for image, path in zip(images, paths, strict=True):
        sides = [
            _read_side(results, reader, image, side)
            for results, reader, side in zip((a, b), readers, ("a", "b"), strict=True)
        ]
        shown = _shown(sides)
        titles = (f"A {diff.a.run}", f"B {diff.b.run}")
        panels = [
            _draw_panel(title, pixels, rows, changes=image.changes, side=side, least_score=diff.rules.least_score)
            for title, pixels, (_, rows), side in zip(titles, shown, sides, ("a", "b"), strict=True)
        ]
        write_picture(_beside(*panels), path)
    return paths


def _read_side(
    results: "Results", reader: ImageReader, image: ChangedImage, side: str
) -> tuple[tuple[ReadImage, Mapping[str, Any]], list[dict[str, Any]]]:
    """Return the image as it is now with its row, and its instances."""
    values = {"run": getattr(image, f"run_{side}"), "uri": getattr(image, f"uri_{side}")}

    def find(database: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
        row: dict[str, Any] = database.sql(_IMAGE, params=values).to_arrow_table().to_pylist()[0]
        return row

    row = query_views(results, find)
    rows = read_instances(results, row["run"], row["shard"], row["image_id"], row["uri"])
    return (reader.read(row), row), rows


def _shown(sides: Sequence[tuple[tuple[ReadImage, Mapping[str, Any]], Any]]) -> list["Pixels | ReadImage"]:
    """Return what each side shows: its pixels; those of the other side where both are one version; or no pixels."""
    (read_a, row_a), (read_b, row_b) = (each for each, _ in sides)
    is_one_version = row_a["etag"] is not None and row_a["etag"] == row_b["etag"]
    shown: list[Pixels | ReadImage] = []
    for own, other in ((read_a, read_b), (read_b, read_a)):
        pixels = own.pixels if own.pixels is not None or not is_one_version else other.pixels
        shown.append(own if pixels is None else pixels)
    return shown


def _draw_panel(
    title: str,
    shown: "Pixels | ReadImage",
    rows: Sequence[Mapping[str, Any]],
    *,
    changes: Sequence[InstanceChange],
    side: str,
    least_score: float,
) -> Pixels:
    by_number = {number: change for change in changes if (number := getattr(change, f"instance_{side}")) is not None}
    kinds = Counter(change.kind for change in by_number.values())
    words = ", ".join(f"{count} {_word(kind)}" for kind, count in sorted(kinds.items()))
    heading = f"{title}: {words}" if words else f"{title}: nothing here"
    if isinstance(shown, ReadImage):
        width, height = _STYLE.drawn_size(shown.width, shown.height)
        return side_by_side(grey_tile(width, height, shown.problem or ""), [Side(heading, [])], _STYLE)
    drawn = [_drawn(row, by_number.get(row["instance"]), least_score) for row in rows]
    return side_by_side(shown, [Side(heading, [each for each in drawn if each is not None])], _STYLE)


def _drawn(row: Mapping[str, Any], change: InstanceChange | None, least_score: float) -> DrawnInstance | None:
    """Return what is drawn of an instance: changed ones with their kind, others that score as much in grey."""
    plain = instance_of_row(row)
    if change is None:
        is_shown = plain.score is not None and plain.score >= least_score
        return replace(plain, colour=_GREY, label="") if is_shown else None
    label = f"{plain.category} {plain.score:.2f} {_word(change.kind)}"
    if change.kind is Kind.MOVED and change.iou is not None:
        label += f", IoU {change.iou:.2f}"
    return replace(plain, colour=_COLOURS[change.kind], label=label)


def _word(kind: Kind) -> str:
    return kind.label.replace("_", " ")


def _beside(one: Pixels, other: Pixels) -> Pixels:
    """Put two pictures beside each other; wide ones one above the other."""
    height = max(one.shape[0], other.shape[0])
    width = max(one.shape[1], other.shape[1])
    if width > _WIDE * height:
        page = np.full((one.shape[0] + _GAP_PX + other.shape[0], width, 3), 255, np.uint8)
        page[: one.shape[0], : one.shape[1]] = one
        page[one.shape[0] + _GAP_PX :, : other.shape[1]] = other
        return page
    page = np.full((height, one.shape[1] + _GAP_PX + other.shape[1], 3), 255, np.uint8)
    page[: one.shape[0], : one.shape[1]] = one
    page[: other.shape[0], one.shape[1] + _GAP_PX :] = other
    return page
