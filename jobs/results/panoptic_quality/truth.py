"""The truth of panoptic quality: a file in COCO's panoptic format, and its PNGs (cocodataset.org/#format-data, 4)."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from PIL.PngImagePlugin import PngImageFile

from htc_model.training.annotations import CocoAnnotations, ImageAnnotations
from jobs.results.evaluation.panoptic import is_panoptic
from jobs.results.panoptic_quality.quality import VOID
from pipeline.errors import NotFoundError, SpecError
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, join

FindSize = Callable[[str], tuple[int, int] | None]


@dataclass(frozen=True)
class TruthCategory:
    """A category of the truth."""

    name: str
    is_thing: bool


@dataclass(frozen=True)
class TruthSegment:
    """A segment as the file describes it: its number in the PNG and the place of its category."""

    number: int
    label: int
    is_crowd: bool


@dataclass(frozen=True)
class PanopticTruth:
    """The file's content.

    images: its annotated images, without objects. pngs, segments: of each of them its PNG's uri and its segments.
    unannotated: how many images of the file have no annotation.
    """

    categories: tuple[TruthCategory, ...]
    images: CocoAnnotations
    pngs: tuple[str, ...]
    segments: tuple[tuple[TruthSegment, ...], ...]
    unannotated: int


def known_size(image: ImageAnnotations) -> tuple[int, int] | None:
    """Return an image's (height, width) in pixels; None where neither the file nor the run says it."""
    return (image.height, image.width) if image.height else None


def check_panoptic(document: Any, uri: str) -> None:
    """Check that a document is in the panoptic format.

    Raises:
        SpecError: it is not.
    """
    if not is_panoptic(document):
        raise SpecError(
            f"{uri} is not in COCO's panoptic format (its annotations have no segments_info), which --panoptic needs; "
            "leave out --panoptic to score instances, or give a panoptic file with its folder of PNGs."
        )


def read_panoptic_truth(document: Mapping[str, Any], uri: str, find_size: FindSize) -> PanopticTruth:
    """Read a document in the panoptic format.

    Args:
        uri: the document's; its PNGs are in the folder beside it that has its name without the ending.
        find_size: returns (height, width) in pixels of the run's image with a file name, for images without a size.

    Raises:
        SpecError: a part of it cannot be used; the message names it.
    """
    categories, labels = _read_categories(document.get("categories"), uri)
    listed = _read_images(document.get("images"), uri, find_size)
    folder = absolute_uri(uri).removesuffix(".gz").removesuffix(".json")
    images, pngs, segments = [], [], []
    for annotation in document["annotations"]:
        if not isinstance(annotation, Mapping) or not isinstance(annotation.get("segments_info"), list):
            raise SpecError(f"{uri}: an annotation has no segments_info, so its image cannot be scored.")
        number = annotation.get("image_id")
        image = listed.pop(number, None) if isinstance(number, int | float | str) else None
        if image is None:
            raise SpecError(
                f"{uri}: an annotation is of the image {number}, which the list images does not have, or which has "
                "an annotation already."
            )
        name = annotation.get("file_name")
        if not isinstance(name, str):
            raise SpecError(f"{uri}: the annotation of {image.file_name} names no PNG (file_name).")
        images.append(image)
        pngs.append(join(folder, name))
        segments.append(tuple(_read_segments(annotation["segments_info"], labels, f"{uri}: {image.file_name}")))
    names = tuple(category.name for category in categories)
    truth = CocoAnnotations(names, tuple(range(1, len(names) + 1)), tuple(images))
    return PanopticTruth(tuple(categories), truth, tuple(pngs), tuple(segments), len(listed))


def _read_categories(found: Any, uri: str) -> tuple[list[TruthCategory], dict[Any, int]]:
    """Return the categories, those of one name as one, and their places by their ids."""
    places: dict[str, int] = {}
    categories: list[TruthCategory] = []
    labels: dict[Any, int] = {}
    for each in found if isinstance(found, list) else ():
        name = each.get("name") if isinstance(each, Mapping) else None
        if not isinstance(name, str) or not isinstance(each.get("id"), int | float | str):
            raise SpecError(f"{uri}: a category has no name or no id: {each!r}.")
        if name not in places:
            places[name] = len(categories)
            # As panopticapi reads it: 1 is a thing; a file without the key has things only.
            categories.append(TruthCategory(name, each.get("isthing", 1) == 1))
        labels[each["id"]] = places[name]
    if not categories:
        raise SpecError(f"{uri} has no categories, so nothing can be scored.")
    return categories, labels


