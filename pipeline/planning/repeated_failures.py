"""RepeatedFailures: which images of an incremental run were not ok before it, and so are no new failures.

The manifest records that for each image. For a manifest of an older release, the rows of the earlier runs are read.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.inputs.image_rows import ImageRows, refs_of
from pipeline.inputs.shard import Shard
from pipeline.output.layout import manifest_folder
from pipeline.output.results import Results
from pipeline.output.run_record import age_order, load_record
from pipeline.planning.earlier_rows import read_history
from pipeline.planning.history import History, build_history
from pipeline.planning.manifest import Manifest, manifest_part_uri, read_manifest_part
from pipeline.planning.selection import failed_before
from pipeline.storage.storage import Storage


class RepeatedFailures:
    """Finds the images of a run that were not ok before it; reads nothing for a full run."""

    def __init__(self, storage: Storage, output_uri: str, run: str) -> None:
        self._storage = storage
        self._output_uri = output_uri
        self._run = run

    def with_flags(self, shard: Shard) -> Shard:
        """Return the shard with `failed_before` set on each image, also when its manifest is of an older release."""
        images = shard.images
        if isinstance(images, ImageRows):
            has_flags = images.is_filled("failed_before")
        else:
            has_flags = all(ref.failed_before is not None for ref in images)
        return shard if has_flags else replace(shard, images=tuple(self._with_flags(list(images))))

    def image_ids(self, manifest: Manifest) -> NDArray[np.int64]:
        """Return the image ids of all images that were not ok before, ascending; [N] int64.

        Raises:
            StorageError: the manifest, or the tables of earlier runs, cannot be read.
        """
        found = [np.empty(0, np.int64)]
        if not manifest.selection or not manifest.shard_count:
            return found[0]
        folder = manifest_folder(self._output_uri, self._run)
        for part in range(manifest.layout.find(manifest.shard_count - 1)[0] + 1):
            refs = refs_of(read_manifest_part(self._storage, manifest_part_uri(folder, part)))
            if any(ref.failed_before is None for ref in refs):
                refs = self._with_flags(refs)
            found.append(np.array([image_id(ref.uri) for ref in refs if ref.failed_before], np.int64))
        return np.sort(np.concatenate(found))

    def _with_flags(self, refs: list[ImageRef]) -> list[ImageRef]:
        flags = failed_before(self._history, refs).tolist()
        return [replace(ref, failed_before=flag) for ref, flag in zip(refs, flags, strict=True)]

    @cached_property
    def _history(self) -> History:
        record = load_record(self._storage, self._output_uri, self._run)
        if record is None:
            return build_history([])
        return read_history(Results(self._output_uri, self._storage, before=age_order(record)))[1]
