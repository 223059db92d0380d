"""Reads the images of a run again, to draw on them: only the very version that was segmented."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.results.drawing.fonts import choose_font, writable
from jobs.results.drawing.instances import DrawnInstance
from jobs.results.drawing.overlay import Overlay, render_overlay, with_note
from jobs.results.drawing.style import Style
from pipeline.errors import HtcError, ImageError, InputError, NotFoundError, SpecError
from pipeline.inputs.decode import DEFAULT_MAX_PIXELS, decode_image
from pipeline.inputs.formats.bands import rule_of
from pipeline.inputs.overview import read_overview
from pipeline.inputs.read import fetch_image
from pipeline.output.layout import run_folder
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.storage.uris import display_uri, join

if TYPE_CHECKING:
    from pipeline.inputs.formats.bands import BandRule
    from pipeline.inputs.image_ref import ImageRef, ReadVersion
    from pipeline.output.results import Results

# A tile for an image whose size is not known.
TILE_SIZE = (640, 480)
# Larger images are read at a smaller size, with this longer side at most.
OVERVIEW_SIDE = 4096
_GREY, _DARK = (225, 225, 225), (70, 70, 70)
# Shards whose lists of images are kept: those of a page of thumbnails.
_KEPT_SHARDS = 8


@dataclass(frozen=True)
class ReadImage:
    """An image of a run.

    uri: its name.
    pixels: [H, W, 3] uint8 RGB, upright; None if it cannot be shown: instances are never drawn over another picture.
    problem: why it cannot be shown, or has no instances; None if all is well.
    width, height: in pixels, of the run; those of a tile if the run never decoded it.
    overview: of a huge image, in the place of its pixels: a reduced copy, [h, w, 3].
    """

    uri: str
    pixels: NDArray[np.uint8] | None
    problem: str | None
    width: int
    height: int
    overview: NDArray[np.uint8] | None = None


class ImageReader:
    """The images of an output's runs. It may be used by several threads.

    Args of the constructor:
        results: the output; its storage reads the images, wherever they are.
    """

    def __init__(self, results: "Results") -> None:
        self._results = results
        self._records = {record.run: record for record in results.records}
        self._lock = threading.Lock()
        self._refs: OrderedDict[tuple[str, int], dict[str, ImageRef]] = OrderedDict()

    def read(self, image: Mapping[str, Any]) -> ReadImage:
        """Read an image as it was in its run.

        Args:
            image: its row of the view `images`: run, uri, shard, status, error, etag, bytes, width and height.

        Returns:
            The image; without pixels and with the reason if it is gone, is another version than the one that was
            segmented, or cannot be read.
        """
        uri = str(image["uri"])
        width, height = image["width"] or TILE_SIZE[0], image["height"] or TILE_SIZE[1]
        try:
            if width * height > DEFAULT_MAX_PIXELS:
                return self._read_overview(image, uri)
            pixels = self._read(image)
        except SpecError:
            # Not about this image: a missing package for the store, wrong options.
            raise
        except HtcError as error:
            is_failed = image["status"] != "ok"
            reason = f"{image['status']}: {image['error']}" if is_failed else _one_line(error, uri)
            return ReadImage(uri, None, reason, width, height)
        problem = None if image["status"] == "ok" else f"{image['status']}: {image['error']}"
        return ReadImage(uri, pixels, problem, pixels.shape[1], pixels.shape[0])

    def _read_overview(self, image: Mapping[str, Any], uri: str) -> ReadImage:
        """Read a huge image, which only an overview can show, at a small size."""
        width, height = int(image["width"]), int(image["height"])
        found, size, version = read_overview(
            self._locate(image), self._results.storage, max_side=OVERVIEW_SIDE, rule=self._rule(image)
        )
        _check_version(image, version)
        if size != (height, width):
            raise InputError(
                f"the image has changed since the run: it had {width} x {height} pixels and has {size[1]} x {size[0]}"
            )
        problem = f"with {width} x {height} pixels it is too large to be shown other than as a whole, at a smaller size"
        return ReadImage(uri, None, problem, width, height, overview=found)

    def _rule(self, image: Mapping[str, Any]) -> "BandRule":
        return rule_of(self._records[str(image["run"])].spec.get("input", {}))

    def _read(self, image: Mapping[str, Any]) -> NDArray[np.uint8]:
        payload, version = fetch_image(self._locate(image), self._results.storage)
        _check_version(image, version)
        width, height = image["width"], image["height"]
        rule = self._rule(image)
        if width is None:
            return decode_image(payload, max_pixels=DEFAULT_MAX_PIXELS, rule=rule)
        changed = f"the image has changed since the run: it had {width} x {height} pixels and has "
        try:
            # The run has decoded it before, so its size is safe.
            pixels = decode_image(payload, max_pixels=max(1, width * height), rule=rule)
        except ImageError as error:
            raise InputError(changed + "more") if error.status == "too_large" else error from None
        if (width, height) != (pixels.shape[1], pixels.shape[0]):
            raise InputError(f"{changed}{pixels.shape[1]} x {pixels.shape[0]}")
        return pixels

    def _locate(self, image: Mapping[str, Any]) -> "ImageRef":
        """Find in the run's manifest where the image's bytes are."""
        run, shard = str(image["run"]), int(image["shard"])
        with self._lock:
            if (run, shard) not in self._refs:
                self._refs[run, shard] = self._list(run, shard)
                while len(self._refs) > _KEPT_SHARDS:
                    self._refs.popitem(last=False)
            self._refs.move_to_end((run, shard))
            ref = self._refs[run, shard].get(str(image["uri"]))
        if ref is None:
            raise InputError(f"{image['uri']} is not in the manifest of run {run}")
        return ref

    def _list(self, run: str, shard: int) -> "dict[str, ImageRef]":
        folder = join(run_folder(self._results.output_uri, run), "manifest")
        manifest = Manifest.from_dict(self._records[run].manifest)
        refs = ManifestReader(self._results.storage, folder, manifest).read_shard(shard).images
        return {display_uri(ref.uri): ref for ref in refs}


def _check_version(image: Mapping[str, Any], version: "ReadVersion") -> None:
    etag, size = image["etag"], image["bytes"]
    if etag is not None and version.etag is not None:
        if etag != version.etag:
            raise InputError("the image has changed since the run")
    elif size is not None and size != version.bytes:
        raise InputError(f"the image has changed since the run: it had {size} bytes and has {version.bytes}")


def draw_run_image(
    image: ReadImage, instances: Sequence[DrawnInstance], style: Style | None = None
) -> NDArray[np.uint8]:
    """Draw an image of a run; see `render_run_image`, which also returns what is not on it."""
    return render_run_image(image, instances, style).pixels


def render_run_image(image: ReadImage, instances: Sequence[DrawnInstance], style: Style | None = None) -> Overlay:
    """Draw an image of a run with its instances, or in its place a grey tile of its size that says why not.

    Returns:
        The picture, of the size that the style asks for; on a tile, no instance is drawn or missed.
    """
    style = style or Style()
    if image.overview is not None:
        return render_overlay(image.overview, instances, style, size=(image.height, image.width))
    if image.pixels is None:
        share = min(1.0, OVERVIEW_SIDE / max(image.width, image.height))
        width, height = style.drawn_size(max(1, round(image.width * share)), max(1, round(image.height * share)))
        return Overlay(grey_tile(width, height, image.problem or ""), 0, {})
    drawn = render_overlay(image.pixels, instances, style)
    return drawn if image.problem is None else replace(drawn, pixels=with_note(drawn.pixels, image.problem, style))


def grey_tile(width: int, height: int, reason: str) -> NDArray[np.uint8]:
    """Draw a grey tile with a sentence on it, [height, width, 3] uint8 RGB."""
    tile = Image.new("RGB", (width, height), _GREY)
    draw = ImageDraw.Draw(tile)
    line = max(1, round(min(width, height) / 200))
    draw.rectangle((0, 0, width - 1, height - 1), outline=_DARK, width=line)
    size = min(max(min(width / 22, height / 10), 9.0), 90.0)
    text = writable(reason)
    font = choose_font(text, size)
    lines, room = [""], width - 4 * size / 2
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    most = max(1, int(height / (size * 1.3)) - 1)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    for number, each in enumerate(lines):
        shown = each
        while draw.textlength(shown, font=font) > room and len(shown) > 2:
            shown = f"{shown[:-2]}…"
        y = height / 2 + (number - (len(lines) - 1) / 2) * size * 1.3
        draw.text((width / 2, y), shown, fill=_DARK, font=font, anchor="mm")
    return np.array(tile)


def _one_line(error: HtcError, uri: str) -> str:
    """Return an error's sentence without the image's name, which the tile's reader knows."""
    if isinstance(error, NotFoundError):
        return "the image does not exist any more"
    return " ".join(str(error).replace(f"{uri} ", "the image ").split()).rstrip(".") or type(error).__name__
