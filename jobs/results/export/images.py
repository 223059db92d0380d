"""Puts the exported images beside their annotations, as links or copies."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.results.export.writers import ExportFolder
from pipeline.errors import HtcError, NotFoundError, SpecError
from pipeline.inputs.read import fetch_image
from pipeline.output.layout import run_folder
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.storage.local import etag_of
from pipeline.storage.uris import display_uri, is_local, join

if TYPE_CHECKING:
    from jobs.results.export.selection import Selection
    from pipeline.inputs.image_ref import ImageRef
    from pipeline.output.results import Results

_NO_FILE = "{n} of the images not linked: no local files as they were in the run (--image-files copy)"
_CHANGED = "{n} of the images not put there: they are gone, or others than those of the run"


class Images(StrEnum):
    """How images come into the folder: `auto` links local files where the format needs them beside."""

    AUTO = "auto"
    NONE = "none"
    LINK = "link"
    COPY = "copy"


def place_images(
    selection: "Selection", folder: ExportFolder, images: Images, results: "Results", *, below: str = "images"
) -> dict[int, str]:
    """Link or copy the images to their file names below a subfolder.

    An image that is gone or has changed since the run is not put there, and counted: its instances would be on another
    picture.

    Returns:
        Of the images there, the absolute path that they will have, by the image's number.

    Raises:
        SpecError: a file cannot be written.
    """
    if images is Images.NONE:
        return {}
    if images is Images.COPY:
        return dict(_copies(selection, folder, results, below))
    return dict(_links(selection, folder, below))


def local_paths(selection: "Selection") -> dict[int, str]:
    """Return the absolute path of each image that is a local file as it was, by its number."""
    paths = {}
    for row in _rows(selection):
        if (path := _unchanged_file(row)) is not None:
            paths[int(row["number"])] = str(path)
    return paths


def _rows(selection: "Selection") -> Iterator[dict[str, Any]]:
    sql = (
        "SELECT number, uri, run, file, shard, etag FROM exported_images "
        "JOIN exported_versions USING (image_id, uri, run) ORDER BY run, shard, number"
    )
    for batch in selection.batches(sql):
        yield from batch.to_pylist()


def _unchanged_file(row: dict[str, Any]) -> Path | None:
    uri = str(row["uri"])
    if not is_local(uri) or "::" in uri or "#row=" in uri:
        return None
    try:
        status = Path(uri).stat()
    except OSError:
        return None
    return Path(uri).absolute() if row["etag"] in (None, etag_of(status)) else None


def _links(selection: "Selection", folder: ExportFolder, below: str) -> Iterator[tuple[int, str]]:
    for row in _rows(selection):
        path = _unchanged_file(row)
        if path is None:
            folder.counts[_NO_FILE] += 1
            continue
        name = f"{below}/{row['file']}"
        link = folder.file(name)
        try:
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
            link.symlink_to(path)
        except OSError as error:
            raise SpecError(f"{folder.final / name} cannot be linked: {error.strerror or error}.") from error
        yield int(row["number"]), str((folder.final / name).absolute())


def _copies(selection: "Selection", folder: ExportFolder, results: "Results", below: str) -> Iterator[tuple[int, str]]:
    reader: ManifestReader | None = None
    refs: dict[str, ImageRef] = {}
    at: tuple[str, int] | None = None
    records = {record.run: record for record in results.records}
    for row in _rows(selection):
        place = (str(row["run"]), int(row["shard"]))
        if at is None or at[0] != place[0]:
            manifest = join(run_folder(results.output_uri, place[0]), "manifest")
            reader = ManifestReader(results.storage, manifest, Manifest.from_dict(records[place[0]].manifest))
        if at != place and reader is not None:
            refs = {display_uri(ref.uri): ref for ref in reader.read_shard(place[1]).images}
            at = place
        name = f"{below}/{row['file']}"
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
        yield int(row["number"]), str((folder.final / name).absolute())
