"""What is known of each image: the same as plain dictionaries would know, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning import history as histories
from pipeline.planning.history import DELETED, EVENT, OK, History, build_history, hash_etags

Event = tuple[int, int, int, int]
# Numbers of every sign, some at the ends; few, so that most come several times.
IDS = [-(2**63), -(2**56) - 1, -1, 0, 1, 2**56, 2**63 - 1]
EVENTS = st.lists(
    st.tuples(st.sampled_from(IDS), st.integers(0, 4), st.integers(0, 3), st.integers(1, 9)),
    unique_by=lambda event: (event[0], event[1], event[2] == DELETED),
)


def batch_of(events: list[Event]) -> np.ndarray:
    batch = np.zeros(len(events), EVENT)
    for place, (number, order, kind, etag) in enumerate(events):
        batch[place] = (number, etag, etag * 10, order, etag + 100, kind)
    return batch


def known_to(history: History) -> dict[int, tuple[Event, int]]:
    """By number: the newest row, and the order of the newest ok row."""
    return {
        number: (
            (number, entry["newest"]["order"], entry["newest"]["kind"], entry["newest"]["etag"]),
            entry["ok"]["order"],
        )
        for number, entry in zip(history.ids.tolist(), history.entries, strict=True)
    }


def known_plainly(events: list[Event]) -> dict[int, tuple[Event, int]]:
    known = {}
    for number in {event[0] for event in events}:
        own = [event for event in events if event[0] == number]
        mark = max((event[1] for event in own if event[2] == DELETED), default=-1)
        rows = sorted((event for event in own if event[2] != DELETED and event[1] >= mark), key=lambda event: event[1])
        if rows:
            known[number] = (rows[-1], max((row[1] for row in rows if row[2] == OK), default=-1))
    return known


@given(EVENTS, st.booleans())
@settings(max_examples=150, deadline=None)  # a busy machine sorts slowly
def test_the_newest_rows_since_the_last_deletion_are_known(events: list[Event], is_large: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if is_large:
            patch.setattr(histories, "EVENTS_IN_MEMORY", 3)
        history = build_history([batch_of(events[start : start + 2]) for start in range(0, len(events), 2)])
    assert known_to(history) == known_plainly(events)
    assert history.ids.tolist() == sorted(history.ids.tolist())


@pytest.mark.parametrize("is_large", [False, True])
def test_images_are_found_and_remembered_as_listed(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_large:
        monkeypatch.setattr(histories, "EVENTS_IN_MEMORY", 1)
    monkeypatch.setattr(histories, "SCAN_ENTRIES", 2)
    history = build_history([batch_of([(number, number % 2, OK, 5) for number in (7, -3, 10, 2, 30)])])
    is_known, at = history.find(np.array([2, 3, -3, 99]))
    assert is_known.tolist() == [True, False, True, False]
    assert history.ids[at[is_known]].tolist() == [2, -3]
    history.mark_listed(np.array([2, 99, 10]))
    count, gone = history.not_listed(np.array([True, True]))
    assert (count, history.ids[gone].tolist()) == (5, [-3, 7, 30])
    count, gone = history.not_listed(np.array([False, True]))
    assert (count, history.ids[gone].tolist()) == (2, [-3, 7])


def test_an_empty_history_knows_nothing() -> None:
    history = build_history([])
    history.mark_listed(np.array([1]))
    assert history.find(np.array([1]))[0].tolist() == [False]
    assert history.not_listed(np.array([], bool))[0] == 0


def test_the_disk_is_left_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(histories, "EVENTS_IN_MEMORY", 10)
    history = build_history([batch_of([(number, 0, OK, 5) for number in range(100)])])
    assert len(history) == 100
    assert list(tmp_path.iterdir()) == []


def test_versions_that_are_not_known_are_equal_to_no_version() -> None:
    hashes = hash_etags(["a", None, "b", "", "a"], 5)
    assert hashes[0] == hashes[4] != hashes[2]
    assert hashes[1] == 0
    assert 0 not in hashes[[0, 2, 3]]
