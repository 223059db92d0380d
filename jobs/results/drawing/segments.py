"""Rows of the tables `panoptic` and `semantic` as what is drawn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from htc_model.coco_classes import COCO_CLASSES
from jobs.results.drawing.colours import colour_of
from jobs.results.drawing.instances import DrawnInstance, Mask


def segment_of_row(row: Mapping[str, Any]) -> DrawnInstance:
    """Return what to draw of a row of `panoptic` (columns category, is_thing, score, segment, mask)."""
    if not row["is_thing"]:
        return stuff_segment(row["category"], row["mask"], number=row["segment"])
    return DrawnInstance(row["category"], row["score"], mask=row["mask"], number=row["segment"])


def region_of_row(row: Mapping[str, Any]) -> DrawnInstance:
    """Return what to draw of a row of `semantic` (columns class, class_id, mask).

    COCO's things have the colours of their instances; the rows do not say which other classes are things.
    """
    region = stuff_segment(row["class"], row["mask"], number=row["class_id"])
    return replace(region, colour=colour_of(row["class"])) if row["class"] in COCO_CLASSES else region


def stuff_segment(name: str, mask: Mask, *, number: int | None = None) -> DrawnInstance:
    """Return a region of a class without instances."""
    return DrawnInstance(name, mask=mask, number=number, is_stuff=True)
