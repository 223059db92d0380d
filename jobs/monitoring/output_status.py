"""How the last run of an output ended, and when the last one was complete: from its small JSON files alone.

So it works on a bucket without the cluster, and costs one listing and a few small reads however large the tables are.
`htc runs` and `htc status` judge by the tables; here a run's own files are believed.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from pipeline.driver.progress_file import load_progress
from pipeline.errors import DamagedFileError, StorageError
from pipeline.job_spec.deadline import deadline_after
from pipeline.output.layout import TOMBSTONE
from pipeline.output.run_record import RunRecord, age_order, read_record
from pipeline.runs.last_failure import read_last_failure
from pipeline.runs.lease import FoundLease, judge_holders
from pipeline.runs.outcomes import Outcome
from pipeline.runs.summary import read_summary
from pipeline.storage.damage import warn
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.text import message_of

log = logging.getLogger(__name__)

LastState = Literal[Outcome, "running", "failed", "lost"]
STATES: tuple[LastState, ...] = get_args(Literal[Outcome, "running", "failed", "lost"])
"""failed: it could not begin, or broke off. lost: its driver vanished without a summary."""
EXPECT_EVERY_S = 26 * 3600.0
"""A nightly run, and two hours."""


@dataclass(frozen=True)
class LastRun:
    """The newest attempt at a run of an output.

    run: its name, "" for one that could not begin. began, ended: UTC, of its last session; `ended` is None while it
    runs and where its driver vanished. created: when its first session began. deadline: the `overdue_after_s` of its
    spec after that. reason: one sentence. statuses: rows by status. error_rate, max_error_rate: 0 to 1. heartbeats:
    how often its driver has renewed the lease, None without a lease; heartbeat: when, by its own clock.
    """

    run: str
    state: LastState
    began: datetime
    created: datetime
    ended: datetime | None = None
    deadline: datetime | None = None
    exit_code: int | None = None
    reason: str = ""
    images: int = 0
    images_done: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    error_rate: float | None = None
    max_error_rate: float | None = None
    seconds: float | None = None
    images_per_s: float | None = None
    heartbeats: int | None = None
    heartbeat: datetime | None = None


@dataclass(frozen=True)
class OutputStatus:
    """The status of an output.

    problem: why it could not be read, else "". runs: how many there are. last: the newest attempt, None without any.
    last_success: end of the newest complete run; last_success_run: its name. first_began: of the oldest run.
    last_end: of the newest attempt that has ended. expect_every_s: seconds from one complete run to the next.
    """

    output: str
    expect_every_s: float
    problem: str = ""
    runs: int = 0
    last: LastRun | None = None
    last_success: datetime | None = None
    last_success_run: str = ""
    first_began: datetime | None = None
    last_end: datetime | None = None


class OutputReader:
    """Reads the status of one output again and again; files that have not changed are not read again."""

    def __init__(
        self,
        output_uri: str,
        storage: Storage,
        *,
        expect_every_s: float | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`expect_every_s`: seconds; None takes the newest run's `notify.expect_every_s`, or EXPECT_EVERY_S."""
        self._output_uri = output_uri
        self._storage = storage
        self._expect_every_s = expect_every_s
        self._clock = clock
        self._sleep = sleep
        self._records: dict[str, tuple[object, RunRecord | None]] = {}
        self._summaries: dict[str, tuple[object, Mapping[str, Any] | None]] = {}

    def read(self) -> OutputStatus:
        """Return the status now; what cannot be read is its `problem`."""
        try:
            status = self._read()
            if status.last is not None and status.last.state == "lost":
                # Its driver may have ended between the listing and the look at its lease.
                status = self._read()
        except StorageError as error:
            return OutputStatus(
                self._output_uri, self._expect_every_s or EXPECT_EVERY_S, problem=message_of(error, max_chars=500)
            )
        return status

    def _read(self) -> OutputStatus:
        files = self._list()
        records = sorted(
            (record for run, names in files.items() if (record := self._record(run, names)) is not None), key=age_order
        )
        ended = [(record, found) for record in records if (found := self._summary(record.run, files[record.run]))]
        complete = [
            (_end_of(record, found), record.run) for record, found in ended if found.get("status") == "complete"
        ]
        success, success_run = max(complete, default=(None, ""))
        last = self._last_run(records[-1], files[records[-1].run]) if records else None
        last = self._with_failure(last)
        ends = [_end_of(record, found) for record, found in ended]
        if last is not None and last.ended is not None:
            ends.append(last.ended)
        return OutputStatus(
            self._output_uri,
            self._expected(records[-1] if records else None),
            runs=len(records),
            last=last,
            last_success=success,
            last_success_run=success_run,
            first_began=_moment(records[0].created) if records else None,
            last_end=max(ends, default=None),
        )

    def _list(self) -> dict[str, dict[str, object]]:
        """Return the JSON files of each run that is not being pruned, with their versions."""
        files: dict[str, dict[str, object]] = {}
        for listed in self._storage.list(join(self._output_uri, "runs"), "*/*.json", missing_ok=True):
            run, name = listed.uri.split("/")[-2:]
            files.setdefault(run, {})[name] = (listed.etag, listed.bytes)
        return {run: names for run, names in files.items() if TOMBSTONE not in names and "run.json" in names}

    def _record(self, run: str, names: Mapping[str, object]) -> RunRecord | None:
        version = names["run.json"]
        if run not in self._records or self._records[run][0] != version:
            try:
                record = read_record(self._storage, self._output_uri, run)
            except DamagedFileError as error:
                warn(error)
                record = None
            self._records[run] = version, record
        return self._records[run][1]

    def _summary(self, run: str, names: Mapping[str, object]) -> Mapping[str, Any] | None:
        if "summary.json" not in names:
            return None
        version = names["summary.json"]
        if run not in self._summaries or self._summaries[run][0] != version:
            self._summaries[run] = version, read_summary(self._storage, self._output_uri, run)
        return self._summaries[run][1]

    def _last_run(self, record: RunRecord, names: Mapping[str, object]) -> LastRun:
        run, storage, uri = record.run, self._storage, self._output_uri
        lease = None
        if "lease.json" in names:
            held = judge_holders(storage, uri, [run], clock=self._clock, sleep=self._sleep, report=log.debug)
            lease = held.get(run)
        summary = self._summary(run, names)
        found = _ended_run(record, summary) if summary else _unended_run(record)
        state = judge_last_state(summary, lease, has_progress="progress.json" in names)
        if lease is not None and lease.holder is not None:
            holder = lease.holder
            found = replace(found, heartbeats=holder.beats, heartbeat=holder.last_heartbeat)
            if state in ("running", "lost"):
                found = replace(found, began=holder.since_utc)
        if state in ("running", "lost"):
            found = replace(found, ended=None, exit_code=None, reason="")
            progress = load_progress(storage, uri, run) if "progress.json" in names else None
            if progress is not None:
                found = replace(
                    found,
                    images=progress["images_total"],
                    images_done=progress["images_done"],
                    statuses=progress["statuses"],
                    images_per_s=progress["images_per_s"],
                )
        return replace(found, state=state)

    def _with_failure(self, last: LastRun | None) -> LastRun | None:
        """Return the attempt that could not begin or broke off instead, where nothing has begun or ended since."""
        failure = read_last_failure(self._storage, self._output_uri)
        if failure is None:
            return last
        ended = _moment(failure["ended"])
        run, exit_code, reason = str(failure.get("run", "")), failure["exit_code"], str(failure.get("reason", ""))
        if last is None:
            return LastRun(run, "failed", ended, ended, ended, exit_code=exit_code, reason=reason)
        if last.state == "running" or ended < (last.ended or last.began):
            return last
        if run == last.run:
            return replace(last, state="failed", ended=ended, exit_code=exit_code, reason=reason)
        return LastRun(run, "failed", ended, ended, ended, exit_code=exit_code, reason=reason)

    def _expected(self, newest: RunRecord | None) -> float:
        if self._expect_every_s is not None:
            return self._expect_every_s
        return _seconds_of(newest, "expect_every_s") or EXPECT_EVERY_S


