"""What earlier runs know of each image: its newest row, and its newest `ok` row, both since it was last deleted.

Sorted by image number and looked up by halving, in arrays that lie on disk once they are large: a bucket has more
images than a machine has memory. Versions are compared by 64-bit hashes that are this process's own.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

OK: Final = 0
TRANSIENT: Final = 1
PERMANENT: Final = 2
DELETED: Final = 3
MISSING: Final = 4
KINDS: Final = {"ok": OK, "failed": TRANSIENT, "missing": MISSING, "unreadable": PERMANENT, "too_large": PERMANENT}
"""By status. A store that was ill and an object that was away may be well again; bytes that are no image stay so."""

# etag: see `hash_etags`; bytes: -1 for unknown; order: of the run, 0 for the oldest; part: the file's number.
_VERSION = [("etag", "<u8"), ("bytes", "<i8"), ("order", "<i4")]
EVENT = np.dtype([("image_id", "<i8"), *_VERSION, ("part", "<i4"), ("kind", "u1")])
"""A row of an earlier run, or that the image was found deleted by it."""
ENTRY = np.dtype([("newest", [*_VERSION, ("part", "<i4"), ("kind", "u1")]), ("ok", _VERSION)])
"""What is known of an image that is not deleted; ok.order is -1 when no row is ok."""

# 37 MB; more than that is sorted on disk, by the first byte of the numbers, which are hashes and so spread evenly.
EVENTS_IN_MEMORY = 1_000_000
BUCKETS = 256
SCAN_ENTRIES = 1_000_000


class History:
    """The images that earlier runs know and that are not deleted.

    Attributes:
        ids: [N] int64, ascending. entries: [N] of ENTRY. is_listed: [N] bool, for `mark_listed`.
    """

    def __init__(self, ids: NDArray[Any], entries: NDArray[Any], is_listed: NDArray[np.bool_]) -> None:
        self.ids = ids
        self.entries = entries
        self.is_listed = is_listed

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Tell which images are known, and where; the place of an unknown one means nothing."""
        if not len(self):
            return np.zeros(len(ids), bool), np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.asarray(self.ids[at] == ids), at

    def mark_listed(self, ids: NDArray[np.int64]) -> None:
        """Note that the images are in the listing."""
        is_known, at = self.find(ids)
        self.is_listed[at[is_known]] = True

    def not_listed(self, is_in_scope: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64]]:
        """Return how many images of some runs there are, and where those are that were not marked.

        Args:
            is_in_scope: [runs], by the order of the run that has an image's newest row.
        """
        count, places = 0, [np.empty(0, np.int64)]
        for start in range(0, len(self), SCAN_ENTRIES):
            stop = start + SCAN_ENTRIES
            is_ours = is_in_scope[self.entries["newest"]["order"][start:stop]]
            count += int(is_ours.sum())
            places.append(np.flatnonzero(is_ours & ~self.is_listed[start:stop]) + start)
        return count, np.concatenate(places)


def hash_etags(etags: Iterable[str | None], count: int) -> NDArray[np.uint64]:
    """Hash versions, 0 for those that are not known; equal in this process alone."""
    hashes = (0 if etag is None else (hash(etag) << 1 | 1) & 0xFFFF_FFFF_FFFF_FFFF for etag in etags)
    return np.fromiter(hashes, np.uint64, count)


def build_history(events: Iterable[NDArray[Any]]) -> History:
    """Sort events and keep what counts of each image; larger ones than EVENTS_IN_MEMORY on disk, below TMPDIR.

    Args:
        events: arrays of EVENT, in any order; at most one of each image and run, or two, a row and a deletion.
    """
    kept: list[NDArray[Any]] = []
    count = 0
    with tempfile.TemporaryDirectory(prefix="htc-history-") as name:
        folder = Path(name)
        for batch in events:
            kept.append(batch)
            count += len(batch)
            if count >= EVENTS_IN_MEMORY:
                _spill(np.concatenate(kept), folder)
                kept, count = [], 0
        rest = np.concatenate([np.empty(0, EVENT), *kept])
        buckets = [folder / str(number) for number in range(BUCKETS)]
        if not any(bucket.exists() for bucket in buckets):
            ids, entries = reduce_events(rest)
            return History(ids, entries, np.zeros(len(ids), bool))
        _spill(rest, folder)
        del rest, kept
        return _merged(buckets)


def reduce_events(events: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the images that are not deleted, ascending, and the ENTRY of each."""
    # Of a run that both has a row of an image and found it deleted, the row counts: it is the later word.
    is_row = events["kind"] != DELETED
    events = events[np.lexsort((is_row, events["order"], events["image_id"]))]
    starts = np.flatnonzero(np.append(True, events["image_id"][1:] != events["image_id"][:-1])[: len(events)])
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, ENTRY)
    places = np.arange(len(events))
    last_mark = _last(places, events["kind"] == DELETED, starts)
    group = np.cumsum(np.isin(places, starts, assume_unique=True)) - 1
    is_after = places > last_mark[group]
    newest = _last(places, is_after, starts)
    last_ok = _last(places, is_after & (events["kind"] == OK), starts)
    is_live = newest >= 0
    newest, last_ok = newest[is_live], last_ok[is_live]
    entries = np.zeros(len(newest), ENTRY)
    for name in ENTRY["newest"].names or ():
        entries["newest"][name] = events[name][newest]
    for name in ENTRY["ok"].names or ():
        entries["ok"][name] = events[name][last_ok]
    entries["ok"]["order"][last_ok < 0] = -1
    return events["image_id"][newest], entries


def _last(places: NDArray[np.int64], is_meant: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last place of each group that is meant, -1 where none is."""
    return np.asarray(np.maximum.reduceat(np.where(is_meant, places, -1), starts))


def _spill(events: NDArray[Any], folder: Path) -> None:
    """Append events to the file of their bucket; the buckets' order is that of the numbers."""
    bucket = (events["image_id"] >> 56) + BUCKETS // 2
    events = events[np.argsort(bucket, kind="stable")]
    ends = np.cumsum(np.bincount(bucket, minlength=BUCKETS))
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        with (folder / str(number)).open("ab") as file:
            events[start:end].tofile(file)


def _merged(buckets: Sequence[Path]) -> History:
    count = 0
    # Without a name from the beginning: nothing is left behind, however this process ends.
    with (
        tempfile.TemporaryFile(prefix="htc-history-") as ids_file,
        tempfile.TemporaryFile(prefix="htc-history-") as entries_file,
        tempfile.TemporaryFile(prefix="htc-history-") as seen_file,
    ):
        for ids, entries in _reduced(buckets):
            count += len(ids)
            ids_file.write(ids.tobytes())
            entries_file.write(entries.tobytes())
        if not count:
            return History(np.empty(0, np.int64), np.empty(0, ENTRY), np.zeros(0, bool))
        ids_file.flush()
        entries_file.flush()
        return History(
            np.memmap(ids_file, np.int64, "r", shape=(count,)),
            np.memmap(entries_file, ENTRY, "r", shape=(count,)),
            np.memmap(seen_file, np.bool_, "w+", shape=(count,)),
        )


def _reduced(buckets: Sequence[Path]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for bucket in buckets:
        events = np.fromfile(bucket, EVENT)
        bucket.unlink()
        yield reduce_events(events)
