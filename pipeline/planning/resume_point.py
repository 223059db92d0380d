"""ResumePoint: where an interrupted planning resumes, so that every image is planned exactly once."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.inputs.image_rows import refs_of
from pipeline.planning.manifest import Manifest, manifest_in, manifest_part_uri, read_manifest_part, uris_of
from pipeline.storage.damage import missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import name_order


class ResumePoint:
    """The written parts of a manifest whose planning was interrupted; implements `inputs.resume.ListedBefore`.

    The input may have changed since. The files of a folder are listed in the order of their names, so listing resumes
    after the last planned name. The members of a container and the entries of a listing have an order of their own;
    those that were planned are recognized by their image ids.

    Attributes:
        manifest: what the parts hold. It is the complete manifest when the last part is not full.
        parts: the number of parts.
    """

    def __init__(self, storage: Storage, folder: str, manifest: Manifest, parts: int, last: ImageRef) -> None:
        """`folder`: of the parts. `last`: the last image of the last part."""
        self.manifest = manifest
        self.parts = parts
        self._storage = storage
        self._folder = folder
        self._entry = last.container or last.uri

    @property
    def image_count(self) -> int:
        """Number of images that are planned."""
        return self.manifest.image_count

    @property
    def start_after(self) -> str:
        """A name shortly before the last entry's; a folder is listed from here on, the last entry included."""
        return self._entry[:-1]

    def is_before_last(self, uri: str) -> bool:
        """Return whether a file of a folder comes before the last entry."""
        return name_order(uri) < name_order(self._entry)

    def is_last(self, uri: str) -> bool:
        """Return whether a file of a folder is the last entry: the last planned file, or its container."""
        return uri == self._entry

    @cached_property
    def last_image_ids(self) -> set[int]:
        """The ids of the planned images of the last entry."""
        found: set[int] = set()
        for part in reversed(range(self.parts)):
            refs = refs_of(read_manifest_part(self._storage, manifest_part_uri(self._folder, part)))
            own = {image_id(ref.uri) for ref in refs if (ref.container or ref.uri) == self._entry}
            found |= own
            if len(own) < len(refs):
                break
        return found

    def all_image_ids(self) -> set[int]:
        """Return the ids of all planned images."""
        return set(self.image_ids().tolist())

    def image_ids(self) -> NDArray[np.int64]:
        """Return the ids of all planned images, in the manifest's order; [N] int64."""
        found = [np.empty(0, np.int64)]
        for part in range(self.parts):
            uris = uris_of(read_manifest_part(self._storage, manifest_part_uri(self._folder, part)))
            found.append(np.fromiter(map(image_id, uris), np.int64, len(uris)))
        return np.concatenate(found)


def find_resume_point(storage: Storage, folder: str, *, recorded_images: int = 0) -> ResumePoint | None:
    """Look for the parts of a manifest in `folder`; None when there is none to resume from.

    Args:
        recorded_images: the images that run.json says are planned. Their shards may be committed, so they must not be
            planned again.

    Raises:
        DamagedFileError: a part is damaged, or missing.
        StorageError: the parts cannot be read.
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
    """Count the parts up to the first one that is missing."""
    present = {listed.uri.rpartition("/")[2] for listed in storage.list(folder, missing_ok=True)}
    parts = 0
    while manifest_part_uri("", parts).rpartition("/")[2] in present:
        parts += 1
    return parts
