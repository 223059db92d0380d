"""Puts the exported images beside their annotations, as links or copies."""

import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.results.export.writers import ExportFolder
from pipeline.errors import HtcError, NotFoundError, SpecError
from pipeline.inputs.read import fetch_image
from pipeline.output.layout import run_folder
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.storage.local import etag_of
from pipeline.storage.uris import display_uri, is_local, join

if TYPE_CHECKING:
    from jobs.results.export.selection import ExportedImage, Selection
    from pipeline.inputs.image_ref import ImageRef
    from pipeline.output.results import Results

_NO_FILE = "{n} of the images not linked: they are no local files of their own (--image-files copy)"
_CHANGED = "{n} of the images not put there: they are gone, or others than those of the run"


class Images(StrEnum):
    """How images come into the folder: `auto` links local files where the format needs them beside."""

    AUTO = "auto"
    NONE = "none"
    LINK = "link"
    COPY = "copy"


FindPath = Callable[["ExportedImage"], str | None]
"""Returns the path of an image's file, absolute; None where there is none."""


def place_images(
    selection: "Selection", folder: ExportFolder, images: Images, results: "Results", *, below: str = "images"
) -> FindPath:
    """Link or copy the images to their file names below a subfolder.

    An image that is gone or has changed since the run is not put there, and counted: its instances would be on another
    picture.

    Raises:
        SpecError: a file cannot be written.
    """
    # By number, from 1.
    is_there = np.zeros(selection.images + 1, np.bool_)
    if images is not Images.NONE:
        placed = (
            _copies(selection, folder, results, below) if images is Images.COPY else _links(selection, folder, below)
        )
        for number in placed:
            is_there[number] = True
    base = (folder.final / below).absolute()
    return lambda image: str(base / image.file) if is_there[image.number] else None


def local_path_of(image: "ExportedImage") -> str | None:
    """Return the absolute path of an image that is a local file as it was in the run."""
    path = _unchanged_file(image.uri, image.etag)
    return None if path is None else str(path)


def _unchanged_file(uri: str, etag: str | None) -> Path | None:
    if not is_local(uri) or "::" in uri or "#row=" in uri:
        return None
    try:
        status = Path(uri).stat()
    except OSError:
        return None
    return Path(uri).absolute() if etag in (None, etag_of(status)) else None


def _links(selection: "Selection", folder: ExportFolder, below: str) -> Iterator[int]:
    for row in selection.image_rows():
        path = _unchanged_file(str(row["uri"]), row["etag"])
        if path is None:
            is_file = is_local(str(row["uri"])) and "::" not in row["uri"] and "#row=" not in row["uri"]
            # A copy would not help where the file is gone or another one now.
            folder.counts[_CHANGED if is_file else _NO_FILE] += 1
            continue
        name = f"{below}/{row['stem']}{row['suffix']}"
        link = folder.file(name)
        try:
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
            link.symlink_to(path)
        except OSError as error:
            raise SpecError(f"{folder.final / name} cannot be linked: {error.strerror or error}.") from error
        yield int(row["number"])


def _copies(selection: "Selection", folder: ExportFolder, results: "Results", below: str) -> Iterator[int]:
    reader: ManifestReader | None = None
    refs: dict[str, ImageRef] = {}
    at: tuple[str, int] | None = None
    records = {record.run: record for record in results.records}
    for row in selection.image_rows():
        place = (str(row["run"]), int(row["shard"]))
        if at is None or at[0] != place[0]:
            manifest = join(run_folder(results.output_uri, place[0]), "manifest")
            reader = ManifestReader(results.storage, manifest, Manifest.from_dict(records[place[0]].manifest))
        if at != place and reader is not None:
            refs = {display_uri(ref.uri): ref for ref in reader.read_shard(place[1]).images}
            at = place
        name = f"{below}/{row['stem']}{row['suffix']}"
        try:
            if row["uri"] not in refs:
                raise NotFoundError(f"{row['uri']} is not in the manifest of run {place[0]}.")
            payload, version = fetch_image(refs[row["uri"]], results.storage)
        except HtcError:
            folder.counts[_CHANGED] += 1
            continue
        if row["etag"] is not None and version.etag is not None and version.etag != row["etag"]:
            folder.counts[_CHANGED] += 1
            continue
        folder.write(name, payload)
        yield int(row["number"])
