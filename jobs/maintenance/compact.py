"""`htc compact`: merges the many small files of finished runs into few large ones."""

from typing import TYPE_CHECKING

from jobs.maintenance.run_lease import hold_run
from jobs.terminal.console import say, size_of, write_line, write_table
from pipeline.errors import DamagedFileError, RunError, SpecError
from pipeline.job_spec.job import DEFAULT_PART_MIB, MAX_PART_MIB
from pipeline.maintenance.compaction import Compacted, compact_run
from pipeline.maintenance.publications import read_publications
from pipeline.output.results import open_results
from pipeline.runs.lease import RunHeldError
from pipeline.runs.state import has_all_rows_in
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from pipeline.output.results import Results
    from pipeline.storage.config import StorageSection

MIB = 1 << 20


class _NotNowError(RunError):
    """A run that cannot be compacted now; the message says why."""


def compact_output(
    output_uri: str,
    *,
    run: str | None = None,
    target_mib: int | None = None,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Compact one run, or all that have all rows, and report what was done.

    Args:
        target_mib: the size of a large file, at most; None for each run's `output.target_part_mib`.

    Returns:
        The exit code: 1 when a file of a run is damaged, a run is held, or the run that was named cannot be compacted;
        else 0.

    Raises:
        SpecError: the target is out of bounds.
        InputError: no such run, or no run at all.
        StorageError: storage failed; every row still counts once.
        RunError: the lease was lost; likewise.
    """
    if target_mib is not None and not 1 <= target_mib <= MAX_PART_MIB:
        raise SpecError(f"--target-mib must be between 1 and {MAX_PART_MIB}, not {target_mib}.")
    results = open_results(output_uri, Storage(storage_section))
    if run is not None:
        results.check_run(run)
    done, refused, is_held, is_damaged = [], [], False, False
    for name in [run] if run is not None else results.runs():
        try:
            done.append(_compact(results, name, target_mib))
        except (_NotNowError, RunHeldError) as error:
            refused.append(str(error))
            is_held = is_held or isinstance(error, RunHeldError)
        except DamagedFileError as error:
            is_damaged = True
            refused.append(f"the run {name}: {error}")
    for reason in refused:
        say(f"Not compacted: {reason}")
    _report([each for each in done if each.ranges], len(done))
    return 1 if is_held or is_damaged or (refused and run is not None) else 0


def _compact(results: "Results", run: str, target_mib: int | None) -> Compacted:
    storage, output_uri = results.storage, results.output_uri
    record = next(each for each in results.records if each.run == run)
    # Runs of older releases have no such key.
    chosen = target_mib or int(record.spec.get("output", {}).get("target_part_mib", DEFAULT_PART_MIB))
    if not has_all_rows_in(results, record):
        raise _NotNowError(f"the run {run} is not complete; finish it first, or prune it.")
    with hold_run(storage, output_uri, run) as lease:
        places = read_publications(storage, output_uri, run)
        if places:
            raise _NotNowError(
                f"the run {run} is published in {places[0].catalog}, whose tables name its files; compact before "
                f"publishing, or withdraw it with `htc publish --withdraw {run}` and publish it again."
            )
        return compact_run(storage, output_uri, run, target_bytes=chosen * MIB, check=lease.check)


def _report(changed: list[Compacted], examined: int) -> None:
    if not changed:
        if examined:
            write_line("Nothing to compact.")
        return
    rows = [
        [
            each.run,
            f"{each.files_before:,}",
            f"{each.files_after:,}",
            size_of(each.bytes_before),
            size_of(each.bytes_after),
        ]
        for each in changed
    ]
    columns = ["run", "files before", "after", "size before", "after"]
    write_table(columns, rows, alignments=["left", "right", "right", "right", "right"])
