"""The gallery's pictures: a thumbnail with masks, a larger view, and the masks as run lengths, within bounds."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks import decode_rle, encode_bitmap
from htc_model.masks.many_runs import decode_counts, join_texts
from jobs.results.drawing import (
    DrawnInstance,
    ImageReader,
    Style,
    colour_of,
    damaged_masks,
    draw_overlay,
    instance_colour,
    instance_of_row,
    segment_of_row,
    short_names,
)
from jobs.results.image_lookup import ImageRecord
from jobs.results.map_tables import has_table, read_rows
from jobs.results.query import read_instances
from pipeline.machine_limits import usable_cpus
from pipeline.storage.uris import base_name
from pipeline.text import count_of, printable

if TYPE_CHECKING:
    from jobs.results.drawing import ReadImage
    from pipeline.output.results import Results

THUMBNAIL_PX, THUMBNAIL_QUALITY = 280, 62
VIEW_PX, LEAST_VIEW_PX, VIEW_QUALITY = 1280, 320, 74
# Of the encoded pictures together, and of one; base64 makes four bytes of three.
VIEWS_BYTES, VIEW_BYTES = 20 << 20, 160 << 10
MASKS_BYTES, MASKS_OF_IMAGE_BYTES = 10 << 20, 96 << 10
# The longer side of masks that would take too much room as they are.
SMALL_MASK_PX = 640
MAX_INSTANCES = 50
FALLBACK_INSTANCES = 5
MOST_THREADS = 4


@dataclass(frozen=True)
class Bounds:
    """How much one image may take: bytes of its view, bytes of its masks."""

    view: int
    masks: int

    @classmethod
    def of(cls, images: int) -> "Bounds":
        """Divide what the whole report may hold."""
        count = max(images, 1)
        return cls(min(VIEW_BYTES, VIEWS_BYTES // count), min(MASKS_OF_IMAGE_BYTES, MASKS_BYTES // count))


@dataclass(frozen=True)
class GalleryImage:
    """A card of the gallery, and what the viewer shows of it.

    thumbnail: a data URI; None without a picture. problem: why there is none, or what is wrong; "" for nothing.
    scores: the best score by category. item: JSON-able, see viewer.js. counts: confident instances by category, a text.
    """

    name: str
    uri: str
    status: str
    thumbnail: str | None
    problem: str
    instances: int
    scores: Mapping[str, float]
    counts: str
    item: Mapping[str, Any] = field(repr=False)


class GalleryReader:
    """Reads images of a run and makes their cards. It may be used by several threads.

    Args of the constructor:
        min_score: instances that score less are not on thumbnails, unless it is None: then the best few of each image
            are.
    """

    def __init__(self, results: "Results", run: str, bounds: Bounds, *, min_score: float | None) -> None:
        self._results = results
        self._run = run
        self._bounds = bounds
        self._min_score = min_score
        self._images = ImageReader(results)
        self._has_map = has_table(results, run, "panoptic")

    def read(self, row: Mapping[str, Any]) -> GalleryImage:
        """Make the card of an image.

        Args:
            row: of the view `images`, with its run.

        Raises:
            DamagedFileError: the part with its instances is damaged or missing.
            StorageError: storage failed.
        """
        image = self._images.read(row)
        rows = self._instances(row)
        shown = rows[:MAX_INSTANCES]
        drawn = [instance_of_row(each) for each in shown]
        size = (int(row["height"] or image.height), int(row["width"] or image.width))
        damaged = damaged_masks(drawn, *size)
        masks, are_whole = self._masks(shown, damaged, image)
        thumbnail = view = None
        if image.pixels is not None:
            thumbnail = self._map(image.pixels, row) if self._has_map else None
            thumbnail = thumbnail or self._thumbnail(image.pixels, drawn, damaged)
            view = _data_uri(encode_within(image.pixels, self._bounds.view))
        scores: dict[str, float] = {}
        for each in rows:
            scores[each["category"]] = max(scores.get(each["category"], 0.0), _finite(each["score"]) or 0.0)
        problem = printable(image.problem or "")
        instances = [
            _instance(each, mask, damaged.get(place))
            for place, (each, mask) in enumerate(zip(shown, masks, strict=True))
        ]
        name = printable(base_name(str(row["uri"]).split("::")[0].rstrip("/")) or str(row["uri"]))
        return GalleryImage(
            name=name,
            uri=printable(str(row["uri"])),
            status=str(row["status"]),
            thumbnail=thumbnail,
            problem=problem,
            instances=len(rows),
            scores={printable(category): round(score, 4) for category, score in scores.items()},
            counts=_counts(rows, self._min_score),
            item={
                "name": name,
                "uri": printable(str(row["uri"])),
                "width": size[1],
                "height": size[0],
                "note": problem,
                "image": view,
                "instances": instances,
                "leftOut": len(rows) - len(shown),
                "areMasksWhole": are_whole,
                "facts": _facts(row),
            },
        )

    def _instances(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not row["instances"]:
            return []
        return read_instances(self._results, self._run, int(row["shard"]), int(row["image_id"]), str(row["uri"]))

    def _map(self, pixels: NDArray[np.uint8], row: Mapping[str, Any]) -> str | None:
        """Return a thumbnail with things and stuff; None without a segment."""
        image = ImageRecord(**{name: row[name] for name in ImageRecord.__dataclass_fields__})
        rows = read_rows(self._results, "panoptic", image) if image.status == "ok" else []
        drawn = [segment_of_row(each) for each in rows]
        damaged = damaged_masks(drawn, *pixels.shape[:2])
        sound = [each for place, each in enumerate(drawn) if place not in damaged]
        return self._encoded(pixels, sound) if sound else None

    def _thumbnail(self, pixels: NDArray[np.uint8], drawn: Sequence[DrawnInstance], damaged: Mapping[int, str]) -> str:
        sound = [each for place, each in enumerate(drawn) if place not in damaged]
        if self._min_score is None:
            chosen = sound[:FALLBACK_INSTANCES]
        else:
            least = self._min_score
            chosen = [each for each in sound if each.score is None or each.score >= least]
        return self._encoded(pixels, chosen)

    @staticmethod
    def _encoded(pixels: NDArray[np.uint8], drawn: Sequence[DrawnInstance]) -> str:
        style = Style(long_side=min(THUMBNAIL_PX, max(pixels.shape[:2])), has_labels=False)
        return _data_uri(_webp(Image.fromarray(draw_overlay(pixels, drawn, style)), THUMBNAIL_QUALITY))

    def _masks(
        self,
        rows: Sequence[Mapping[str, Any]],
        damaged: Mapping[int, str],
        image: "ReadImage",
    ) -> tuple[list[dict[str, Any] | None], bool]:
        """Return the masks to embed, and whether they have the image's own size."""
        if image.pixels is None:
            return [None] * len(rows), True
        whole = [None if place in damaged else each["mask"] for place, each in enumerate(rows)]
        if sum(len(mask["counts"]) for mask in whole if mask) <= self._bounds.masks:
            return [mask and {"size": list(mask["size"]), "counts": mask["counts"]} for mask in whole], True
        small = shrink_masks({place: mask for place, mask in enumerate(whole) if mask})
        left, kept = self._bounds.masks, []
        for place in range(len(rows)):
            mask = small.get(place)
            left -= len(mask["counts"]) if mask else 0
            kept.append(mask if left >= 0 else None)
        return kept, False