def read_output_status(
    output_uri: str, storage: Storage | None = None, *, expect_every_s: float | None = None
) -> OutputStatus:
    """Return the status of an output now, see `OutputReader`."""
    return OutputReader(output_uri, storage or Storage(), expect_every_s=expect_every_s).read()


def judge_last_state(summary: Mapping[str, Any] | None, lease: FoundLease | None, *, has_progress: bool) -> LastState:
    """Find out the state of a run by its small files.

    | summary          | lease      | progress | state                                              |
    |------------------|------------|----------|----------------------------------------------------|
    | any              | alive      | yes      | running                                            |
    | none             | alive      | no       | running: it has just begun                         |
    | there is one     | alive      | no       | the summary's: a maintenance command holds it      |
    | any              | not alive  | yes      | lost                                               |
    | none, incomplete | not alive  | no       | lost; killed before it wrote its first progress    |
    | complete         | not alive  | no       | complete: a maintenance command was killed         |
    | there is one     | none       | no       | the summary's                                      |
    | none             | none       | no       | lost                                               |

    An unreadable lease counts as alive.
    """
    if lease is not None and lease.is_alive:
        return _status_in(summary) if summary and not has_progress else "running"
    if has_progress or summary is None:
        return "lost"
    status = _status_in(summary)
    return "lost" if lease is not None and status != "complete" else status


