"""`htc show`: pictures of what a run found, one PNG per photo."""

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
# Low enough to keep what a person would still call found, high enough to keep clutter out of the picture.
DEFAULT_MIN_SCORE = 0.3
# What is drawn of each photo when the default cannot tell what is worth drawing.
FALLBACK_INSTANCES = 5
MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class Picture:
    """One PNG: its file, its photo's uri and the number of instances on it."""

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
    """Draw photos of one run with their instances and list the pictures.

    Args:
        folder: for the PNGs; made if it is missing.
        uris: whole uris or ends of them; without any, `sample` images, 16 by default.
        min_score: instances scoring less are left out, 0.3 by default; when nothing at all reaches the default,
            or the weights are untrained, the five best of each photo are drawn, and that is said.
        run: the newest when None.

    Returns:
        The exit code: 1 when a photo could not be drawn, else 0.

    Raises:
        SpecError: both uris and a sample were asked for, or a picture cannot be written.
        InputError: no such run, or no image of that uri.
    """
    if uris and sample is not None:
        raise SpecError("Give either --uri or --sample, not both.")
    check_local(folder)
    storage = Storage(storage_section)
    source = ImageLookup(open_results(output_uri, storage), run)
    photos = source.find(uris) if uris else source.sample(DEFAULT_SAMPLE if sample is None else sample)
    instances = [source.instances(photo) for photo in photos]
    shown = _select(instances, min_score, is_trained=source.is_trained)
    _make_folder(folder)
    pictures = []
    for photo, rows, path in zip(photos, shown, overlay_paths([each.uri for each in photos], folder), strict=True):
        try:
            _draw(source, photo, rows, path, storage)
        except SpecError:
            raise
        except HtcError as error:
            say(f"Not drawn: {photo.uri}: {error}")
        else:
            pictures.append(Picture(path, photo.uri, len(rows)))
    _report(pictures, folder)
    return 0 if len(pictures) == len(photos) else 1


def overlay_paths(uris: Sequence[str], folder: Path) -> list[Path]:
    """Name a PNG for each uri after its last part: safe on every file system, none twice, whatever the case."""
    taken: set[str] = set()
    paths = []
    for uri in uris:
        # A tar's member comes before the first "::", its container after it.
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
    """Keep what is drawn of each photo's instances; say so when nothing qualifies."""
    threshold = DEFAULT_MIN_SCORE if min_score is None else min_score
    best = max((row["score"] for rows in instances for row in rows), default=None)
    if best is None:
        say("These photos have no instances at all; they are drawn as they are.")
    elif min_score is None and not is_trained:
        say(f"The weights are untrained, so scores mean nothing: the best {FALLBACK_INSTANCES} of each photo.")
        return [rows[:FALLBACK_INSTANCES] for rows in instances]
    elif min_score is None and best < threshold:
        say(
            f"No instance reaches {threshold:g} (the best score is {best:.3f}); "
            f"the best {FALLBACK_INSTANCES} of each photo are drawn."
        )
        return [rows[:FALLBACK_INSTANCES] for rows in instances]
    elif best < threshold:
        say(f"No instance reaches {threshold:g}; the best score is {best:.3f}.")
    return [[row for row in rows if row["score"] >= threshold] for rows in instances]


def _draw(
    source: ImageLookup, photo: ImageRecord, rows: Sequence[Mapping[str, Any]], path: Path, storage: Storage
) -> None:
    """Draw one photo and write its PNG.

    Raises:
        HtcError: the photo cannot be read any more, or is not the one that was segmented.
        SpecError: the PNG cannot be written.
    """
    if photo.status != "ok":
        raise InputError(f"{photo.status}: {photo.error}")
    # The run has decoded it before, so its size is known to be harmless.
    pixels = decode_image(read_image(source.locate(photo), storage), max_pixels=_pixels(photo))
    height, width = pixels.shape[:2]
    if (width, height) != (photo.width, photo.height):
        raise InputError(f"it has {width} x {height} pixels now and had {photo.width} x {photo.height} in the run.")
    picture = draw_overlay(pixels, [_drawn_instance(row) for row in rows])
    with atomic_output(path) as sink:
        picture.save(sink, format="PNG")


def _pixels(photo: ImageRecord) -> int:
    return max(1, (photo.width or 0) * (photo.height or 0))


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
        raise SpecError(f"The folder {folder} cannot be made: {error.strerror or error}.") from None


def _report(pictures: Sequence[Picture], folder: Path) -> None:
    if pictures:
        rows = [(each.path.name, str(each.instances), each.uri) for each in pictures]
        write_table(["picture", "instances", "photo"], rows, alignments=["left", "right", "left"])
    write_line(f"{count_of(len(pictures), 'picture')} in {folder}")
