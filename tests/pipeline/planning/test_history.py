"""The history agrees with a simple one of dictionaries, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning import history as histories
from pipeline.planning.history import DELETED, EVENT, OK, TRANSIENT, History, build_history, hash_etags, reduce_events

Event = tuple[int, int, int, int]
# Ids of either sign, some at the ends; few, so that most occur several times.
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


def known_by(history: History) -> dict[int, tuple[Event, int]]:
    """By image id: the newest row, and the order of the newest ok row."""
    return {
        number: (
            (number, entry["newest"]["order"], entry["newest"]["kind"], entry["newest"]["etag"]),
            entry["ok"]["order"],
        )
        for number, entry in zip(history.ids.tolist(), history.entries, strict=True)
    }


def known_by_dictionaries(events: list[Event]) -> dict[int, tuple[Event, int]]:
    known = {}
    for number in {event[0] for event in events}:
        own = [event for event in events if event[0] == number]
        deletion = max((event[1] for event in own if event[2] == DELETED), default=-1)
        rows = sorted(
            (event for event in own if event[2] != DELETED and event[1] >= deletion), key=lambda event: event[1]
        )
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
    assert known_by(history) == known_by_dictionaries(events)
    assert history.ids.tolist() == sorted(history.ids.tolist())


@pytest.mark.parametrize(
    ("rows", "newest", "ok_order"),
    [
        ([(0, OK), (2, TRANSIENT)], (2, TRANSIENT), 0),
        ([(0, TRANSIENT)], (0, TRANSIENT), -1),
        ([(0, OK), (1, DELETED)], None, -1),
        ([(0, OK), (1, DELETED), (2, TRANSIENT)], (2, TRANSIENT), -1),
        ([(0, OK), (1, OK), (1, DELETED)], (1, OK), 1),
    ],
)
def test_events_of_an_image_are_reduced_to_one_entry(
    rows: list[tuple[int, int]], newest: tuple[int, int] | None, ok_order: int
) -> None:
    ids, entries = reduce_events(batch_of([(7, order, kind, 1) for order, kind in rows]))
    found = [(entry["newest"]["order"], entry["newest"]["kind"], entry["ok"]["order"]) for entry in entries]
    assert ids.tolist() == ([] if newest is None else [7])
    assert found == ([] if newest is None else [(*newest, ok_order)])


@pytest.mark.parametrize("is_large", [False, True])
def test_images_are_found_and_marked_as_listed(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(histories, "EVENTS_IN_MEMORY", 10)
    history = build_history([batch_of([(number, 0, OK, 5) for number in range(100)])])
    assert len(history) == 100
    assert list(tmp_path.iterdir()) == []


def test_unknown_versions_have_the_hash_zero() -> None:
    hashes = hash_etags(["a", None, "b", "", "a"], 5)
    assert hashes[0] == hashes[4] != hashes[2]
    assert hashes[1] == 0
    assert 0 not in hashes[[0, 2, 3]]
