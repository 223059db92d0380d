"""What of a complete run's input is new, changed or gone since: the input listed again, beside the rows.

The rows are compared and not the frozen manifest, as they hold the versions that were read, and as later incremental
runs have rows too. So the same command with --incremental finds just what is said here. Everything streams, and what is
known of the run lies on disk once it is large, see `history`.
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
# Entries of a text listing have no version until the store is asked, 100 a second or so: after two minutes a person
# would rather begin an incremental run, which asks for them all.
MAX_STATS = 10_000


@dataclass(frozen=True)
class InputChanges:
    """How an input differs from what a run did of it.

    new, changed, gone: images; the first names of each, at most MAX_NAMES, are in the other three. known: images of the
        run. unknown: images whose version is not known, because there were too many to ask for or the store did not
        answer.
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
        """Whether there is a difference."""
        return bool(self.new or self.changed or self.gone)

    def counts(self) -> str:
        """Say how many and the first names: "2 new (a.jpg, b.jpg), 1 gone (c.jpg)"."""
        kinds = (
            (self.new, "new", self.new_names),
            (self.changed, "changed", self.changed_names),
            (self.gone, "gone", self.gone_names),
        )
        return ", ".join(f"{count:,} {word} ({_named(names, count)})" for count, word, names in kinds if count)

    def unknown_note(self) -> str:
        """Say of how many images it is not known whether they changed; empty when it is known of all."""
        return f"of {count_of(self.unknown, 'image')} the version is not known" if self.unknown else ""


class InputComparison:
    """Watches a listing go by and counts what differs from a run's rows."""

    def __init__(self, section: InputSection, storage: Storage, output_uri: str, run: str) -> None:
        """Read the rows of the run, and of later ones over the same input: what these did is nothing new.

        Raises:
            StorageError: they cannot be read.
        """
        self._section = section
        self._storage = storage
        results = Results(output_uri, storage)
        since = results.records[results.runs().index(run) :]
        records = [each for each in since if each.run == run or is_of_input(each, section)]
        self._rows, self._history = read_history(results, records=records)
        self._counts = dict.fromkeys(("new", "changed", "gone"), 0)
        self._names: dict[str, list[str]] = {"new": [], "changed": [], "gone": []}
        self._questions = 0
        self._unknown = 0

    def follow(self, listed: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass the images of the input on, as they are."""
        images = iter(listed)
        while batch := list(islice(images, BATCH_IMAGES)):
            self._compare(batch)
            yield from batch

    def changes(self) -> InputChanges:
        """Return what differs; to be asked when the listing has come to its end."""
        _, places = self._history.not_listed(np.ones(len(self._rows.runs), bool))
        if self._section.limit is not None:
            places = self._places_gone_behind_limit(places)
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
        batch, is_gone = self._asked(batch, is_known)
        etags, sizes = versions_of(batch)
        has_version = (etags != 0) | (sizes >= 0)
        # What was missing and is there now has changed; what could not be read and left no version may be the same.
        is_changed = has_version & ~is_same_version(etags, sizes, newest) & (had_version | (newest["kind"] == MISSING))
        is_gone &= newest["kind"] != MISSING
        self._note("changed", [batch[place].uri for place in np.flatnonzero(is_known & is_changed).tolist()])
        self._note("gone", [batch[place].uri for place in np.flatnonzero(is_known & is_gone).tolist()])

    def _asked(
        self, batch: Sequence[ImageRef], is_known: NDArray[np.bool_]
    ) -> tuple[list[ImageRef], NDArray[np.bool_]]:
        """Ask for the versions of known images that were listed without any; and tell which are not there, [N] bool."""
        asked, is_gone = list(batch), np.zeros(len(batch), bool)
        unsure = [
            place
            for place in np.flatnonzero(is_known).tolist()
            if batch[place].etag is None and batch[place].bytes is None and batch[place].container is None
        ]
        places = unsure[: max(0, MAX_STATS - self._questions)]
        self._questions += len(places)
        self._unknown += len(unsure) - len(places)
        if not places:
            return asked, is_gone
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            found = list(pool.map(self._version_of, [batch[place] for place in places]))
        for place, ref in zip(places, found, strict=True):
            if ref is None:
                is_gone[place] = True
            else:
                asked[place] = ref
                self._unknown += ref.etag is None and ref.bytes is None
        return asked, is_gone

    def _version_of(self, ref: ImageRef) -> ImageRef | None:
        """Return an image with its version, as far as the store tells; None when it is not there."""
        try:
            listed = self._storage.stat(ref.uri)
        except NotFoundError:
            return None
        except StorageError:
            return ref
        return replace(ref, bytes=listed.bytes, etag=listed.etag)

    def _places_gone_behind_limit(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of images that were not listed up to input.limit, keep those that are not there any more."""
        asked = list(self._uris_at(places[:MAX_STATS]))
        self._unknown += len(places) - len(asked)
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            is_there = list(pool.map(self._is_there, asked))
        return self._places_of([uri for uri, is_so in zip(asked, is_there, strict=True) if not is_so])

    def _is_there(self, uri: str) -> bool:
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
        """Yield the names of images of the run, in the run's order, and read no further than is asked for."""
        for table in self._rows.resolve_uris(self._history, places):
            yield from table.column("uri").to_pylist()

    def _note(self, kind: str, uris: Sequence[str]) -> None:
        self._counts[kind] += len(uris)
        self._names[kind] += uris[: MAX_NAMES - len(self._names[kind])]

    def _short(self, kind: str) -> tuple[str, ...]:
        folder = f"{self._section.uri.rstrip('/')}/"
        return tuple(display_uri(uri.removeprefix(folder)) for uri in self._names[kind])


def compare_input(section: InputSection, storage: Storage, output_uri: str, run: str) -> InputChanges:
    """List the input again and compare it with what a complete full run did.

    Raises:
        InputError: the input cannot be listed any more; what the run did stays as it is.
        StorageError: the run's rows cannot be read.
    """
    comparison = InputComparison(section, storage, output_uri, run)
    with translated_input_errors(run):
        for _ in comparison.follow(list_images(section, storage, exclude=[output_uri])):
            pass
        return comparison.changes()


@contextmanager
def translated_input_errors(run: str) -> Iterator[None]:
    """Say of an input that cannot be listed inside the block that the complete run is not touched by that.

    Raises:
        InputError: with the exit code of the error that it is made of.
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
    """Say which command does what has changed.

    Args:
        is_named: whether the run was asked for by its name, under which there cannot be another one.
    """
    name = " and another name for --run" if is_named else ""
    share = ""
    if changes.gone > max_deleted_share * changes.known:
        share = ", and with --max-deleted-share 1 if they are really gone"
    does = "does what is new or changed" if changes.new or changes.changed else "records what is gone"
    return f"The same command with --incremental{name}{share} {does}; --fresh{name} does every image again."


def _named(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")
