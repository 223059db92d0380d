"""Which images an incremental run does: the comparison of versions, case by case, and what is asked of the store."""

from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.errors import NotFoundError
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.planning.history import EVENT, OK, History, build_history, hash_etags
from pipeline.planning.selection import BATCH_IMAGES, RunCompatibility, Selection
from pipeline.storage.objects import ObjectInfo

URI = "s3://bucket/a.jpg"
SAME = np.array([True])


@dataclass
class Store:
    """Answers `stat` alone; knows one object, or none."""

    known: ObjectInfo | None = None
    asked: int = 0

    def stat(self, uri: str) -> ObjectInfo:
        self.asked += 1
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
        # Where one has none, by their sizes: an empty object has one as well.
        (("e1", 10), (None, 10), "unchanged"),
        ((None, 10), ("e1", 10), "unchanged"),
        ((None, 10), (None, 10), "unchanged"),
        ((None, 10), (None, 11), "changed"),
        (("e1", 10), (None, 11), "changed"),
        ((None, 0), (None, 0), "unchanged"),
        ((None, 1), (None, 1), "unchanged"),
        ((None, 0), (None, 1), "changed"),
        ((None, 1), (None, 0), "changed"),
        # Where one has neither, nobody can say that it is the same.
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


def test_a_version_that_the_listing_lacks_is_asked_of_the_store() -> None:
    history = history_of((URI, "e1", 10))
    store = Store(ObjectInfo(URI, bytes=12, etag="e1"))
    assert list(selection_of(history, store).choose([ImageRef(URI)])) == []
    store.known = ObjectInfo(URI, bytes=12, etag="e2")
    assert list(selection_of(history, store).choose([ImageRef(URI)])) == [ImageRef(URI, bytes=12, etag="e2")]
    # One that cannot be asked for is done: reading it will say why.
    store.known = None
    assert list(selection_of(history, store).choose([ImageRef(URI)])) == [ImageRef(URI)]
    assert store.asked == 3


def test_images_that_are_new_or_lie_in_a_container_are_not_asked_for() -> None:
    store = Store()
    other = ImageRef("s3://bucket/b.jpg")
    member = ImageRef(URI, container="s3://bucket/a.tar")
    assert list(selection_of(history_of((URI, "e1", 10)), store).choose([other, member])) == [other, member]
    assert store.asked == 0


def test_what_was_chosen_before_the_planning_was_cut_off_is_not_chosen_again() -> None:
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
