"""The cost of a run: worker-hours and money over all of its sessions, kept in runs/<run>/cost.json.

A session with a price rewrites the file while it works, so that the cost of a driver that was killed is known up to the
last rewrite. Worker-hours count from the moment a worker's process runs to its end, the time in which it loads its
model included. The machine of the driver costs nothing here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from pipeline.errors import DamagedFileError
from pipeline.output.json_files import read_json, write_json
from pipeline.output.layout import run_folder
from pipeline.runs.summary import read_summary
from pipeline.storage.damage import damaged, warn
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join


@dataclass(frozen=True)
class RunCost:
    """What the workers of a run have cost so far.

    worker_s: seconds of all workers. amount: of money; None where no price was given.
    """

    worker_s: float = 0.0
    amount: float | None = None

    def plus(self, worker_s: float, price_per_hour: float | None) -> "RunCost":
        """Return the cost after `worker_s` more seconds at a price."""
        total = replace(self, worker_s=self.worker_s + worker_s)
        if price_per_hour is None:
            return total
        # Sessions without a price count at the present one.
        before = self.worker_s / 3600 * price_per_hour if self.amount is None else self.amount
        return replace(total, amount=before + worker_s / 3600 * price_per_hour)


def cost_uri(output_uri: str, run: str) -> str:
    """Return the uri of a run's cost.json."""
    return join(run_folder(output_uri, run), "cost.json")


def read_cost(storage: Storage, output_uri: str, run: str) -> RunCost:
    """Read what earlier sessions of a run have cost, from cost.json or, without one, from summary.json.

    A file that is missing or damaged counts as nothing; damage is logged.

    Raises:
        StorageError: storage failed.
    """
    try:
        cost = load_cost(storage, output_uri, run)
    except DamagedFileError as error:
        warn(error)
        cost = None
    if cost is not None:
        return cost
    summary = read_summary(storage, output_uri, run) or {}
    found = summary.get("cost")
    return (_cost_in(found) if isinstance(found, Mapping) else None) or RunCost()


def load_cost(storage: Storage, output_uri: str, run: str) -> RunCost | None:
    """Read cost.json; None without one.

    Raises:
        DamagedFileError: it is damaged.
        StorageError: storage failed.
    """
    uri = cost_uri(output_uri, run)
    content = read_json(storage, uri)
    if content is None:
        return None
    cost = _cost_in(content)
    if cost is None:
        raise damaged(uri, "its numbers are missing")
    return cost


def write_cost(storage: Storage, output_uri: str, run: str, cost: RunCost, *, currency: str) -> None:
    """Write cost.json.

    Raises:
        StorageError: storage failed.
    """
    content = {"worker_hours": cost.worker_s / 3600, "amount": cost.amount, "currency": currency}
    write_json(storage, cost_uri(output_uri, run), content)


def _cost_in(content: Mapping[str, Any]) -> RunCost | None:
    hours, amount = content.get("worker_hours"), content.get("amount")
    if not _is_number(hours) or not (amount is None or _is_number(amount)):
        return None
    return RunCost(hours * 3600, amount)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
