"""InputComparison: what is new, changed or gone in a complete run's input since the run.

The input is listed again and compared with the rows, not with the frozen manifest: rows hold the versions that were
read, and later incremental runs have rows too. An incremental run therefore does exactly the images reported here. The
listing is streamed; a large history is on disk, see `history`.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HtcError, InputError, NotFoundError, StorageError
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.inputs.listing import list_images, locate_image
from pipeline.job_spec.job import InputSection
from pipeline.output.results import Results
from pipeline.output.run_record import is_of_input
from pipeline.planning.earlier_rows import read_history
from pipeline.planning.history import MISSING
from pipeline.planning.selection import BATCH_IMAGES, STAT_THREADS, is_same_version, versions_of
from pipeline.storage.storage import Storage
from pipeline.storage.uris import display_uri
from pipeline.text import count_of

MAX_NAMES = 3
# Entries of a text listing have no version until they are statted, at about 100 a second. After two minutes it is
# better to begin an incremental run, which stats all of them.
MAX_STATS = 10_000


@dataclass(frozen=True)
class InputChanges:
    """How an input differs from the rows of a run.

    new, changed, gone: numbers of images. new_names, changed_names, gone_names: the first names of each, at most
        MAX_NAMES. known: images of the run. unknown: images whose version is not known, because there are more than
        MAX_STATS of them or the store did not answer.
    """

    new: int
    changed: int
    gone: int
    known: int
    unknown: int
    new_names: tuple[str, ...]
    changed_names: tuple[str, ...]
    gone_names: tuple[str, ...]

    @property
    def has_any(self) -> bool:
        """Whether the input has changed."""
        return bool(self.new or self.changed or self.gone)

    def counts(self) -> str:
        """Return the counts with the first names: "2 new (a.jpg, b.jpg), 1 gone (c.jpg)"."""
        kinds = (
            (self.new, "new", self.new_names),
            (self.changed, "changed", self.changed_names),
            (self.gone, "gone", self.gone_names),
        )
        return ", ".join(f"{count:,} {word} ({_named(names, count)})" for count, word, names in kinds if count)

    def unknown_note(self) -> str:
        """Return for how many images it is not known whether they changed; empty when there are none."""
        return f"the version of {count_of(self.unknown, 'image')} is not known" if self.unknown else ""


class InputComparison:
    """Follows a listing and counts how it differs from a run's rows."""

    def __init__(self, section: InputSection, storage: Storage, output_uri: str, run: str) -> None:
        """Read the rows of the run, and of later runs of the same input, whose images are not new either.

        Raises:
            StorageError: the rows cannot be read.
        """
        self._section = section
        self._storage = storage
        results = Results(output_uri, storage)
        since = results.records[results.runs().index(run) :]
        records = [each for each in since if each.run == run or is_of_input(each, section)]
        self._rows, self._history = read_history(results, records=records)
        self._counts = dict.fromkeys(("new", "changed", "gone"), 0)
        self._names: dict[str, list[str]] = {"new": [], "changed": [], "gone": []}
        self._stats = 0
        self._unknown = 0

    def follow(self, listed: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass the listed images on unchanged, and compare them."""
        images = iter(listed)
        while batch := list(islice(images, BATCH_IMAGES)):
            self._compare(batch)
            yield from batch

    def changes(self) -> InputChanges:
        """Return how the input differs; call it when the whole input is listed."""
        _, places = self._history.not_listed(np.ones(len(self._rows.runs), bool))
        if self._section.limit is not None:
            places = self._gone_despite_limit(places)
        self._counts["gone"] += len(places)
        with closing(self._uris_at(places)) as uris:
            self._names["gone"] += islice(uris, MAX_NAMES - len(self._names["gone"]))
        return InputChanges(
            **self._counts,
            known=len(self._history),
            unknown=self._unknown,
            new_names=self._short("new"),
            changed_names=self._short("changed"),
            gone_names=self._short("gone"),
        )

    def _compare(self, batch: Sequence[ImageRef]) -> None:
        ids = np.fromiter((image_id(ref.uri) for ref in batch), np.int64, len(batch))
        is_known, at = self._history.find(ids)
        self._history.is_listed[at[is_known]] = True
        self._note("new", [batch[place].uri for place in np.flatnonzero(~is_known).tolist()])
        if not is_known.any():
            return
        newest = self._history.entries["newest"][at]
        had_version = (newest["etag"] != 0) | (newest["bytes"] >= 0)
        batch, is_gone = self._with_versions(batch, is_known)
        etags, sizes = versions_of(batch)
        has_version = (etags != 0) | (sizes >= 0)
        # An image that was missing and exists now has changed. A row without a version, of an image that could not be
        # read, may be of the same version.
        is_changed = has_version & ~is_same_version(etags, sizes, newest) & (had_version | (newest["kind"] == MISSING))
        is_gone &= newest["kind"] != MISSING
        self._note("changed", [batch[place].uri for place in np.flatnonzero(is_known & is_changed).tolist()])
        self._note("gone", [batch[place].uri for place in np.flatnonzero(is_known & is_gone).tolist()])

    def _with_versions(
        self, batch: Sequence[ImageRef], is_known: NDArray[np.bool_]
    ) -> tuple[list[ImageRef], NDArray[np.bool_]]:
        """Stat the known images that were listed without a version.

        Returns:
            The batch with these versions; [N] bool, which images do not exist.
        """
        versioned, is_gone = list(batch), np.zeros(len(batch), bool)
        without_version = [
            place
            for place in np.flatnonzero(is_known).tolist()
            if batch[place].etag is None and batch[place].bytes is None and batch[place].container is None
        ]
        places = without_version[: max(0, MAX_STATS - self._stats)]
        self._stats += len(places)
        self._unknown += len(without_version) - len(places)
        if not places:
            return versioned, is_gone
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            found = list(pool.map(self._version_of, [batch[place] for place in places]))
        for place, ref in zip(places, found, strict=True):
            if ref is None:
                is_gone[place] = True
            else:
                versioned[place] = ref
                self._unknown += ref.etag is None and ref.bytes is None
        return versioned, is_gone

    def _version_of(self, ref: ImageRef) -> ImageRef | None:
        """Return an image with its version, without one when the store does not answer; None when it does not exist."""
        try:
            listed = self._storage.stat(ref.uri)
        except NotFoundError:
            return None
        except StorageError:
            return ref
        return replace(ref, bytes=listed.bytes, etag=listed.etag)

    def _gone_despite_limit(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the images that were not listed because of input.limit, keep those that do not exist any more."""
        uris = list(self._uris_at(places[:MAX_STATS]))
        self._unknown += len(places) - len(uris)
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            exists = list(pool.map(self._exists, uris))
        return self._places_of([uri for uri, is_found in zip(uris, exists, strict=True) if not is_found])

    def _exists(self, uri: str) -> bool:
        try:
            ref = locate_image(uri, self._storage)
            if ref.container is None:
                self._storage.stat(uri)
        except NotFoundError:
            return False
        except StorageError:
            return True
        return True

    def _places_of(self, uris: Sequence[str]) -> NDArray[np.int64]:
        ids = np.fromiter((image_id(uri) for uri in uris), np.int64, len(uris))
        is_known, at = self._history.find(ids)
        return at[is_known]

    def _uris_at(self, places: NDArray[np.int64]) -> Generator[str]:
        """Yield the uris of images of the run, in the run's order; reads only as far as they are taken."""
        for table in self._rows.resolve_uris(self._history, places):
            yield from table.column("uri").to_pylist()

    def _note(self, kind: str, uris: Sequence[str]) -> None:
        self._counts[kind] += len(uris)
        self._names[kind] += uris[: MAX_NAMES - len(self._names[kind])]

    def _short(self, kind: str) -> tuple[str, ...]:
        folder = f"{self._section.uri.rstrip('/')}/"
        return tuple(display_uri(uri.removeprefix(folder)) for uri in self._names[kind])


def compare_input(section: InputSection, storage: Storage, output_uri: str, run: str) -> InputChanges:
    """List the input again and compare it with the rows of a complete full run.

    Raises:
        InputError: the input cannot be listed any more; the run's results are unaffected.
        StorageError: the run's rows cannot be read.
    """
    comparison = InputComparison(section, storage, output_uri, run)
    with translated_input_errors(run):
        for _ in comparison.follow(list_images(section, storage, exclude=[output_uri])):
            pass
        return comparison.changes()


@contextmanager
def translated_input_errors(run: str) -> Iterator[None]:
    """Turn an error inside the block into one that says that the complete run is unaffected.

    Raises:
        InputError: with the exit code of the original error.
    """
    try:
        yield
    except HtcError as error:
        raised = InputError(
            f"The run {run} is complete and stays as it is, but its input cannot be compared with it: {error}"
        )
        raised.exit_code = error.exit_code
        raise raised from error


def suggest_command(changes: InputChanges, *, is_named: bool, max_deleted_share: float) -> str:
    """Return a sentence that names the command for what has changed.

    Args:
        is_named: whether the user named the run; a new run needs another name then.
        max_deleted_share: select.max_deleted_share.
    """
    name = " and another name for --run" if is_named else ""
    share = ""
    if changes.gone > max_deleted_share * changes.known:
        share = ", and with --max-deleted-share 1 if they are really gone"
    does = "does what is new or changed" if changes.new or changes.changed else "records what is gone"
    return f"The same command with --incremental{name}{share} {does}; --fresh{name} does every image again."


def _named(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")
