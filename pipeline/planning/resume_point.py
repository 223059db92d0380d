"""What an earlier session planned before it was cut off: where listing goes on, so that no image comes twice."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NotFoundError
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.planning.manifest import (
    Manifest,
    manifest_in,
    manifest_part_uri,
    read_manifest_part,
    refs_of,
    uris_of,
)
from pipeline.storage.damage import missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import name_order


class ResumePoint:
    """The whole parts of a manifest whose planning was cut off; they are frozen.

    The input may have changed since. What lies in a folder is listed in the order of its names, so that listing
    goes on behind the last name that was planned. The members of a container and the lines of a listing have an
    order of their own, and are told by their numbers.

    Attributes:
        manifest: what the parts hold; all there is when the last part is a short one.
        parts: how many there are.
    """

    def __init__(self, storage: Storage, folder: str, manifest: Manifest, parts: int, last: ImageRef) -> None:
        self.manifest = manifest
        self.parts = parts
        self._storage = storage
        self._folder = folder
        self._entry = last.container or last.uri

    @property
    def image_count(self) -> int:
        """Number of images that were planned."""
        return self.manifest.image_count

    @property
    def start_after(self) -> str:
        """A name shortly before the last entry's: a folder is listed from here on, and the last entry with it."""
        return self._entry[:-1]

    def is_before_last(self, uri: str) -> bool:
        """Tell whether a file of a folder comes before the one that was planned last."""
        return name_order(uri) < name_order(self._entry)

    def is_last(self, uri: str) -> bool:
        """Tell whether a file of a folder is the one that was planned last, or its container."""
        return uri == self._entry

    @cached_property
    def last_image_ids(self) -> set[int]:
        """The image ids that were planned of the container that came last."""
        numbers: set[int] = set()
        for part in reversed(range(self.parts)):
            refs = refs_of(read_manifest_part(self._storage, manifest_part_uri(self._folder, part)))
            own = {image_id(ref.uri) for ref in refs if (ref.container or ref.uri) == self._entry}
            numbers |= own
            if len(own) < len(refs):
                break
        return numbers

    def all_image_ids(self) -> set[int]:
        """Return the image ids of everything that was planned."""
        return set(self.image_ids().tolist())

    def image_ids(self) -> NDArray[np.int64]:
        """Return the image ids of everything that was planned, in its order; [N] int64."""
        found = [np.empty(0, np.int64)]
        for part in range(self.parts):
            names = uris_of(read_manifest_part(self._storage, manifest_part_uri(self._folder, part)))
            found.append(np.fromiter(map(image_id, names), np.int64, len(names)))
        return np.concatenate(found)


def find_resume_point(storage: Storage, folder: str, *, recorded_images: int = 0) -> ResumePoint | None:
    """Look for the parts of a manifest in `folder`; None when there is none to go on from.

    Args:
        recorded_images: how many images run.json says are planned; they may be worked on, and are never planned anew.

    Raises:
        DamagedFileError: a part is damaged, or missing.
        StorageError: they cannot be read.
    """
    parts = _count_parts(storage, folder)
    if not parts:
        if recorded_images:
            raise missing(manifest_part_uri(folder, 0), "it holds images of the run")
        return None
    table = read_manifest_part(storage, manifest_part_uri(folder, parts - 1))
    manifest = manifest_in(table)
    if manifest is None or not len(table):
        return None
    if manifest.image_count < recorded_images:
        raise missing(manifest_part_uri(folder, parts), "it holds images of the run")
    return ResumePoint(storage, folder, manifest, parts, refs_of(table.slice(len(table) - 1))[0])


def _count_parts(storage: Storage, folder: str) -> int:
    try:
        present = {listed.uri.rpartition("/")[2] for listed in storage.list(folder)}
    except NotFoundError:
        return 0
    parts = 0
    while manifest_part_uri("", parts).rpartition("/")[2] in present:
        parts += 1
    return parts
