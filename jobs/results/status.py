"""Status of a run, read from its output folder alone: also when its cluster is gone."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.driver.progress_file import load_progress, progress_uri
from pipeline.output.parts import shards_of
from pipeline.output.results import Results, open_results
from pipeline.output.run_record import RunRecord, list_records
from pipeline.planning.manifest import Manifest
from pipeline.runs.counting import count_run
from pipeline.runs.lease import judge_holders
from pipeline.runs.outcomes import State
from pipeline.runs.state import find_run_state
from pipeline.runs.summary import read_summary
from pipeline.storage.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Driver:
    """The holder of a run's lease.

    host, pid: where it runs; "" and 0 when its lease cannot be read, which counts as held. since: when it took the
    lease. heard: its last heartbeat. Both UTC; None when its lease cannot be read.
    job: its id on the cluster, "" for a driver that no job started.
    is_alive: whether it is alive, as far as this process can find out.
    """

    host: str
    pid: int
    since: datetime | None
    heard: datetime | None
    process: str = ""
    job: str = ""
    is_alive: bool = True


@dataclass(frozen=True)
class RunStatus:
    """The status of a run; `htc status --json` has the fields under these names.

    state: see `pipeline.runs.outcomes`.
    images, shards: of the input, as far as it is listed; images_done: those that have their row.
    statuses: rows by status. failure_reasons: those not ok by reason, the most frequent first, capped.
    images_per_s: recently while it runs, of the last session when it has ended; None when not measured.
    eta_s: seconds to go; None when unknown. workers: those with the model loaded, now.
    bottleneck: name, share and sentence of what holds the workers up: in the last minute while it runs, in the last
        session when it has ended; None when unknown.
    worker_time_s: of all workers by cause, see `pipeline.messages.CAUSES`; of the last or the current session.
    driver: the holder of the lease, alive or not; None without one.
    told: the time of the numbers, UTC; None for those counted just now. reason: why it is not complete.
    """

    run: str
    state: State
    created: str
    model: str
    images: int
    images_done: int
    shards: int
    is_listing: bool
    statuses: Mapping[str, int] = field(default_factory=dict)
    failure_reasons: Mapping[str, int] = field(default_factory=dict)
    instances: int | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    workers: int | None = None
    bottleneck: Mapping[str, Any] | None = None
    worker_time_s: Mapping[str, float] | None = None
    driver: Driver | None = None
    told: datetime | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-able values."""
        driver = self.driver and {
            "host": self.driver.host or None,
            "pid": self.driver.pid or None,
            "since": self.driver.since and self.driver.since.isoformat(),
            "heard": self.driver.heard and self.driver.heard.isoformat(),
            "job": self.driver.job or None,
        }
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"driver": driver, "told": self.told and self.told.isoformat()}


def read_status(
    output_uri: str,
    storage: Storage,
    *,
    run: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = log.info,
) -> RunStatus:
    """Find out the status of a run.

    Args:
        run: its name; by default the newest one.
        sleep: waits while a lease is watched whose heartbeat is old, or in the future. report: gets a sentence before.

    Raises:
        InputError: the output holds no run, or none of this name.
        StorageError: it cannot be read.
    """
    results = open_results(output_uri, storage)
    record = _record_of(results, run)
    summary = read_summary(storage, results.output_uri, record.run)
    progress = load_progress(storage, results.output_uri, record.run)
    driver = read_driver(
        storage, results.output_uri, record.run, job=_job_of(progress), clock=clock, sleep=sleep, report=report
    )
    found = find_run_state(
        results,
        record,
        is_held=driver is not None and driver.is_alive,
        # Also a damaged one was written by a driver.
        has_progress=progress is not None or storage.exists(progress_uri(results.output_uri, record.run)),
        has_lease=driver is not None,
        summary=summary,
    )
    if found.state == "running" and driver is not None:
        return _running(record, progress, driver, results)
    if found.summary is None:
        return _status(record, found.state, driver=driver, reason=found.reason, **_count_rows(results, record.run))
    names = (
        *("images", "images_done", "statuses", "failure_reasons", "instances", "images_per_s", "reason"),
        *("bottleneck", "worker_time_s"),
    )
    numbers = {name: found.summary[name] for name in names if name in found.summary}
    return _status(record, found.state, driver=driver, **numbers)