def read_gallery(
    reader: GalleryReader,
    rows: Sequence[Mapping[str, Any]],
    order: Sequence[int],
    progress: Callable[[int, int], None],
) -> list[GalleryImage]:
    """Read images, some at the same time; returns their cards in the order of `rows`.

    Args:
        order: the places of the rows in the order of reading. progress: gets how many of how many are read.
    """
    cards: dict[int, GalleryImage] = {}
    with ThreadPoolExecutor(min(MOST_THREADS, max(2, usable_cpus()))) as pool:
        for place, card in zip(order, pool.map(lambda place: reader.read(rows[place]), order), strict=True):
            cards[place] = card
            progress(len(cards), len(rows))
    names = [printable(name) for name in short_names([str(row["uri"]) for row in rows])]
    return [
        replace(cards[place], name=name, item={**cards[place].item, "name": name}) for place, name in enumerate(names)
    ]


def shrink_masks(masks: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Make masks smaller, so that their longer side has 640 pixels; only their boxes become bitmaps.

    Args:
        masks: COCO run lengths that can be read, by any number.
    """
    places = list(masks)
    sizes = np.array([list(masks[place]["size"]) for place in places], np.int64).reshape(-1, 2)
    runs = decode_counts(*join_texts([masks[place]["counts"] for place in places]), sizes).runs()
    boxes = runs.boxes_xywh()
    # An empty mask has no box; its first pixel stands for it, and is not set.
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    parts = runs.crop(boxes)
    made = {}
    for number, (place, counts) in enumerate(zip(places, parts.encode(), strict=True)):
        height, width = sizes[number].tolist()
        scale = min(1.0, SMALL_MASK_PX / max(height, width))
        canvas = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.bool_)
        x, y, box_width, box_height = boxes[number].tolist()
        left, top = math.floor(x * scale), math.floor(y * scale)
        right = min(canvas.shape[1], max(left + 1, math.ceil((x + box_width) * scale)))
        bottom = min(canvas.shape[0], max(top + 1, math.ceil((y + box_height) * scale)))
        bitmap = decode_rle({"size": parts.sizes[number].tolist(), "counts": counts})
        part = Image.fromarray(bitmap.astype(np.uint8) * np.uint8(255))
        part = part.resize((right - left, bottom - top), Image.Resampling.BOX)
        canvas[top:bottom, left:right] = np.asarray(part) >= 128
        made[place] = {"size": list(canvas.shape), "counts": _text(encode_bitmap(canvas)["counts"])}
    return made


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def encode_within(pixels: NDArray[np.uint8], limit: int) -> bytes:
    """Encode a picture as WebP in at most `limit` bytes where a longer side of 320 pixels allows it.

    Args:
        pixels: [H, W, 3] uint8 RGB.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    longer = max(picture.size)
    side = min(VIEW_PX, longer)
    while True:
        fitted = _resized(picture, side)
        payload = _webp(fitted, VIEW_QUALITY)
        if len(payload) <= limit or side <= LEAST_VIEW_PX:
            return payload
        # Bytes grow with the area, a little less than in proportion.
        side = max(LEAST_VIEW_PX, min(side - 32, int(side * math.sqrt(limit / len(payload)) * 0.97)))


def _resized(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _webp(picture: Image.Image, quality: int) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=quality, method=2)
    return sink.getvalue()


def _data_uri(payload: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(payload).decode("ascii")


def _instance(row: Mapping[str, Any], mask: Mapping[str, Any] | None, problem: str | None) -> dict[str, Any]:
    box = row["bbox"]
    is_left_out = mask is None and row["mask"] is not None and problem is None
    return {
        "category": printable(row["category"]),
        "score": _finite(row["score"]),
        "box": [round(_finite(box[name]) or 0.0, 1) for name in ("x", "y", "width", "height")],
        "mask": mask,
        "problem": problem or ("its mask is left out, for the report's size" if is_left_out else ""),
        "colour": "#" + bytes(colour_of(row["category"])).hex(),
        "ownColour": "#" + bytes(instance_colour(int(row["instance"]))).hex(),
    }


def _finite(value: float | None) -> float | None:
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def _counts(rows: Sequence[Mapping[str, Any]], min_score: float | None) -> str:
    if not rows:
        return "no instances"
    counts: dict[str, int] = {}
    confident = [row for row in rows if min_score is None or row["score"] >= min_score]
    if not confident:
        return f"{len(rows)} below {min_score:g}"
    for row in confident:
        counts[row["category"]] = counts.get(row["category"], 0) + 1
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    words = [printable(category) + (f" ({count})" if len(ranked) > 1 else "") for category, count in ranked[:3]]
    more = [f"{len(ranked) - 3} more"] if len(ranked) > 3 else []
    return f"{count_of(len(confident), 'instance')}: {', '.join([*words, *more])}"


def _facts(row: Mapping[str, Any]) -> list[list[str]]:
    facts = [["Status", str(row["status"])]]
    if row["width"] and row["height"]:
        facts.append(["Size", f"{row['width']:,} x {row['height']:,} pixels"])
    facts.append(["Instances", f"{row['instances'] or 0:,}"])
    return facts