def _read_images(found: Any, uri: str, find_size: FindSize) -> dict[Any, ImageAnnotations]:
    images: dict[Any, ImageAnnotations] = {}
    for each in found if isinstance(found, list) else ():
        number = each.get("id") if isinstance(each, Mapping) else None
        name = _name_of(each) if isinstance(each, Mapping) else None
        if not isinstance(number, int | float | str) or name is None:
            raise SpecError(f"{uri}: an image has no id or no file_name: {each!r}.")
        height, width = each.get("height"), each.get("width")
        if not (isinstance(height, int) and isinstance(width, int)):
            # Of an image that the run does not have, the size plays no part.
            height, width = find_size(name) or (0, 0)
        images[number] = ImageAnnotations(number, name, height, width, ())
    return images


def _name_of(image: Mapping[str, Any]) -> str | None:
    if isinstance(image.get("file_name"), str):
        return str(image["file_name"])
    return image["coco_url"].rsplit("/", 1)[-1] if isinstance(image.get("coco_url"), str) else None


def _read_segments(found: Sequence[Any], labels: Mapping[Any, int], where: str) -> list[TruthSegment]:
    segments = []
    seen: set[int] = set()
    for each in found:
        number = _whole(each.get("id")) if isinstance(each, Mapping) else None
        if number is None or number == VOID or number in seen:
            raise SpecError(f"{where} has a segment without an id of its own above 0 in segments_info: {each!r}.")
        category = each.get("category_id")
        if not isinstance(category, int | float | str) or category not in labels:
            raise SpecError(
                f"{where}: segment {number} is of the category {category}, which the list categories does not have."
            )
        seen.add(number)
        segments.append(TruthSegment(number, labels[category], bool(each.get("iscrowd", 0))))
    return segments


def _whole(number: Any) -> int | None:
    """Return a whole number, which a file may write as a decimal; None for anything else."""
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number if isinstance(number, int) else None


def read_segment_png(uri: str, storage: Storage, size: tuple[int, int] | None, *, image: str) -> Image:
    """Read a PNG of segments, as RGB; `segment_numbers` makes numbers of its colours.

    Args:
        size: (height, width) that it must have, in pixels; None where that is not known.
        image: names the image in messages.

    Raises:
        SpecError: it does not exist, is no PNG, or has another size.
        StorageError: it cannot be read.
    """
    try:
        payload = storage.read(uri)
    except NotFoundError as error:
        folder = uri.rsplit("/", 1)[0]
        raise SpecError(
            f"{uri} does not exist: --panoptic reads the segments of {image} from it. The PNGs belong into the folder "
            f"{folder}/, beside the JSON file and of its name without the ending."
        ) from error
    try:
        # Not `Image.open`, which refuses large images: the run has decoded one of this size.
        with PngImageFile(io.BytesIO(payload)) as png:
            if size is not None and (png.height, png.width) != size:
                raise SpecError(
                    f"{uri} has {png.width} x {png.height} pixels, and its image {image} {size[1]} x {size[0]}; the "
                    "segments cannot be compared."
                )
            png.load()
            # Not a second picture: one of 400 megapixels has 1.6 GB.
            return png if png.mode == "RGB" else png.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise SpecError(f"{uri} is not a PNG of segments: {error}.") from error


def segment_numbers(picture: Image) -> NDArray[np.int32]:
    """Return the numbers [H, W] of the segments of an RGB picture: red + 256 green + 65536 blue."""
    wide = np.asarray(picture).astype(np.int32)
    numbers: NDArray[np.int32] = wide[..., 0] | (wide[..., 1] << 8) | (wide[..., 2] << 16)
    return numbers
