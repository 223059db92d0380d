"""`htc doctor`: reports what is damaged in an output, and repairs it."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.terminal.console import say, write_line, write_table
from pipeline.errors import DamagedFileError, RunError
from pipeline.maintenance.doctor.examine import Report, examine_output
from pipeline.maintenance.doctor.findings import Finding
from pipeline.maintenance.doctor.repair import RunRepair, repair_run
from pipeline.runs.lease import WATCH_S, RunHeldError, lease_uri, take_lease
from pipeline.storage.cas_file import CasFile
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection


def examine_and_report(
    output_uri: str,
    *,
    is_repaired: bool = False,
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Examine an output, repair it if asked to, and report the findings.

    Args:
        sleep: waits, before a lease that cannot be read is removed.

    Returns:
        The exit code: 0 when nothing was found, or everything was repaired; 1 when findings are left.

    Raises:
        InputError: there is no output.
        StorageError: storage failed.
    """
    storage = Storage(storage_section)
    report = examine_output(storage, output_uri)
    done: list[str] = []
    left = list(report.findings)
    if is_repaired and left:
        done, left = _repair(storage, report, sleep)
        report = examine_output(storage, output_uri)
    if is_json:
        write_line(json.dumps(_described(report, done, left)))
        return 1 if left else 0
    for sentence in done:
        write_line(sentence)
    _write_findings(report.output_uri, left)
    for run in report.runs:
        if run.is_held:
            is_known = all(finding.file != lease_uri(report.output_uri, run.run) for finding in run.findings)
            verb = "is" if is_known else "may be"
            write_line(f"The run {run.run} {verb} in progress; files that may still change were not examined.")
        elif run.shards_left > 0:
            shards = count_of(run.shards_left, "shard")
            write_line(
                f"The run {run.run} has {shards} to do; the same `htc run` command with --run {run.run} does them."
            )
    if not left:
        what = "All damage is repaired" if done else "Nothing is damaged"
        write_line(f"{what}: {count_of(len(report.runs), 'run')}, {count_of(report.files, 'file')}.")
    elif not is_repaired and any(finding.repair != "none" for finding in left):
        write_line(f"{count_of(len(left), 'finding')}; --repair repairs what it can, and deletes no row.")
    return 1 if left else 0


def _repair(storage: Storage, report: Report, sleep: Callable[[float], None]) -> tuple[list[str], list[Finding]]:
    """Repair run by run; return what was done, and what is left."""
    moment = datetime.now(UTC)
    done: list[str] = []
    left: list[Finding] = []
    others = RunRepair(storage, report.output_uri, moment, lambda: None)
    for run in report.runs:
        if all(finding.repair == "none" for finding in run.findings):
            left += run.findings
            continue
        if any(finding.file == lease_uri(report.output_uri, run.run) for finding in run.findings):
            _clear_lease(storage, report.output_uri, run.run, others, sleep)
        try:
            lease = take_lease(storage, report.output_uri, run.run, report=say, sleep=sleep)
        except RunHeldError as error:
            say(f"Not repaired: {str(error).partition('; ')[0].rstrip('.')}; try again when that has ended.")
            left += run.findings
            continue
        try:
            did, is_left = repair_run(storage, report.output_uri, run.run, lease, moment)
        except RunError as error:
            say(f"Not repaired: {error}")
            left += run.findings
        else:
            done += did
            left += is_left
        finally:
            lease.release()
    for finding in report.others:
        others.repair(finding)
    return [*done, *others.done], left


def _clear_lease(storage: Storage, output_uri: str, run: str, aside: RunRepair, sleep: Callable[[float], None]) -> None:
    """Remove a lease that cannot be read, unless a driver renews it meanwhile."""
    file = CasFile(storage, lease_uri(output_uri, run))
    try:
        seen = file.read()
    except DamagedFileError:
        # There is a folder in its place, which no driver can renew.
        aside.set_aside(file.uri)
        return
    say(f"{file.uri} cannot be read; watching it for {WATCH_S:.0f} s, in case a driver renews it.")
    sleep(WATCH_S)
    now = file.read()
    if seen is not None and now is not None and now.version == seen.version:
        file.delete()


def _write_findings(output_uri: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    rows = [
        [finding.file.removeprefix(output_uri).lstrip("/"), finding.kind, finding.problem, finding.advice]
        for finding in findings
    ]
    write_table(["file", "", "problem", "way out"], rows)


def _described(report: Report, done: Sequence[str], left: Sequence[Finding]) -> dict[str, object]:
    return {
        "output": report.output_uri,
        "files": report.files,
        "runs": [{"run": run.run, "is_held": run.is_held, "shards_left": run.shards_left} for run in report.runs],
        "repaired": list(done),
        "findings": [finding.to_dict() for finding in left],
    }
