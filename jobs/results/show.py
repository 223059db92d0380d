"""`htc show`: overlays of a run's instances, one PNG per image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.results.image_lookup import ImageLookup, ImageRecord
from jobs.results.overlay import DrawnInstance, draw_overlay
from jobs.results.query import decode_mask
from jobs.terminal.console import say, write_line, write_table
from jobs.terminal.output_file import atomic_output, check_local
from pipeline.errors import HtcError, InputError, SpecError
from pipeline.inputs.decode import decode_image
from pipeline.inputs.formats.detect import IMAGE_SUFFIXES
from pipeline.inputs.read import read_image
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from pipeline.storage.uris import suffix_of
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

DEFAULT_SAMPLE = 16
# Low enough to keep instances that a person would accept, high enough to keep clutter out of the overlay.
DEFAULT_MIN_SCORE = 0.3
# Instances drawn per image if no score reaches the default, or scores mean nothing.
FALLBACK_INSTANCES = 5
MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class Overlay:
    """One PNG: its file, its image's URI and the number of instances on it."""

    path: Path
    uri: str
    instances: int


def show_overlays(
    output_uri: str,
    folder: Path,
    *,
    uris: Sequence[str] = (),
    sample: int | None = None,
    min_score: float | None = None,
    run: str | None = None,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Draw images of one run with their instances, and list the overlays.

    Args:
        folder: for the PNGs; created if it is missing.
        uris: whole URIs or ends of them; without any, `sample` images, 16 by default.
        min_score: instances that score less are left out, 0.3 by default; if no instance reaches the default, or the
            weights are untrained, the five best of each image are drawn, with a message.
        run: None takes the newest.

    Returns:
        The exit code: 1 if an image could not be drawn, else 0.

    Raises:
        SpecError: both `uris` and `sample` were given, or an overlay cannot be written.
        InputError: no such run, or no image of that URI.
    """
    if uris and sample is not None:
        raise SpecError("Give either --uri or --sample, not both.")
    check_local(folder)
    storage = Storage(storage_section)
    source = ImageLookup(open_results(output_uri, storage), run)
    images = source.find(uris) if uris else source.sample(DEFAULT_SAMPLE if sample is None else sample)
    instances = [source.instances(image) for image in images]
    shown = _select(instances, min_score, is_trained=source.is_trained)
    _make_folder(folder)
    overlays = []
    for image, rows, path in zip(images, shown, overlay_paths([each.uri for each in images], folder), strict=True):
        try:
            _draw(source, image, rows, path, storage)
        except SpecError:
            raise
        except HtcError as error:
            say(f"Not drawn: {image.uri}: {error}")
        else:
            overlays.append(Overlay(path, image.uri, len(rows)))
    _report(overlays, folder)
    return 0 if len(overlays) == len(images) else 1


def overlay_paths(uris: Sequence[str], folder: Path) -> list[Path]:
    """Return a PNG's path for each URI, named after its last part: safe on every file system, unique in any case."""
    taken: set[str] = set()
    paths = []
    for uri in uris:
        # The member of a tar is before the first "::", its container after it.
        last = uri.removeprefix("tar://").split("::")[0].rstrip("/").rsplit("/", 1)[-1]
        suffix = suffix_of(last)
        stem = last[: -len(suffix)] if suffix in IMAGE_SUFFIXES else last
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:MAX_NAME_CHARS] or "image"
        candidate, repeat = safe, 1
        while candidate.lower() in taken:
            repeat += 1
            candidate = f"{safe}-{repeat}"
        taken.add(candidate.lower())
        paths.append(folder / f"{candidate}.png")
    return paths


def _select(
    instances: Sequence[Sequence[Mapping[str, Any]]], min_score: float | None, *, is_trained: bool
) -> list[Sequence[Mapping[str, Any]]]:
    """Return the instances to draw of each image; print a message if none reaches the score."""
    threshold = DEFAULT_MIN_SCORE if min_score is None else min_score
    best = max((row["score"] for rows in instances for row in rows), default=None)
    if best is None:
        say("These images have no instances; they are drawn as they are.")
    elif min_score is None and not is_trained:
        say(
            f"The weights are untrained, so scores mean nothing: the best {FALLBACK_INSTANCES} of each image are drawn."
        )
        return [rows[:FALLBACK_INSTANCES] for rows in instances]
    elif min_score is None and best < threshold:
        say(
            f"No instance reaches {threshold:g} (the best score is {best:.3f}); "
            f"the best {FALLBACK_INSTANCES} of each image are drawn."
        )
        return [rows[:FALLBACK_INSTANCES] for rows in instances]
    elif best < threshold:
        say(f"No instance reaches {threshold:g}; the best score is {best:.3f}.")
    return [[row for row in rows if row["score"] >= threshold] for rows in instances]


def _draw(
    source: ImageLookup, image: ImageRecord, rows: Sequence[Mapping[str, Any]], path: Path, storage: Storage
) -> None:
    """Draw one image and write its PNG.

    Raises:
        HtcError: the image can no longer be read, or is not the one that was segmented.
        SpecError: the PNG cannot be written.
    """
    if image.status != "ok":
        raise InputError(f"{image.status}: {image.error}")
    # The run has decoded it before, so its size is safe.
    pixels = decode_image(read_image(source.locate(image), storage), max_pixels=_pixels(image))
    height, width = pixels.shape[:2]
    if (width, height) != (image.width, image.height):
        raise InputError(f"it has {width} x {height} pixels now and had {image.width} x {image.height} in the run.")
    overlay = draw_overlay(pixels, [_drawn_instance(row) for row in rows])
    with atomic_output(path) as sink:
        overlay.save(sink, format="PNG")


def _pixels(image: ImageRecord) -> int:
    return max(1, (image.width or 0) * (image.height or 0))


def _drawn_instance(row: Mapping[str, Any]) -> DrawnInstance:
    bbox = row["bbox"]
    return DrawnInstance(
        category=row["category"],
        score=row["score"],
        box_xywh=(bbox["x"], bbox["y"], bbox["width"], bbox["height"]),
        load_mask=None if row["mask"] is None else partial(decode_mask, row),
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"The folder {folder} cannot be created: {error.strerror or error}.") from None


def _report(overlays: Sequence[Overlay], folder: Path) -> None:
    if overlays:
        rows = [(each.path.name, str(each.instances), each.uri) for each in overlays]
        write_table(["overlay", "instances", "image"], rows, alignments=["left", "right", "left"])
    write_line(f"{count_of(len(overlays), 'overlay')} in {folder}")
