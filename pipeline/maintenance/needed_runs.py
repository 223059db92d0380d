"""What an output holds of each image now: its newest `ok` row, unless the image was deleted from the input since."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.planning.earlier_rows import EarlierRuns
from pipeline.planning.history import EVENT, OK, History, build_history

if TYPE_CHECKING:
    from pipeline.output.results import Results


def needed_runs(results: "Results") -> set[str]:
    """Return the runs without which the view `current` would answer something else.

    Those are the runs that hold the newest `ok` row of an image that was not deleted since, and those that say of an
    image that it was deleted while one of the former holds an older `ok` row of it. Runs are to be removed oldest
    first: a deletion must not go before the rows that it hides.

    Raises:
        DamagedFileError: a part is damaged or missing.
        StorageError: a part cannot be read.
    """
    return results.retry_moved(lambda: _needed_runs(results))


def _needed_runs(results: "Results") -> set[str]:
    rows = EarlierRuns(results)
    history = build_history(rows.events())
    needed = {int(order) for order in np.unique(history.entries["ok"]["order"]) if order >= 0}
    hidden = _hidden_rows(rows, history)
    # A mark is needed while a needed run holds a row that it hides; that is one more run, with rows of its own.
    while more := {mark for order, mark in hidden if order in needed} - needed:
        needed |= more
    return {rows.runs[order] for order in needed}


def _hidden_rows(rows: EarlierRuns, history: History) -> set[tuple[int, int]]:
    """Return the pairs of a run and a later one that marks as deleted an image with an ok row in the former.

    Left out are images that came back: their newest ok row is current whether the mark is there or not.
    """
    marks = np.concatenate([np.empty(0, EVENT), *rows.deletion_events()])
    marks = marks[np.lexsort((marks["order"], marks["image_id"]))]
    marks = marks[np.append(marks["image_id"][1:] != marks["image_id"][:-1], True)[: len(marks)]]
    pairs: set[tuple[int, int]] = set()
    if not len(marks):
        return pairs
    for events in rows.events():
        ok = events[events["kind"] == OK]
        mark = marks[np.minimum(np.searchsorted(marks["image_id"], ok["image_id"]), len(marks) - 1)]
        is_known, place = history.find(ok["image_id"])
        has_come_back = np.zeros(len(ok), bool)
        has_come_back[is_known] = history.entries["ok"]["order"][place[is_known]] >= 0
        is_marked = (mark["image_id"] == ok["image_id"]) & (ok["order"] < mark["order"]) & ~has_come_back
        pairs |= set(zip(ok["order"][is_marked].tolist(), mark["order"][is_marked].tolist(), strict=True))
    return pairs
