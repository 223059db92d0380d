"""Thumbnails and whole images, made when they are asked for, and kept for a short while.

A picture is of the very version that was segmented, or a grey tile that says why there is none.
"""

import html
import textwrap
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from jobs.results.browse.search import Search
from jobs.results.browse.tables import ImageFacts, Tables
from jobs.results.drawing import (
    DrawnInstance,
    ReadImage,
    Style,
    draw_overlay,
    encode_picture,
    instance_of_row,
    segment_of_row,
)
from pipeline.text import printable

THUMBNAIL_PX = 320
# A browser draws larger ones slowly; masks are drawn by their runs, at any zoom.
WHOLE_PX = 4096
# Up to here a picture loses nothing: single pixels can be looked at.
LOSSLESS_PIXELS = 512 * 512
KEPT_BYTES = 96 << 20
# So long a picture stands for its image; then the image is read again, and its version is compared.
KEPT_S = 60.0
# As `htc show` draws without --min-score, and where scores mean nothing or none reaches it.
DRAWN_SCORE = 0.3
FALLBACK_INSTANCES = 5
TILE_GREY = "#e1e1e1"
TILE_CHARS, TILE_LINES = 25, 7


@dataclass(frozen=True)
class Picture:
    """An encoded picture; problem: why it is a grey tile, "" for none."""

    payload: bytes
    media_type: str
    problem: str = ""


class Pictures:
    """Makes pictures of images; safe to use from several threads."""

    def __init__(
        self, tables: Tables, *, kept_bytes: int = KEPT_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`kept_bytes`: of all pictures that are kept."""
        self._tables = tables
        self._kept_bytes = kept_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, tuple[float, Picture]] = OrderedDict()
        self._bytes = 0

    def thumbnail(self, image: ImageFacts, search: Search) -> Picture:
        """Return an image with the search's instances, 320 pixels wide or high."""
        return self._keep((image, "thumbnail", *search.drawing()), lambda: self._draw(image, search))

    def whole(self, image: ImageFacts) -> Picture:
        """Return an image without instances, of its size up to 4,096 pixels."""
        return self._keep((image, "whole"), lambda: self._whole(image))

    def _draw(self, image: ImageFacts, search: Search) -> Picture:
        read = self._tables.reader().read(asdict(image))
        if read.pixels is None:
            return tile(_problem(read))
        style = Style(long_side=THUMBNAIL_PX, has_labels=False)
        pixels = draw_overlay(read.pixels, self._drawn(image, search) if search.is_drawn else [], style)
        return Picture(encode_picture(pixels, "jpeg", quality=85), "image/jpeg")

    def _whole(self, image: ImageFacts) -> Picture:
        read = self._tables.reader().read(asdict(image))
        pixels = read.pixels
        if pixels is None:
            return tile(_problem(read))
        height, width = pixels.shape[:2]
        if max(height, width) > WHOLE_PX:
            picture = Image.fromarray(pixels)
            picture.thumbnail((WHOLE_PX, WHOLE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
            pixels = np.asarray(picture)
        if height * width <= LOSSLESS_PIXELS:
            return Picture(encode_picture(pixels, "png"), "image/png")
        return Picture(encode_picture(pixels, "jpeg", quality=92), "image/jpeg")

    def _drawn(self, image: ImageFacts, search: Search) -> list[DrawnInstance]:
        if search.is_map and self._tables.has_map(image.run):
            return [segment_of_row(row) for row in self._tables.segments(image)] if image.status == "ok" else []
        return [instance_of_row(row) for row in self._chosen(image, search)]

    def _chosen(self, image: ImageFacts, search: Search) -> Sequence[dict[str, object]]:
        rows = [row for row in self._tables.instances(image) if search.matches(row)]
        if search.min_score is not None or search.max_score is not None:
            return rows
        shown = [row for row in rows if row["score"] >= DRAWN_SCORE] if self._tables.is_trained(image.run) else []
        return shown or rows[:FALLBACK_INSTANCES]

    def _keep(self, key: object, make: Callable[[], Picture]) -> Picture:
        with self._lock:
            found = self._kept.get(key)
            if found is not None and self._clock() - found[0] < KEPT_S:
                self._kept.move_to_end(key)
                return found[1]
        made = make()
        with self._lock:
            old = self._kept.pop(key, None)
            self._bytes += len(made.payload) - (len(old[1].payload) if old else 0)
            self._kept[key] = self._clock(), made
            while self._bytes > self._kept_bytes and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1][1].payload)
        return made


def tile(reason: str) -> Picture:
    """Return a grey tile with a sentence, as SVG: the text can be read at a card's size, however small that is."""
    lines = textwrap.wrap(printable(reason), TILE_CHARS)
    lines = lines if len(lines) <= TILE_LINES else [*lines[: TILE_LINES - 1], f"{lines[TILE_LINES - 1][:-1]}…"]
    top = 120 - 14 * (len(lines) - 1)
    texts = "".join(
        f'<text x="160" y="{top + 28 * number}">{html.escape(line)}</text>' for number, line in enumerate(lines)
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 240" width="320" height="240">'
        f'<rect width="320" height="240" fill="{TILE_GREY}"/>'
        '<g font-family="sans-serif" font-size="22" fill="#3c3c3c" text-anchor="middle" dominant-baseline="middle">'
        f"{texts}</g></svg>"
    )
    return Picture(svg.encode(), "image/svg+xml", reason)


def _problem(read: ReadImage) -> str:
    return "" if read.pixels is not None else read.problem or "it cannot be shown"
