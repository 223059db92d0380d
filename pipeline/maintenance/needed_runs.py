"""The runs that the view `current` needs: those with the newest `ok` row of an image that was not deleted since."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.planning.earlier_rows import EarlierRuns
from pipeline.planning.history import EVENT, OK, History, build_history

if TYPE_CHECKING:
    from pipeline.output.results import Results


def needed_runs(results: "Results") -> set[str]:
    """Return the runs without which the view `current` would have other rows.

    These are the runs that hold the newest `ok` row of an image that was not deleted since, and those with a deletion
    record of an image of which one of the former holds an older `ok` row. Runs must be removed oldest first: a deletion
    record must not go before the rows that it hides.

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
    # A deletion record is needed while a needed run holds a row that it hides. Its run has rows as well, which other
    # deletion records may hide.
    while more := {deletion for order, deletion in hidden if order in needed} - needed:
        needed |= more
    return {rows.runs[order] for order in needed}


def _hidden_rows(rows: EarlierRuns, history: History) -> set[tuple[int, int]]:
    """Return the pairs of a run with an ok row of an image and a later run with a deletion record of it.

    Left out are images that came back: their newest ok row is current with the deletion record and without it.
    """
    deletions = np.concatenate([np.empty(0, EVENT), *rows.deletion_events()])
    deletions = deletions[np.lexsort((deletions["order"], deletions["image_id"]))]
    # The newest of each image.
    is_newest = np.append(deletions["image_id"][1:] != deletions["image_id"][:-1], True)[: len(deletions)]
    deletions = deletions[is_newest]
    pairs: set[tuple[int, int]] = set()
    if not len(deletions):
        return pairs
    for events in rows.events():
        ok = events[events["kind"] == OK]
        places = np.searchsorted(deletions["image_id"], ok["image_id"])
        deletion = deletions[np.minimum(places, len(deletions) - 1)]
        is_known, place = history.find(ok["image_id"])
        has_come_back = np.zeros(len(ok), bool)
        has_come_back[is_known] = history.entries["ok"]["order"][place[is_known]] >= 0
        is_hidden = (deletion["image_id"] == ok["image_id"]) & (ok["order"] < deletion["order"]) & ~has_come_back
        pairs |= set(zip(ok["order"][is_hidden].tolist(), deletion["order"][is_hidden].tolist(), strict=True))
    return pairs