def refresh_status(status: RunStatus, storage: Storage, output_uri: str) -> RunStatus | None:
    """Take the numbers of a running run from its progress.json, without asking whether its driver is alive.

    Returns:
        None when the run is not running, or has no progress.json: then `read_status` knows more.

    Raises:
        StorageError: storage failed.
    """
    progress = load_progress(storage, output_uri, status.run) if status.state == "running" else None
    return None if progress is None else replace(status, **_numbers(progress))


def read_driver(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    job: str = "",
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = log.info,
) -> Driver | None:
    """Find the holder of a run's lease; None without a lease. A damaged lease counts as held, as for `htc runs`.

    Raises:
        StorageError: storage failed.
    """
    lease = judge_holders(storage, output_uri, [run], clock=clock, sleep=sleep, report=report).get(run)
    if lease is None:
        return None
    holder = lease.holder
    if holder is None:
        return Driver("", 0, None, None, job=job)
    return Driver(holder.host, holder.pid, holder.since_utc, holder.last_heartbeat, holder.process, job, lease.is_alive)


def find_live_driver(storage: Storage, output_uri: str, run: str | None) -> tuple[str, Driver] | None:
    """Find the live driver of a run, by default of the newest one; None without one.

    Raises:
        StorageError: the output cannot be read.
    """
    names = [run] if run else [record.run for record in list_records(storage, output_uri, damaged_runs={})[-1:]]
    for name in names:
        driver = read_driver(storage, output_uri, name)
        if driver is not None and driver.is_alive:
            return name, replace(driver, job=_job_of(load_progress(storage, output_uri, name)))
    return None


def _job_of(progress: Mapping[str, Any] | None) -> str:
    return str((progress or {}).get("job") or "")


def _record_of(results: Results, run: str | None) -> RunRecord:
    records = {record.run: record for record in results.records}
    if run is None:
        return results.records[-1]
    results.check_run(run)
    return records[run]


def _running(record: RunRecord, progress: Mapping[str, Any] | None, driver: Driver, results: Results) -> RunStatus:
    if progress is None:
        # The driver has just begun, or storage refuses the file.
        return _status(record, "running", driver=driver, **_count_rows(results, record.run))
    return _status(
        record,
        "running",
        driver=driver,
        **_numbers(progress),
    )


def _numbers(progress: Mapping[str, Any]) -> dict[str, Any]:
    names = ("images_done", "is_listing", "statuses", "failure_reasons", "images_per_s", "eta_s", "workers")
    return {name: progress[name] for name in names} | {
        "told": datetime.fromisoformat(progress["written"]),
        "images": progress["images_total"],
        # Absent where an earlier version wrote the file.
        "bottleneck": progress.get("bottleneck"),
        "worker_time_s": live.get("time_s") if isinstance(live := progress.get("live"), dict) else None,
    }


def _status(record: RunRecord, state: State, **known: Any) -> RunStatus:
    manifest = Manifest.from_dict(record.manifest)
    planned = {
        "images": manifest.image_count,
        "images_done": 0,
        "is_listing": not manifest.is_planned,
        "shards": manifest.shard_count,
    }
    return RunStatus(
        run=record.run,
        state=state,
        created=record.created,
        model=record.model_name,
        **{**planned, **known},
    )


def _count_rows(results: Results, run: str) -> dict[str, Any]:
    """Count the committed rows."""
    shard_count = next(record.shard_count for record in results.records if record.run == run)
    rows = count_run(
        results.storage,
        results.output_uri,
        run,
        shard_count=shard_count,
        # Only what counts against the error budget depends on them.
        find_repeats=lambda: np.empty(0, np.int64),
        committed=shards_of(results.committed(run)),
    )
    return {
        "images_done": rows.images,
        "statuses": rows.statuses,
        "failure_reasons": rows.reasons,
        "instances": rows.instances,
    }
