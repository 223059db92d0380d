"""Selection: which of the listed images an incremental run does."""

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
"""Why a listed image is done (the first four) or left out.

new: it has no row, or none since it was deleted. changed: its newest row is of another version. retried: its newest row
is not ok, and it is tried again. other_model: unchanged, and its results are another model's, or of other settings such
as bands. unchanged: its newest ok row is of this version, this model and these settings. not_ok: unchanged, not ok, and
not tried again. not_selected: excluded by `where`, or because `retry: failed` does failures only.
"""
DONE: Final = frozenset(REASONS[:4])
_NEW, _CHANGED, _RETRIED, _OTHER_MODEL, _UNCHANGED, _NOT_OK, _NOT_SELECTED = range(len(REASONS))

# Two pages of an S3 listing.
BATCH_IMAGES = 2048
STAT_THREADS = 16


@dataclass(frozen=True)
class RunCompatibility:
    """How earlier runs compare with the new one; each [runs] bool, oldest run first.

    is_same_model: same model and settings, which are all that results depend on. is_same_limits: same limits on images.
    is_same_input: same input.
    """

    is_same_model: NDArray[np.bool_]
    is_same_limits: NDArray[np.bool_]
    is_same_input: NDArray[np.bool_]


class Selection:
    """Chooses images from a listing, and counts them by reason.

    Attributes:
        history: what earlier runs know. compatibility: how those runs compare with the new one.
        counts: by reason. Images to do are counted one by one as they are taken, the others a batch at a time.
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
        """`where_ids`: the image ids that select.where returned, [N] int64 ascending; None without select.where."""
        self.history = history
        self.compatibility = compatibility
        self._retry = retry
        self._where_ids = where_ids
        self._storage = storage
        self._planned = np.empty(0, np.int64)
        self.counts: Counter[Reason] = Counter()

    def resume(self, planned: NDArray[np.int64], counts: Mapping[str, int]) -> None:
        """Continue from an interrupted planning.

        Args:
            planned: the ids of the images in the manifest, [N] int64. counts: their `Manifest.selection`.
        """
        self._planned = np.sort(planned)
        self.counts = Counter({reason: counts.get(reason, 0) for reason in REASONS if reason in DONE})
        # An image that is no longer listed stays in the manifest; its row will be `missing`.
        self.history.mark_listed(self._planned)

    def counts_dict(self, deleted: int) -> dict[str, int]:
        """Return the counts for run.json: `listed` (the sum over all reasons), each reason, and `deleted`."""
        counts: dict[str, int] = {reason: self.counts[reason] for reason in REASONS}
        return {"listed": sum(counts.values()), **counts, "deleted": deleted}

    def choose(self, listed: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Yield the images to do, in their order; all listed images are marked in the history."""
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
        """Return the index in REASONS of each image, [N] int64.

        The first line that applies decides. "Same" and "other" compare with the new run; `missing` is transient.

        | what the history holds of the image | `retry: transient` | `retry: none` |
        |---|---|---|
        | nothing | new | new |
        | an ok row of this version and the same model | unchanged | unchanged |
        | newest row: another version | changed | changed |
        | newest row: same model, permanent failure, same limits | not_ok | not_ok |
        | newest row: same model, permanent failure, other limits | retried | not_ok |
        | newest row: same model, transient failure | retried | not_ok |
        | newest row: other model; `where` includes the image, or there is no `where` | other_model | other_model |
        | newest row: other model; `where` excludes the image | not_selected | not_selected |

        | what the history holds of the image | `retry: failed` |
        |---|---|
        | newest row: any failure | retried |
        | an ok row of this version and the same model | unchanged |
        | anything else, or nothing | not_selected |

        Args:
            ids: [N] int64, of the batch. is_known, at: what `History.find` returns for them.
        """
        reasons = np.full(len(batch), _NEW)
        if not is_known.any():
            return reasons if self._retry != "failed" else np.full(len(batch), _NOT_SELECTED)
        etags, sizes = versions_of(batch)
        entries = self.history.entries[at]
        newest, ok = entries["newest"], entries["ok"]
        is_same_model = self.compatibility.is_same_model
        has_result = (ok["order"] >= 0) & is_same_model[ok["order"]] & is_same_version(etags, sizes, ok)
        has_failed = newest["kind"] != OK
        if self._retry == "failed":
            is_retried = is_known & has_failed
            return np.where(is_retried, _RETRIED, np.where(is_known & has_result, _UNCHANGED, _NOT_SELECTED))
        is_changed = ~is_same_version(etags, sizes, newest)
        is_of_model = is_same_model[newest["order"]]
        is_final = (newest["kind"] == PERMANENT) & self.compatibility.is_same_limits[newest["order"]]
        if self._retry == "none":
            is_final |= has_failed
        is_included = _is_in(ids, self._where_ids) if self._where_ids is not None else np.ones(len(ids), bool)
        return np.select(
            [~is_known, has_result, is_changed, is_of_model & is_final, is_of_model, is_included],
            [_NEW, _UNCHANGED, _CHANGED, _NOT_OK, _RETRIED, _OTHER_MODEL],
            _NOT_SELECTED,
        )

    def _with_versions(self, batch: list[ImageRef], is_known: NDArray[np.bool_]) -> list[ImageRef]:
        """Stat the known images that were listed without a version, as text listings do."""
        without_version = [
            place
            for place in np.flatnonzero(is_known).tolist()
            if batch[place].etag is None
            and batch[place].bytes is None
            # An entry that cannot be read has no version, and its name may not be an address.
            and batch[place].container is None
            and batch[place].problem is None
        ]
        if not without_version:
            return batch
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            found = list(pool.map(self._with_version, [batch[place] for place in without_version]))
        batch = list(batch)
        for place, ref in zip(without_version, found, strict=True):
            batch[place] = ref
        return batch

    def _with_version(self, ref: ImageRef) -> ImageRef:
        try:
            listed = self._storage.stat(ref.uri)
        except StorageError:
            # It counts as changed; reading it will give the reason.
            return ref
        return replace(ref, bytes=listed.bytes, etag=listed.etag)


def failed_before(history: History, refs: Sequence[ImageRef]) -> NDArray[np.bool_]:
    """Return for which images the newest earlier row is not ok and of the same version; [N] bool.

    If such an image fails again, that is not a new failure. Two unknown versions count as the same, as for an entry of
    a text listing that is missing.
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
    """Return which versions are the same, [N] bool: by etag where both are known, else by size, else False."""
    has_both = (etags != 0) & (known["etag"] != 0)
    has_sizes = (sizes >= 0) & (known["bytes"] >= 0)
    return np.asarray(np.where(has_both, etags == known["etag"], has_sizes & (sizes == known["bytes"])))


def _is_in(ids: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which ids are in a sorted array, [N] bool."""
    if not len(ascending):
        return np.zeros(len(ids), bool)
    at = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return np.asarray(ascending[at] == ids)
