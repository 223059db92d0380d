"""Draws an image of a run: whole, beside its truth, or its instances one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.results.drawing.compose import Side, crop, side_by_side
from jobs.results.drawing.image_reader import ImageReader, render_run_image
from jobs.results.drawing.instances import DrawnInstance, damaged_masks
from jobs.results.image_lookup import ImageRecord
from jobs.results.show.request import ShowRequest
from pipeline.text import count_of


@dataclass(frozen=True)
class Picture:
    """One drawn picture: the stem of its file, its caption on a page, and its pixels [H, W, 3] uint8 RGB."""

    stem: str
    caption: str
    pixels: NDArray[np.uint8]
    instances: int


@dataclass(frozen=True)
class DrawnImage:
    """An image's pictures, what is wrong with them (sentences), and how many instances have no label."""

    image: ImageRecord
    pictures: tuple[Picture, ...]
    problems: tuple[str, ...]
    unlabelled: int = 0


def draw_image(
    reader: ImageReader,
    image: ImageRecord,
    instances: Sequence[DrawnInstance],
    stem: str,
    request: ShowRequest,
    *,
    name: str,
    truth: Sequence[DrawnInstance] | None = None,
) -> DrawnImage:
    """Draw one image, its truth beside it if there is one, or its instances one by one.

    Args:
        instances: to draw; of a map its segments or regions.
        name: for captions.

    An image that is gone or has changed since the run is a grey tile that says so; an instance with a damaged mask is
    left out, and named.
    """
    read = reader.read(image.row())
    problems = []
    is_shown = read.pixels is not None or read.overview is not None
    if read.problem is not None and image.status == "ok" and not (is_shown and request.content != "crops"):
        problems.append(f"Not drawn: {image.uri}: {read.problem}.")
    # Of an image that cannot be read, masks are compared with the size that it had.
    damaged = damaged_masks(instances, read.height, read.width)
    problems += [
        f"Not drawn: {image.uri}, {request.noun} {instances[place].number} ({instances[place].category}): {reason}."
        for place, reason in damaged.items()
    ]
    if request.content != "crops" or read.pixels is None:
        drawn, unlabelled = len(instances) - len(damaged) if is_shown else 0, 0
        if read.pixels is None or request.sides == 1:
            overlay = render_run_image(read, instances, request.style)
            pixels, unlabelled = overlay.pixels, overlay.unlabelled
        else:
            pixels = side_by_side(read.pixels, _sides(image, truth, instances, read.problem, request), request.style)
        whole = Picture(stem, name, pixels, drawn)
        return DrawnImage(image, (whole,), tuple(problems), unlabelled)
    pictures = []
    for place, instance in enumerate(instances):
        if place in damaged:
            continue
        try:
            drawn_crop = crop(read.pixels, instance, request.style)
        except ValueError as error:
            problems.append(f"Not drawn: {image.uri}, instance {instance.number} ({instance.category}): {error}.")
            continue
        pictures.append(Picture(f"{stem}_{instance.number:03d}", f"{name} #{instance.number}", drawn_crop, 1))
    return DrawnImage(image, tuple(pictures), tuple(problems))


def _sides(
    image: ImageRecord,
    truth: Sequence[DrawnInstance] | None,
    found: Sequence[DrawnInstance],
    problem: str | None,
    request: ShowRequest,
) -> list[Side]:
    """Return the image itself, truth and what was found, with their titles."""
    sides = [Side("image", ())] if request.is_beside else []
    if request.truth is not None:
        noun = "object" if request.map_table is None else request.noun
        known = "truth: none of this image" if truth is None else f"truth: {count_of(len(truth), noun)}"
        sides.append(Side(known, truth or ()))
    return [*sides, Side(problem or f"{image.run}: {count_of(len(found), request.noun)}", found)]
