"""YOLO's segmentation format, as Ultralytics reads it: a text file per image, a polygon per line, and data.yaml."""

from typing import TYPE_CHECKING

import yaml

from jobs.results.export.polygons import cut_open, join_parts, with_polygons
from jobs.results.export.writers import ExportFolder, Progress

if TYPE_CHECKING:
    from jobs.results.export.selection import Selection


def write_yolo(selection: "Selection", folder: ExportFolder, progress: Progress, *, tolerance_px: float) -> None:
    """Write `labels/NAME.txt` of each image, and `data.yaml`; the images belong into `images/`.

    A line is the category's index and the corners, as shares of the image's width and height. The format holds one
    polygon per instance: several parts are linked by lines without an area, and holes are cut open.
    """
    for image, shapes in with_polygons(selection.by_image(), tolerance_px):
        lines = []
        for each in image.instances:
            parts = shapes.get(each.instance)
            if parts is None:
                folder.counts["{n} without a mask left out"] += 1
                continue
            if not parts:
                folder.counts["{n} empty masks left out"] += 1
                continue
            folder.counts["{n} of several parts, linked"] += len(parts) > 1
            ring = join_parts([cut_open(part) for part in parts]) / [image.width, image.height]
            numbers = " ".join(f"{value:.6g}" for value in ring.ravel().tolist())
            lines.append(f"{each.category.index} {numbers}\n")
        folder.write(f"labels/{image.stem}.txt", "".join(lines))
        progress(len(image.instances))
    names = {each.index: each.name for each in selection.categories}
    # `val` is required; who trains on this splits it first (`htc dataset split`).
    data = {"path": str(folder.final.absolute()), "train": "images", "val": "images", "names": names}
    folder.write("data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
