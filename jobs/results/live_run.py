"""A run as its driver last described it in progress.json: workers, shards, what each waits for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from jobs.results.status import RunStatus
from pipeline.driver.live_workers import ORDERS, WorkerRow
from pipeline.driver.progress_file import load_progress, progress_uri
from pipeline.driver.shard_queue import InFlight
from pipeline.storage.damage import damaged, warn
from pipeline.storage.storage import Storage

# The driver writes every five seconds; a store that is slow for a moment is no reason to doubt it.
STALE_AFTER_S = 30.0
# The keys of `ORDERS`, for the command's help.
SORTS = tuple(ORDERS)


class LiveWorkersPart(BaseModel):
    """`live.workers` of progress.json, see `pipeline.driver.live_view.LiveView`."""

    alive: int = 0
    starting: int = 0
    started: int = 0
    lost: int = 0
    causes: dict[str, int] = {}
    images_per_s: float = 0.0
    batch_fill: float | None = None
    memory_bytes: int = 0
    max_memory_bytes: int = 0
    gpu_bytes: int = 0
    gpu_share: float | None = None
    tiles_done: int = 0
    tiles_total: int = 0
    rows: tuple[WorkerRow, ...] = ()


class SlowShard(BaseModel):
    """A committed shard that took long."""

    shard: int
    worker: int
    seconds: float
    images: int


class LiveShards(BaseModel):
    """`live.shards` of progress.json."""

    left: int = 0
    in_flight: int = 0
    waiting: int = 0
    retrying: int = 0
    usual_s: float | None = None
    oldest: tuple[InFlight, ...] = ()
    slowest: tuple[SlowShard, ...] = ()


class LivePart(BaseModel):
    """`live` of progress.json; keys that a later version adds are ignored, missing ones have their default."""

    time_s: dict[str, float] = {}
    recent_s: dict[str, float] = {}
    busy_shares: dict[str, float] = {}
    workers: LiveWorkersPart = LiveWorkersPart()
    shards: LiveShards = LiveShards()
    failed_attempts: dict[str, int] = {}


@dataclass(frozen=True)
class LiveRun:
    """A run and what its driver last wrote of it.

    written: when the driver wrote it, UTC; None when it has written nothing yet, or nothing is left of it.
    live: None when the driver is of a version that does not describe its workers, or has written nothing.
    """

    status: RunStatus
    written: datetime | None = None
    live: LivePart | None = None

    def age_s(self, now: datetime) -> float | None:
        """Return how old the driver's description is; never negative, whatever the clocks say."""
        return None if self.written is None else max(0.0, (now - self.written).total_seconds())

    def is_stale(self, now: datetime) -> bool:
        """Return whether the driver should have written again long ago."""
        age_s = self.age_s(now)
        return age_s is not None and age_s > STALE_AFTER_S


def read_live(storage: Storage, output_uri: str, status: RunStatus) -> LiveRun:
    """Read what the driver of a run last wrote.

    Raises:
        StorageError: storage failed.
    """
    progress = load_progress(storage, output_uri, status.run)
    if progress is None:
        return LiveRun(status)
    return LiveRun(status, _utc(progress), _live_part(progress_uri(output_uri, status.run), progress))


def _utc(progress: Mapping[str, Any]) -> datetime:
    written = datetime.fromisoformat(progress["written"])
    return written if written.tzinfo else written.replace(tzinfo=UTC)


def _live_part(uri: str, progress: Mapping[str, Any]) -> LivePart | None:
    if not progress.get("live"):
        return None
    try:
        return LivePart.model_validate(progress["live"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("live", *first["loc"])))
        warn(damaged(uri, f"{where}: {first['msg']}"))
        return None


def choose_workers(
    rows: tuple[WorkerRow, ...], *, sort: str, most: int, page: int
) -> tuple[tuple[WorkerRow, ...], int, int]:
    """Return one page of the workers in an order of `ORDERS`, that page's number, and how many pages there are.

    Args:
        most: workers on a page. page: from 1; a number beyond the last page is the last page.
    """
    ordered = sorted(rows, key=ORDERS[sort])
    pages = max(1, -(-len(ordered) // most))
    page = min(page, pages)
    return tuple(ordered[(page - 1) * most : page * most]), page, pages
