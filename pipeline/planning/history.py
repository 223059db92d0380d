"""History: of each image of earlier runs the newest row and the newest ok row, both since it was last deleted.

The entries are sorted by image id and found by binary search. Large arrays are on disk, because a bucket may have more
images than fit into memory. Versions are compared by 64-bit hashes that are valid in this process only.
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
"""By status. A failed read or a missing object may succeed later; bytes that are not an image stay so."""

# etag: see `hash_etags`. bytes: -1 for unknown. order: of the run, 0 for the oldest. part: the number of the row's part
# in `EarlierRuns`.
_VERSION = [("etag", "<u8"), ("bytes", "<i8"), ("order", "<i4")]
EVENT = np.dtype([("image_id", "<i8"), *_VERSION, ("part", "<i4"), ("kind", "u1")])
"""A row of an earlier run, or a deletion record of one (kind DELETED)."""
ENTRY = np.dtype([("newest", [*_VERSION, ("part", "<i4"), ("kind", "u1")]), ("ok", _VERSION)])
"""What is known of an image that is not deleted; ok.order is -1 when none of its rows is ok."""

# 37 MB. More events are sorted on disk, in buckets by the first byte of the image id; ids are hashes, so the buckets
# are about equal.
EVENTS_IN_MEMORY = 1_000_000
BUCKETS = 256
SCAN_ENTRIES = 1_000_000


class History:
    """The images of earlier runs that are not deleted.

    Attributes:
        ids: [N] int64, ascending. entries: [N] of ENTRY. is_listed: [N] bool, whether the input still lists the image;
            set by `mark_listed`.
    """

    def __init__(self, ids: NDArray[Any], entries: NDArray[Any], is_listed: NDArray[np.bool_]) -> None:
        self.ids = ids
        self.entries = entries
        self.is_listed = is_listed

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Look images up.

        Args:
            ids: [N] int64.

        Returns:
            [N] bool, whether the image is known; [N] int64, its index in `entries`, arbitrary for an unknown image.
        """
        if not len(self):
            return np.zeros(len(ids), bool), np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.asarray(self.ids[at] == ids), at

    def mark_listed(self, ids: NDArray[np.int64]) -> None:
        """Record that the input lists these images; unknown ones are ignored."""
        is_known, at = self.find(ids)
        self.is_listed[at[is_known]] = True

    def not_listed(self, is_in_scope: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64]]:
        """Find the images of some runs that the input does not list.

        Args:
            is_in_scope: [runs] bool, by the order of the run that has an image's newest row.

        Returns:
            The number of images in scope, listed or not; [M] int64, the indices of those that are not listed.
        """
        count, places = 0, [np.empty(0, np.int64)]
        for start in range(0, len(self), SCAN_ENTRIES):
            stop = start + SCAN_ENTRIES
            is_ours = is_in_scope[self.entries["newest"]["order"][start:stop]]
            count += int(is_ours.sum())
            places.append(np.flatnonzero(is_ours & ~self.is_listed[start:stop]) + start)
        return count, np.concatenate(places)


def hash_etags(etags: Iterable[str | None], count: int) -> NDArray[np.uint64]:
    """Hash versions, [count] uint64, 0 for unknown ones; the same in this process only."""
    hashes = (0 if etag is None else (hash(etag) << 1 | 1) & 0xFFFF_FFFF_FFFF_FFFF for etag in etags)
    return np.fromiter(hashes, np.uint64, count)


def build_history(events: Iterable[NDArray[Any]]) -> History:
    """Sort events, and keep what is known of each image; more than EVENTS_IN_MEMORY are sorted on disk, in TMPDIR.

    Args:
        events: arrays of EVENT, in any order. Each run has at most one row and one deletion record of an image.
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
    """Return the ids of the images that are not deleted, [N] int64 ascending, and their entries, [N] of ENTRY.

    Rows before an image's last deletion are ignored. For example, with a run's order in brackets:

    | events of an image | entry |
    |---|---|
    | ok[0], failed[2] | newest: failed[2]; ok: [0] |
    | failed[0] | newest: failed[0]; ok: none (order -1) |
    | ok[0], deleted[1] | no entry: the image is deleted |
    | ok[0], deleted[1], failed[2] | newest: failed[2]; ok: none, as ok[0] is before the deletion |
    | ok[0], ok[1] and deleted[1] | newest: ok[1]; ok: [1], as the row of a run comes after its deletion record |
    """
    is_row = events["kind"] != DELETED
    events = events[np.lexsort((is_row, events["order"], events["image_id"]))]
    starts = np.flatnonzero(np.append(True, events["image_id"][1:] != events["image_id"][:-1])[: len(events)])
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, ENTRY)
    places = np.arange(len(events))
    last_deletion = _last(places, events["kind"] == DELETED, starts)
    group = np.cumsum(np.isin(places, starts, assume_unique=True)) - 1
    is_after = places > last_deletion[group]
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


def _last(places: NDArray[np.int64], is_chosen: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last chosen place of each group, -1 where none is chosen; `starts`: the groups' first places."""
    return np.asarray(np.maximum.reduceat(np.where(is_chosen, places, -1), starts))


def _spill(events: NDArray[Any], folder: Path) -> None:
    """Append events to the files of their buckets; the buckets are in the order of the image ids."""
    bucket = (events["image_id"] >> 56) + BUCKETS // 2
    events = events[np.argsort(bucket, kind="stable")]
    ends = np.cumsum(np.bincount(bucket, minlength=BUCKETS))
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        with (folder / str(number)).open("ab") as file:
            events[start:end].tofile(file)


def _merged(buckets: Sequence[Path]) -> History:
    """Reduce the buckets one after the other into a history on disk."""
    count = 0
    # Files without a name: nothing is left behind, however this process ends.
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
