"""From an input to a frozen manifest: lists the images and writes them down, part by part.

The parts that are written never change, so that their shards can be worked on while listing goes on, and so that
planning that is cut off goes on behind them.
"""

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain, islice, takewhile
from typing import Any

from pipeline.errors import AccessDeniedError, InputError, NotFoundError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.job_spec.job import ComputeSection, JobSpec
from pipeline.planning.incremental import IncrementalPlan
from pipeline.planning.manifest import Manifest, PartLayout, encode_part, part_uri
from pipeline.planning.resume_point import ResumePoint
from pipeline.planning.shard_size import MAX_SHARD_IMAGES, look_ahead
from pipeline.planning.worker_plan import expected_workers
from pipeline.storage.storage import Storage
from pipeline.storage.uris import display_uri


class ManifestCounts:
    """Counts images as they pass by, beginning with those that were planned before."""

    def __init__(self, planned: ResumePoint | None = None, incremental: IncrementalPlan | None = None) -> None:
        before = planned.manifest if planned else None
        # Decided with the first part.
        self.layout = before.layout if before else PartLayout.of(MAX_SHARD_IMAGES)
        self.images = before.image_count if before else 0
        self._listed_bytes = before.listed_bytes if before else 0
        self._unsized_images = before.unsized_images if before else 0
        # An incremental run lists everything again, and so it takes its notes again.
        is_noted = before is not None and incremental is None
        self.notes = _notes_of(before) if before and is_noted else SourceNotes()
        self._incremental = incremental
        self.deleted = 0

    def count(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        for ref in refs:
            self.images += 1
            self._listed_bytes += ref.bytes or 0
            self._unsized_images += ref.bytes is None
            yield ref

    def manifest(self, *, is_planned: bool) -> Manifest:
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
            selection={} if self._incremental is None else self._incremental.selection.told(self.deleted),
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

    It is built when the first image is found, and has written nothing by then.
    """

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        folder: str,
        *,
        planned: ResumePoint | None = None,
        incremental: IncrementalPlan | None = None,
        workers: int | None = None,
    ) -> None:
        """Find the first image, or the first behind those that were `planned` before.

        Args:
            incremental: chooses from the listing; that is begun anew after planning was cut off, because what it
                leaves out stands in no manifest.
            workers: how many the run will have, for shards of automatic size; None for as many as this machine takes.

        Raises:
            InputError: the input holds no image, or cannot be listed.
            StorageError: storage failed.
        """
        self._storage = storage
        self._folder = folder
        self._planned = planned
        self._incremental = incremental
        self._compute = spec.compute
        self._workers = workers
        self._tally = ManifestCounts(planned, incremental)
        refs = list_input(spec, storage, self._tally.notes, None if incremental else planned)
        first = list(islice(refs, 1))
        is_empty = not first and not planned
        # All images of an input that had some may be gone: that is judged where deletions are.
        if is_empty and not (incremental and incremental.known_images):
            check_not_empty(spec, self._tally)
        refs = chain(first, refs)
        if incremental is not None:
            if planned is not None:
                incremental.selection.go_on(planned.numbers(), planned.manifest.selection)
            refs = incremental.selection.choose(refs)
        # What run.json holds besides the manifest, see `manifest.encode_part`.
        self.record: Mapping[str, Any] | None = None
        self._refs = refs
        self.manifest = planned.manifest if planned else self._tally.manifest(is_planned=False)

    def parts(self, is_stopped: threading.Event | None = None) -> Generator[Manifest]:
        """Write the parts one by one; after each, yield what is planned by then, and at last what all is.

        Args:
            is_stopped: once it is set, nothing is written or yielded any more.

        Raises:
            InputError: the input cannot be listed.
            StorageError: a part cannot be written.
        """
        tally, number = self._tally, self._planned.parts if self._planned else 0
        stopped = is_stopped or threading.Event()
        images: Iterator[ImageRef] = takewhile(lambda _: not stopped.is_set(), self._refs)
        if self._planned is None:
            images = self._settle_layout(images)
        images = tally.count(images)
        is_full = True
        while is_full and (refs := list(islice(images, tally.layout.images(number)))) and not stopped.is_set():
            # Behind a part that is not full there is nothing.
            is_full = len(refs) == tally.layout.images(number)
            if not is_full and not self._conclude(stopped):
                return
            self.manifest = tally.manifest(is_planned=not is_full)
            payload = encode_part(refs, tally.images - len(refs), self.manifest, self.record)
            self._storage.write(part_uri(self._folder, number), payload)
            number += 1
            if is_full:
                yield self.manifest
        if not stopped.is_set() and (not is_full or self._conclude(stopped)):
            self.manifest = tally.manifest(is_planned=True)
            yield self.manifest

    def _settle_layout(self, refs: Iterator[ImageRef]) -> Iterator[ImageRef]:
        """Decide how many images a shard has; returns the listing from its beginning."""
        size, listed = settle_shard_images(self._compute, refs, self._workers)
        self._tally.layout = PartLayout.of(size)
        return listed

    def _conclude(self, stopped: threading.Event) -> bool:
        """Write what is gone from the input, before the manifest says that it is whole; False when stopped."""
        if self._incremental is not None and not stopped.is_set():
            self._tally.deleted = self._incremental.mark_deleted(stopped)
        return not stopped.is_set()


def plan_run(spec: JobSpec, storage: Storage, folder: str) -> Manifest:
    """List the input and write the whole manifest into `folder`.

    Parts left there by another planning are removed first.

    Raises:
        InputError: the input holds no image, or cannot be listed.
        StorageError: the manifest cannot be written.
    """
    planner = Planner(spec, storage, folder)
    clear_parts(storage, folder)
    for _ in planner.parts():
        pass
    return planner.manifest


def clear_parts(storage: Storage, folder: str) -> None:
    """Remove the parts of a manifest, if there are any."""
    for uri in [listed.uri for listed in storage.list(folder, missing_ok=True)]:
        storage.delete(uri)


def require_images(spec: JobSpec, storage: Storage) -> None:
    """Look for one image in the input; as cheap as its listing begins.

    Raises:
        InputError: the input holds no image, or cannot be listed.
    """
    Planner(spec, storage, "")


def require_input(spec: JobSpec, storage: Storage) -> None:
    """Begin to list the input, which may be empty.

    Raises:
        InputError: it cannot be listed.
    """
    next(list_input(spec, storage, SourceNotes()), None)


def sign_again(spec: JobSpec, storage: Storage) -> None:
    """Read the listing for its signed addresses alone, as a run that goes on does: nothing of them is written down.

    Raises:
        InputError: the listing cannot be read any more.
    """
    for _ in list_input(spec, storage, SourceNotes()):
        pass


def list_input(
    spec: JobSpec, storage: Storage, notes: SourceNotes, planned: ResumePoint | None = None
) -> Iterator[ImageRef]:
    try:
        yield from list_images(spec.input, storage, exclude=[spec.output.uri], notes=notes, planned=planned)
    except (NotFoundError, AccessDeniedError) as error:
        raise InputError(f"The input cannot be listed: {error}") from error


def settle_shard_images(
    compute: ComputeSection, refs: Iterator[ImageRef], workers: int | None = None
) -> tuple[int, Iterator[ImageRef]]:
    """Decide how many images a shard has; returns that, and the listing from its beginning."""
    if compute.shard_images != "auto":
        return compute.shard_images, refs
    return look_ahead(refs, workers or expected_workers(compute))


def check_not_empty(spec: JobSpec, tally: ManifestCounts) -> None:
    pattern = f" that match {spec.input.glob}" if spec.input.glob else ""
    others = ", ".join(f"{count} {suffix}" for suffix, count in tally.notes.skipped.most_common(5))
    found = f"; what is there is no image ({others})" if others else ""
    without = tally.notes.without_images
    found += "".join(f"; {uri}: {instead}" for uri, instead in without.items())
    way_out = " Name the column with images (--image-column) or with their names (--uri-column)." if without else ""
    raise InputError(f"There are no images{pattern} in {spec.input.uri}{found}.{way_out}")
