"""Rows of the tables `panoptic` and `semantic` as what is drawn."""

from collections.abc import Mapping
from typing import Any

from jobs.results.drawing.instances import DrawnInstance, Mask


def segment_of_row(row: Mapping[str, Any]) -> DrawnInstance:
    """Return what to draw of a row of `panoptic` (columns category, is_thing, score, segment, mask)."""
    if not row["is_thing"]:
        return stuff_segment(row["category"], row["mask"], number=row["segment"])
    return DrawnInstance(row["category"], row["score"], mask=row["mask"], number=row["segment"])


def region_of_row(row: Mapping[str, Any]) -> DrawnInstance:
    """Return what to draw of a row of `semantic` (columns class, class_id, mask)."""
    return stuff_segment(row["class"], row["mask"], number=row["class_id"])


def stuff_segment(name: str, mask: Mask, *, number: int | None = None) -> DrawnInstance:
    """Return a region of a class without instances."""
    return DrawnInstance(name, mask=mask, number=number, is_stuff=True)