def _status_in(summary: Mapping[str, Any]) -> LastState:
    return next(state for state in STATES if state == summary["status"])


def _ended_run(record: RunRecord, summary: Mapping[str, Any]) -> LastRun:
    return replace(
        _unended_run(record),
        began=_moment(summary.get("began")) if summary.get("began") else _moment(record.created),
        ended=_end_of(record, summary),
        exit_code=summary.get("exit_code"),
        reason=str(summary.get("reason") or ""),
        images=summary.get("images", 0),
        images_done=summary.get("images_done", 0),
        statuses=summary.get("statuses", {}),
        error_rate=_number(summary.get("error_rate")),
        max_error_rate=_number(summary.get("max_error_rate")),
        seconds=_number(summary.get("seconds")),
        images_per_s=_number(summary.get("images_per_s")),
    )


def _unended_run(record: RunRecord) -> LastRun:
    created = _moment(record.created)
    return LastRun(
        record.run,
        "running",
        began=created,
        created=created,
        deadline=_deadline_of(record, created),
        images=record.image_count,
    )


def _deadline_of(record: RunRecord, created: datetime) -> datetime | None:
    """Return when the run is overdue: as `notify` says, else as its budget does."""
    overdue_after_s = _seconds_of(record, "overdue_after_s")
    if overdue_after_s is not None:
        return created + timedelta(seconds=overdue_after_s)
    budget = record.spec.get("budget")
    text = budget.get("deadline") if isinstance(budget, Mapping) else None
    return deadline_after(str(text), created) if text else None


def _seconds_of(record: RunRecord | None, key: str) -> float | None:
    # A record of an earlier release has no such key.
    notify = record.spec.get("notify") if record is not None else None
    return _number(notify.get(key)) if isinstance(notify, Mapping) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _end_of(record: RunRecord, summary: Mapping[str, Any]) -> datetime:
    """Return when a run ended; of summaries of earlier releases, which do not say so, about when."""
    if summary.get("ended"):
        return _moment(summary["ended"])
    return _moment(record.created) + timedelta(seconds=_number(summary.get("seconds")) or 0.0)


def _moment(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        # A damaged time must not hide the run; `htc doctor` reports the file.
        return datetime.fromtimestamp(0, UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
