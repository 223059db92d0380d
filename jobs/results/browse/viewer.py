"""What the viewer shows of an image, and the addresses of its page and of its picture."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from jobs.results.browse.gallery import place_of
from jobs.results.browse.pages import file_name
from jobs.results.browse.search import Search
from jobs.results.browse.tables import ImageFacts
from jobs.results.drawing import colour_of, damaged_masks, instance_colour, instance_of_row


def image_address(search: Search, row: dict[str, Any]) -> str:
    """Return the address of an image's page; it knows its place in the search."""
    place = [("uri", row["uri"]), ("shard", str(row["shard"])), ("at", place_of(search, row))]
    place += [("of", row["run"])] if row["run"] != search.run else []
    return f"{search.address('/image')}&{urlencode(place)}"


def picture_address(search: Search, image: ImageFacts, **more: str) -> str:
    """Return the address of an image's picture, with the instances that the search asks for."""
    # By the run that has the row: the search may be that of all runs.
    pairs = [("run", image.run), *search.drawing(), ("uri", image.uri), ("shard", str(image.shard)), *more.items()]
    return f"/picture?{urlencode(pairs)}"


def hex_colour(colour: tuple[int, int, int]) -> str:
    """Return a colour (red, green, blue, 0 to 255) as browsers write it, such as "#e69f00"."""
    return f"#{bytes(colour).hex()}"


def viewer_item(
    image: ImageFacts, rows: Sequence[dict[str, Any]], count: int, problem: str, search: Search
) -> dict[str, Any]:
    """Return what the viewer shows: see `jobs/results/web/viewer.js`."""
    width, height = image.width or 640, image.height or 480
    damaged = damaged_masks([instance_of_row(row) for row in rows], height, width)
    instances = [
        {
            "instance": row["instance"],
            "category": row["category"],
            "score": row["score"],
            "box": [row["bbox"][name] for name in ("x", "y", "width", "height")],
            "mask": None if place in damaged or row["mask"] is None else row["mask"],
            "problem": damaged.get(place, ""),
            "colour": hex_colour(colour_of(row["category"])),
            "ownColour": hex_colour(instance_colour(int(row["instance"]))),
        }
        for place, row in enumerate(rows)
    ]
    facts = [["Status", image.status], ["Instances", f"{count:,}"]]
    facts += [["Size", f"{image.width} x {image.height} px"]] if image.width else []
    facts += [["Run", image.run]]
    note = f"No picture: {problem}" if problem else ""
    if image.status != "ok":
        note = f"{image.status}: {image.error}"
    return {
        "name": file_name(image.uri),
        "uri": image.uri,
        "note": note,
        "facts": facts,
        "leftOut": max(0, count - len(rows)),
        "areMasksWhole": True,
        "width": width,
        "height": height,
        "image": None if problem else picture_address(search, image, size="whole"),
        "instances": instances,
    }
