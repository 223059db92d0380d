"""Planner: lists a run's input and writes the frozen manifest, part by part.

A part never changes once it is written, so that workers can do its shards while the rest of the input is being
listed, and so that interrupted planning resumes after the last part.
"""

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain, islice, takewhile
from typing import Any

from pipeline.errors import AccessDeniedError, InputError, NotFoundError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.job_spec.job import InputSection
from pipeline.planning.incremental import IncrementalPlan
from pipeline.planning.manifest import Manifest, PartLayout, encode_manifest_part, manifest_part_uri
from pipeline.planning.resume_point import ResumePoint
from pipeline.planning.shard_size import MAX_SHARD_IMAGES, ShardSizing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import display_uri


class ManifestCounts:
    """Counts the listed images; starts with the counts of an interrupted planning, if there was one.

    Attributes:
        layout: which shards are in which part; settled before the first part is written.
        images: images counted so far.
        notes: what listing understood and left out.
        deleted: images of earlier runs that are no longer listed; set at the end of an incremental run's planning.
    """

    def __init__(self, planned: ResumePoint | None = None, incremental: IncrementalPlan | None = None) -> None:
        before = planned.manifest if planned else None
        self.layout = before.layout if before else PartLayout.of(MAX_SHARD_IMAGES)
        self.images = before.image_count if before else 0
        self._listed_bytes = before.listed_bytes if before else 0
        self._unsized_images = before.unsized_images if before else 0
        # An incremental run lists the whole input again, so its notes start empty.
        self.notes = _notes_of(before) if before and incremental is None else SourceNotes()
        self._incremental = incremental
        self.deleted = 0

    def count(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass the images on and count them."""
        for ref in refs:
            self.images += 1
            self._listed_bytes += ref.bytes or 0
            self._unsized_images += ref.bytes is None
            yield ref

    def manifest(self, *, is_planned: bool) -> Manifest:
        """Return the manifest of the images counted so far; `is_planned`: whether these are all."""
        return Manifest(
            image_count=self.images,
            shard_count=-(-self.images // self.layout.shard_images),
            shard_images=self.layout.shard_images,
            part_shards=self.layout.part_shards,
            listed_bytes=self._listed_bytes,
            unsized_images=self._unsized_images,
            duplicates=self.notes.duplicates,
            skipped=dict(self.notes.skipped.most_common()),
            without_images=dict(self.notes.without_images),
            columns=dict(self.notes.columns.most_common()),
            refused=dict(self.notes.refused.most_common()),
            links=self.notes.links,
            link=display_uri(self.notes.link),
            listing=display_uri(self.notes.listing),
            signed=self.notes.signed,
            first_part_shards=self.layout.first_shards,
            is_planned=is_planned,
            selection={} if self._incremental is None else self._incremental.selection.counts_dict(self.deleted),
        )


def _notes_of(manifest: Manifest) -> SourceNotes:
    return SourceNotes(
        manifest.duplicates,
        Counter(manifest.skipped),
        Counter(manifest.refused),
        manifest.links,
        manifest.link,
        manifest.listing,
        manifest.signed,
        dict(manifest.without_images),
        Counter(manifest.columns),
    )


class Planner:
    """Lists a run's input and writes its manifest into a folder, streaming.

    The constructor finds the first image and writes nothing.

    Attributes:
        manifest: what is planned so far.
        record: what run.json holds besides the manifest, see `manifest.encode_manifest_part`; set it before `parts`.
    """

    def __init__(
        self,
        section: InputSection,
        storage: Storage,
        output_uri: str,
        folder: str,
        *,
        sizing: ShardSizing,
        planned: ResumePoint | None = None,
        incremental: IncrementalPlan | None = None,
    ) -> None:
        """Find the first image, or the first after those of an interrupted planning.

        Args:
            section: the input. output_uri: the run's own output, which is not input.
            folder: the manifest's.
            sizing: images per shard, for a manifest that has no part yet.
            planned: where interrupted planning resumes.
            incremental: chooses from the listing. It lists the whole input again when planning resumes, because the
                manifest does not hold the images that it leaves out.

        Raises:
            InputError: the input holds no image, or cannot be listed.
            StorageError: storage failed.
        """
        self._storage = storage
        self._folder = folder
        self._planned = planned
        self._incremental = incremental
        self._sizing = sizing
        self._counts = ManifestCounts(planned, incremental)
        refs = list_input(section, storage, output_uri, self._counts.notes, None if incremental else planned)
        first = list(islice(refs, 1))
        is_empty = not first and not planned
        # All images of an input that earlier runs did may be gone: `find_deleted` judges that.
        if is_empty and not (incremental and incremental.known_images):
            raise no_images_error(section, self._counts.notes)
        refs = chain(first, refs)
        if incremental is not None:
            if planned is not None:
                incremental.selection.resume(planned.image_ids(), planned.manifest.selection)
            refs = incremental.selection.choose(refs)
        self.record: Mapping[str, Any] | None = None
        self._refs = refs
        self.manifest = planned.manifest if planned else self._counts.manifest(is_planned=False)

    def parts(self, is_stopped: threading.Event | None = None) -> Generator[Manifest]:
        """Write the parts one by one; after each, yield the manifest so far, and at the end the complete one.

        Args:
            is_stopped: once it is set, nothing more is written or yielded.

        Raises:
            InputError: the input cannot be listed.
            StorageError: a part cannot be written.
        """
        counts, number = self._counts, self._planned.parts if self._planned else 0
        stopped = is_stopped or threading.Event()
        images: Iterator[ImageRef] = takewhile(lambda _: not stopped.is_set(), self._refs)
        if self._planned is None:
            size, images = self._sizing.choose(images)
            counts.layout = PartLayout.of(size)
        images = counts.count(images)
        is_full = True
        while is_full and (refs := list(islice(images, counts.layout.images(number)))) and not stopped.is_set():
            # A part that is not full is the last one.
            is_full = len(refs) == counts.layout.images(number)
            if not is_full and not self._conclude(stopped):
                return
            self.manifest = counts.manifest(is_planned=not is_full)
            payload = encode_manifest_part(refs, counts.images - len(refs), self.manifest, self.record)
            self._storage.write(manifest_part_uri(self._folder, number), payload)
            number += 1
            if is_full:
                yield self.manifest
        if not stopped.is_set() and (not is_full or self._conclude(stopped)):
            self.manifest = counts.manifest(is_planned=True)
            yield self.manifest

    def _conclude(self, stopped: threading.Event) -> bool:
        """Write the deletion records, before the manifest says that it is complete; return False when stopped."""
        if self._incremental is not None and not stopped.is_set():
            self._counts.deleted = self._incremental.record_deletions(stopped)
        return not stopped.is_set()


def clear_parts(storage: Storage, folder: str) -> None:
    """Remove the parts of a manifest, if there are any."""
    for uri in [listed.uri for listed in storage.list(folder, missing_ok=True)]:
        storage.delete(uri)


def list_input(
    section: InputSection,
    storage: Storage,
    output_uri: str,
    notes: SourceNotes | None = None,
    planned: ResumePoint | None = None,
) -> Iterator[ImageRef]:
    """List a run's input without the run's own output; see `inputs.listing.list_images`.

    Raises:
        InputError: the input cannot be listed.
        StorageError: storage failed.
    """
    try:
        yield from list_images(section, storage, exclude=[output_uri], notes=notes, listed_before=planned)
    except (NotFoundError, AccessDeniedError) as error:
        raise InputError(f"The input cannot be listed: {error}") from error


def require_images(section: InputSection, storage: Storage, output_uri: str) -> None:
    """Make sure that the input holds an image; lists no further than the first one.

    Raises:
        InputError: the input holds no image, or cannot be listed.
    """
    notes = SourceNotes()
    if next(list_input(section, storage, output_uri, notes), None) is None:
        raise no_images_error(section, notes)


def require_input(section: InputSection, storage: Storage, output_uri: str) -> None:
    """Make sure that the input can be listed; it may be empty.

    Raises:
        InputError: it cannot be listed.
    """
    next(list_input(section, storage, output_uri), None)


def sign_again(section: InputSection, storage: Storage, output_uri: str) -> None:
    """Read the input's signed addresses again for a resumed run: they are kept in memory only, never on disk.

    Raises:
        InputError: the listing cannot be read any more.
    """
    for _ in list_input(section, storage, output_uri):
        pass


def no_images_error(section: InputSection, notes: SourceNotes) -> InputError:
    """Return the error for an input without images; `notes`: what listing found instead."""
    pattern = f" that match {section.glob}" if section.glob else ""
    others = ", ".join(f"{count} {suffix}" for suffix, count in notes.skipped.most_common(5))
    found = f"; the files there are not images ({others})" if others else ""
    without = notes.without_images
    found += "".join(f"; {uri}: {instead}" for uri, instead in without.items())
    way_out = " Name the column with images (--image-column) or with their names (--uri-column)." if without else ""
    return InputError(f"There are no images{pattern} in {section.uri}{found}.{way_out}")
