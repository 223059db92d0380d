"""What an output holds of each image now: its newest `ok` row, unless the image was deleted from the input since."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.deletions import read_deletions

if TYPE_CHECKING:
    from pipeline.results import Results


def needed_runs(results: "Results") -> set[str]:
    """Return the runs without which the view `current` would answer something else.

    Those are the runs that hold the newest `ok` row of an image that was not deleted since, and those that say of an
    image that it was deleted while one of the former holds an older `ok` row of it. Runs are to be removed oldest
    first: a deletion must not go before the rows that it hides.
    """
    runs = results.runs()
    ids, orders = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    deleted_ids, deleted_orders = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for order, run in enumerate(runs):
        table = results.images(run, ["image_id", "status"])
        is_ok = np.asarray(table.column("status").to_pylist(), dtype=object) == "ok"
        found = np.asarray(table.column("image_id"), dtype=np.int64)[is_ok]
        ids.append(found)
        orders.append(np.full(len(found), order, np.int32))
        gone = np.asarray(read_deletions(results, run, ["image_id"]).column("image_id"), dtype=np.int64)
        deleted_ids.append(gone)
        deleted_orders.append(np.full(len(gone), order, np.int32))
    rows, rows_order = np.concatenate(ids), np.concatenate(orders)
    marks, marks_order = _newest(np.concatenate(deleted_ids), np.concatenate(deleted_orders))
    latest, latest_order = _newest(rows, rows_order)
    gone_order = _order_of(latest, marks, marks_order)
    needed = {int(order) for order in np.unique(latest_order[latest_order >= gone_order])}
    # A mark is needed while a needed run holds a row that it hides; of an image that came back it hides nothing.
    hidden = rows_order < _order_of(rows, latest, gone_order)
    hidden &= _order_of(rows, latest, latest_order) < _order_of(rows, latest, gone_order)
    while True:
        at_hand = rows[hidden & np.isin(rows_order, list(needed))]
        more = {int(order) for order in np.unique(_order_of(at_hand, latest, gone_order))}
        if more <= needed:
            return {runs[order] for order in needed}
        needed |= more


def _newest(ids: NDArray[Any], orders: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct ids, ascending, each with its greatest order."""
    by_id = np.lexsort((orders, ids))
    ids, orders = ids[by_id], orders[by_id]
    is_last = np.append(ids[1:] != ids[:-1], True)[: len(ids)]
    return ids[is_last], orders[is_last]


def _order_of(ids: NDArray[Any], marks: NDArray[Any], orders: NDArray[Any]) -> NDArray[Any]:
    """Return the order of each id's mark, -1 where it has none."""
    if not len(marks):
        return np.full(len(ids), -1, np.int32)
    at = np.minimum(np.searchsorted(marks, ids), len(marks) - 1)
    return np.where(marks[at] == ids, orders[at], -1).astype(np.int32)
