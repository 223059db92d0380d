"""Selection: the comparison of versions, case by case, and which images are statted."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from pipeline.errors import NotFoundError
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.planning.history import EVENT, MISSING, OK, PERMANENT, TRANSIENT, History, build_history, hash_etags
from pipeline.planning.selection import BATCH_IMAGES, RunCompatibility, Selection
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage

URI = "s3://bucket/a.jpg"
SAME = np.array([True])


@dataclass
class Store:
    """Implements `stat` only; has one object, or none."""

    known: ObjectInfo | None = None
    stats: int = 0

    def stat(self, uri: str) -> ObjectInfo:
        self.stats += 1
        if self.known is None:
            raise NotFoundError(f"{uri} was not found.")
        return self.known


def history_of(*images: tuple[str, str | None, int]) -> History:
    """One earlier run in which these images (uri, etag, bytes) were ok."""
    events = np.zeros(len(images), EVENT)
    for place, (uri, etag, size) in enumerate(images):
        events[place] = (image_id(uri), hash_etags([etag], 1)[0], size, 0, 0, OK)
    return build_history([events])


def selection_of(history: History, store: Store | None = None) -> Selection:
    return Selection(
        history,
        RunCompatibility(SAME, SAME, SAME),
        retry="transient",
        where_ids=None,
        storage=store or Store(),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("known", "listed", "reason"),
    [
        # Two versions are compared by their etags, whatever their sizes say.
        (("e1", 10), ("e1", 10), "unchanged"),
        (("e1", 10), ("e1", 11), "unchanged"),
        (("e1", 10), ("e2", 10), "changed"),
        # Where one has no etag, by their sizes, which may be 0.
        (("e1", 10), (None, 10), "unchanged"),
        ((None, 10), ("e1", 10), "unchanged"),
        ((None, 10), (None, 10), "unchanged"),
        ((None, 10), (None, 11), "changed"),
        (("e1", 10), (None, 11), "changed"),
        ((None, 0), (None, 0), "unchanged"),
        ((None, 1), (None, 1), "unchanged"),
        ((None, 0), (None, 1), "changed"),
        ((None, 1), (None, 0), "changed"),
        # Where one has neither, they count as different.
        ((None, -1), (None, 10), "changed"),
        (("e1", -1), (None, 10), "changed"),
        ((None, -1), ("e1", 10), "changed"),
        ((None, -1), ("e1", None), "changed"),
    ],
)
def test_versions_are_compared_by_what_both_have(
    known: tuple[str | None, int], listed: tuple[str | None, int | None], reason: str
) -> None:
    selection = selection_of(history_of((URI, *known)))
    chosen = list(selection.choose([ImageRef(URI, etag=listed[0], bytes=listed[1])]))
    assert selection.counts_dict(0)[reason] == 1
    assert len(chosen) == (reason == "changed")


# Kind and version of the newest row, its run (0: same model and limits, 1: same model, 2: another model), the order of
# an ok row of this version that is older (None for none); then the reasons with retry transient, none, failed.
ROWS = [
    (OK, 10, 0, None, ("unchanged", "unchanged", "unchanged")),
    (TRANSIENT, 10, 2, 0, ("unchanged", "unchanged", "retried")),
    (OK, 11, 0, None, ("changed", "changed", "not_selected")),
    (TRANSIENT, 11, 0, None, ("changed", "changed", "retried")),
    (PERMANENT, 10, 0, None, ("not_ok", "not_ok", "retried")),
    (PERMANENT, 10, 1, None, ("retried", "not_ok", "retried")),
    (MISSING, 10, 0, None, ("retried", "not_ok", "retried")),
    (OK, 10, 2, None, ("other_model", "other_model", "not_selected")),
    (PERMANENT, 10, 2, None, ("other_model", "other_model", "retried")),
]


@pytest.mark.parametrize(("kind", "size", "run", "ok_run", "reasons"), ROWS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_reason_depends_on_the_rows_and_on_retry(  # noqa: PLR0917
    kind: int, size: int, run: int, ok_run: int | None, reasons: tuple[str, str, str], place: int
) -> None:
    events = np.zeros(1 if ok_run is None else 2, EVENT)
    events[0] = (image_id(URI), 0, size, run, 0, kind)
    if ok_run is not None:
        events[1] = (image_id(URI), 0, 10, ok_run, 0, OK)
    runs = RunCompatibility(np.array([True, True, False]), np.array([True, False, True]), np.ones(3, bool))
    retries: list[Literal["none", "transient", "failed"]] = ["transient", "none", "failed"]
    selection = Selection(build_history([events]), runs, retry=retries[place], where_ids=None, storage=Storage())
    list(selection.choose([ImageRef(URI, bytes=10)]))
    assert +selection.counts == {reasons[place]: 1}


@pytest.mark.parametrize(("is_included", "reason"), [(True, "other_model"), (False, "not_selected")])
def test_where_chooses_among_images_of_another_model(is_included: bool, reason: str) -> None:
    other = np.array([False])
    where_ids = np.array([image_id(URI)] if is_included else [], np.int64)
    selection = Selection(
        history_of((URI, None, 10)),
        RunCompatibility(other, SAME, SAME),
        retry="transient",
        where_ids=where_ids,
        storage=Storage(),
    )
    list(selection.choose([ImageRef(URI, bytes=10)]))
    assert +selection.counts == {reason: 1}


def test_an_image_listed_without_a_version_is_statted() -> None:
    history = history_of((URI, "e1", 10))
    store = Store(ObjectInfo(URI, bytes=12, etag="e1"))
    assert list(selection_of(history, store).choose([ImageRef(URI)])) == []
    store.known = ObjectInfo(URI, bytes=12, etag="e2")
    assert list(selection_of(history, store).choose([ImageRef(URI)])) == [ImageRef(URI, bytes=12, etag="e2")]
    # An image that cannot be statted is done; reading it gives the reason.
    store.known = None
    assert list(selection_of(history, store).choose([ImageRef(URI)])) == [ImageRef(URI)]
    assert store.stats == 3


def test_new_images_and_members_of_containers_are_not_statted() -> None:
    store = Store()
    other = ImageRef("s3://bucket/b.jpg")
    member = ImageRef(URI, container="s3://bucket/a.tar")
    assert list(selection_of(history_of((URI, "e1", 10)), store).choose([other, member])) == [other, member]
    assert store.stats == 0


def test_images_planned_before_an_interruption_are_not_chosen_again() -> None:
    first, second = ImageRef(URI, bytes=11), ImageRef("s3://bucket/b.jpg", bytes=11)
    selection = selection_of(history_of((URI, None, 10)))
    selection.resume(np.array([image_id(first.uri)]), {"changed": 1})
    assert list(selection.choose([first, second])) == [second]
    counts = selection.counts_dict(deleted=3)
    assert (counts["new"], counts["changed"], counts["retried"], counts["deleted"]) == (1, 1, 0, 3)
    assert counts["listed"] == 2
    assert selection.history.is_listed.all()


def test_a_listing_is_taken_a_batch_at_a_time() -> None:
    taken = 0

    def listing() -> "object":
        nonlocal taken
        for number in range(3 * BATCH_IMAGES):
            taken += 1
            yield ImageRef(f"s3://bucket/{number}.jpg")

    chosen = selection_of(history_of((URI, "e1", 10))).choose(listing())  # type: ignore[arg-type]
    next(chosen)
    assert taken == BATCH_IMAGES
