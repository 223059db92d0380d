"""Which of the listed images an incremental run does: new ones, changed ones, and those that only another model did."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.planning.history import OK, PERMANENT, History, hash_etags
from pipeline.storage.storage import Storage

Reason = Literal["new", "changed", "retried", "other_model", "unchanged", "not_ok", "not_selected"]
REASONS: Final[tuple[Reason, ...]] = (
    "new",
    "changed",
    "retried",
    "other_model",
    "unchanged",
    "not_ok",
    "not_selected",
)
"""What becomes of a listed image; those of the first four are done.

new: no row, or none since it was found deleted. changed: its newest row is of another version. retried: its newest row
is not ok, and is done again. other_model: unchanged, and its results are another model's. unchanged: its newest ok row
is of this version and this model. not_ok: unchanged, not ok, and not done again. not_selected: left out by `where`, or
because only failures were asked for.
"""
DONE: Final = frozenset(REASONS[:4])
_NEW, _CHANGED, _RETRIED, _OTHER_MODEL, _UNCHANGED, _NOT_OK, _NOT_SELECTED = range(len(REASONS))

# Two pages of an S3 listing.
BATCH_IMAGES = 2048
STAT_THREADS = 16


@dataclass(frozen=True)
class RunCompatibility:
    """What matters of the earlier runs, each [runs], by their order.

    is_same_model: whether the run's model and precision are tonight's. is_same_limits: whether its limits on images
    are. is_same_input: whether it listed the same input.
    """

    is_same_model: NDArray[np.bool_]
    is_same_limits: NDArray[np.bool_]
    is_same_input: NDArray[np.bool_]


class Selection:
    """Chooses from a listing, and counts.

    Attributes:
        counts: by reason; those that are done are counted as they pass, the others a batch at a time.
    """

    def __init__(
        self,
        history: History,
        compatibility: RunCompatibility,
        *,
        retry: Literal["none", "transient", "failed"],
        where_ids: NDArray[np.int64] | None,
        storage: Storage,
    ) -> None:
        """`where_ids`: the numbers that `where` answered, ascending; None when it was not asked."""
        self.history = history
        self.compatibility = compatibility
        self._retry = retry
        self._where_ids = where_ids
        self._storage = storage
        self._planned = np.empty(0, np.int64)
        self.counts: Counter[Reason] = Counter()

    def resume(self, planned: NDArray[np.int64], counts: Mapping[str, int]) -> None:
        """Take over what was chosen before planning was cut off.

        Args:
            planned: the numbers that the manifest holds already. counts: of them.
        """
        self._planned = np.sort(planned)
        self.counts = Counter({reason: counts.get(reason, 0) for reason in REASONS if reason in DONE})
        # One that is gone from the listing by now is still tonight's; its row will say `missing`.
        self.history.mark_listed(self._planned)

    def counts_dict(self, deleted: int) -> dict[str, int]:
        """Return the counts for the run's record: `listed`, which is the sum of all reasons, those, and `deleted`."""
        counts: dict[str, int] = {reason: self.counts[reason] for reason in REASONS}
        return {"listed": sum(counts.values()), **counts, "deleted": deleted}

    def choose(self, listed: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass on the images to do, in their order; the others are counted and remembered as listed."""
        images = iter(listed)
        while batch := list(islice(images, BATCH_IMAGES)):
            ids = np.fromiter((image_id(ref.uri) for ref in batch), np.int64, len(batch))
            is_known, at = self.history.find(ids)
            self.history.is_listed[at[is_known]] = True
            is_planned = _is_in(ids, self._planned)
            batch = self._with_versions(batch, is_known)
            reasons = self._judge(batch, ids, is_known, at)
            for number, count in enumerate(np.bincount(reasons[~is_planned], minlength=len(REASONS)).tolist()):
                if REASONS[number] not in DONE:
                    self.counts[REASONS[number]] += count
            is_chosen = ~is_planned & (reasons < len(DONE))
            places = np.flatnonzero(is_chosen).tolist()
            has_failed = failed_before(self.history, [batch[place] for place in places]).tolist()
            for place, is_repeat in zip(places, has_failed, strict=True):
                self.counts[REASONS[reasons[place]]] += 1
                yield replace(batch[place], failed_before=True) if is_repeat else batch[place]

    def _judge(
        self, batch: list[ImageRef], ids: NDArray[np.int64], is_known: NDArray[np.bool_], at: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the place in REASONS of each image; `is_known`, `at`: its place in the history."""
        reasons = np.full(len(batch), _NEW)
        if not is_known.any():
            return reasons if self._retry != "failed" else np.full(len(batch), _NOT_SELECTED)
        etags, sizes = versions_of(batch)
        entries = self.history.entries[at]
        newest, ok = entries["newest"], entries["ok"]
        has_ok = ok["order"] >= 0
        is_fresh = has_ok & self.compatibility.is_same_model[ok["order"]] & is_same_version(etags, sizes, ok)
        is_changed = ~is_same_version(etags, sizes, newest)
        is_own = self.compatibility.is_same_model[newest["order"]]
        if self._retry == "failed":
            is_again = is_known & (newest["kind"] != OK)
            return np.where(is_again, _RETRIED, np.where(is_known & is_fresh, _UNCHANGED, _NOT_SELECTED))
        is_settled = (newest["kind"] == PERMANENT) & self.compatibility.is_same_limits[newest["order"]]
        if self._retry == "none":
            is_settled |= newest["kind"] != OK
        is_picked = _is_in(ids, self._where_ids) if self._where_ids is not None else np.ones(len(ids), bool)
        return np.select(
            [~is_known, is_fresh, is_changed, is_own & is_settled, is_own, is_picked],
            [_NEW, _UNCHANGED, _CHANGED, _NOT_OK, _RETRIED, _OTHER_MODEL],
            _NOT_SELECTED,
        )

    def _with_versions(self, batch: list[ImageRef], is_known: NDArray[np.bool_]) -> list[ImageRef]:
        """Ask the store for the versions of known images that were listed without any, as text listings do."""
        unsure = [
            place
            for place in np.flatnonzero(is_known).tolist()
            if batch[place].etag is None
            and batch[place].bytes is None
            # What cannot be read has no version, and its name need not be an address.
            and batch[place].container is None
            and batch[place].problem is None
        ]
        if not unsure:
            return batch
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            found = list(pool.map(self._with_version, [batch[place] for place in unsure]))
        batch = list(batch)
        for place, ref in zip(unsure, found, strict=True):
            batch[place] = ref
        return batch

    def _with_version(self, ref: ImageRef) -> ImageRef:
        try:
            listed = self._storage.stat(ref.uri)
        except StorageError:
            # It counts as changed; reading it will tell what is the matter.
            return ref
        return replace(ref, bytes=listed.bytes, etag=listed.etag)


def failed_before(history: History, refs: Sequence[ImageRef]) -> NDArray[np.bool_]:
    """Tell of which images the newest earlier row is not ok, and of this very version; [N] bool.

    Such an image that is not ok again is no news. One whose version is unknown now as it was then, such as an entry of
    a text listing that is missing, counts as the same.
    """
    ids = np.fromiter((image_id(ref.uri) for ref in refs), np.int64, len(refs))
    is_known, at = history.find(ids)
    if not is_known.any():
        return np.zeros(len(refs), bool)
    etags, sizes = versions_of(refs)
    newest = history.entries["newest"][at]
    has_none = (etags == 0) & (sizes < 0) & (newest["etag"] == 0) & (newest["bytes"] < 0)
    return np.asarray(is_known & (newest["kind"] != OK) & (is_same_version(etags, sizes, newest) | has_none))


def versions_of(refs: Sequence[ImageRef]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashed etags, 0 for unknown, and the encoded bytes, -1 for unknown; [N] each."""
    etags = hash_etags((ref.etag for ref in refs), len(refs))
    return etags, np.fromiter((-1 if ref.bytes is None else ref.bytes for ref in refs), np.int64, len(refs))


def is_same_version(etags: NDArray[np.uint64], sizes: NDArray[np.int64], known: NDArray[Any]) -> NDArray[np.bool_]:
    """Compare versions where both are known, else sizes where both are, else say no."""
    has_both = (etags != 0) & (known["etag"] != 0)
    has_sizes = (sizes >= 0) & (known["bytes"] >= 0)
    return np.asarray(np.where(has_both, etags == known["etag"], has_sizes & (sizes == known["bytes"])))


def _is_in(ids: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(ids), bool)
    at = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return np.asarray(ascending[at] == ids)
