"""`htc runs --overdue`: whether an output waits for a run that did not come, does not end, or has lost its driver."""

from collections.abc import Iterator
from datetime import UTC, datetime

from jobs.monitoring.output_status import OutputReader, OutputStatus
from jobs.terminal.console import say, write_json, write_line
from pipeline.errors import InputError, StorageError
from pipeline.storage.storage import Storage
from pipeline.text import format_duration


def report_lateness(
    output_uri: str, storage: Storage, *, expect_every_s: float | None = None, is_json: bool = False
) -> int:
    """Write whether an output is late: a line, or one JSON object.

    Args:
        expect_every_s: see `OutputReader`.

    Returns:
        The exit code: 1 when it is late, else 0.

    Raises:
        InputError: the folder holds no run.
        StorageError: storage failed.
    """
    status = OutputReader(output_uri, storage, expect_every_s=expect_every_s).read()
    if status.problem:
        raise StorageError(f"{output_uri} cannot be read: {status.problem}.")
    if status.last is None:
        raise InputError(f"{output_uri} holds no run of htc; start one with `htc run INPUT {output_uri}`.")
    now = datetime.now(UTC)
    late = list(find_lateness(status, now))
    success = status.last_success
    if is_json:
        last = status.last
        values = {
            "output": output_uri,
            "is_overdue": bool(late),
            "reasons": late,
            "last_run": last.run,
            "state": last.state,
            "last_success": success and success.isoformat(),
            "expect_every_s": status.expect_every_s,
            "deadline": last.deadline and last.deadline.isoformat(),
        }
        write_json(values)
    elif late:
        for sentence in late:
            say(sentence)
    else:
        ago = "" if success is None else f": {status.last_success_run} was complete {_ago(success, now)}"
        write_line(f"{output_uri} is not overdue{ago}.")
    return 1 if late else 0


def find_lateness(status: OutputStatus, now: datetime) -> Iterator[str]:
    """Yield in a sentence each why an output is late; the rules for Prometheus ask the same.

    Args:
        now: UTC.
    """
    last = status.last
    if last is None:
        return
    if last.state == "lost":
        heard = "" if last.heartbeat is None else f"; its last heartbeat was {_ago(last.heartbeat, now)}"
        yield f"The driver of {last.run} is gone and left no summary{heard}; run the same command again to resume."
    if last.state == "running" and last.deadline is not None and now > last.deadline:
        yield (
            f"{last.run} should have ended {_ago(last.deadline, now)} and still runs, with {last.images_done:,} of "
            f"{last.images:,} images done; look at `htc status {status.output}`."
        )
    since = status.last_success or status.first_began
    if since is not None and (now - since).total_seconds() > status.expect_every_s:
        expected = f"one is expected every {format_duration(status.expect_every_s)}"
        if status.last_success is None:
            yield f"No run of {status.output} has been complete since the first began {_ago(since, now)}; {expected}."
        else:
            ended = f"({status.last_success_run}) ended {_ago(since, now)}"
            yield f"The last complete run of {status.output} {ended}; {expected}."


def _ago(moment: datetime, now: datetime) -> str:
    return f"{format_duration(max(0.0, (now - moment).total_seconds()))} ago"
