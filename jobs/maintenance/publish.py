"""`htc publish`: adds finished runs to the tables of an Iceberg catalog, by reference, one snapshot each."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING

from jobs.maintenance.iceberg.catalog import DEFAULT_NAMESPACE, open_catalog, translated_catalog_errors
from jobs.maintenance.run_lease import hold_run
from jobs.terminal.console import say, write_line, write_table
from pipeline.errors import SpecError
from pipeline.maintenance.publications import read_publications
from pipeline.output.results import open_results
from pipeline.output.run_record import RunRecord, load_record
from pipeline.runs.lease import RunHeldError
from pipeline.runs.state import has_all_rows_in
from pipeline.runs.summary import read_summary
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri
from pipeline.text import count_of

INCLUDE_FLAG = "--include-over-budget"

if TYPE_CHECKING:
    from jobs.maintenance.iceberg.publisher import Publisher
    from pipeline.output.results import Results


def publish_output(
    output_uri: str,
    catalog: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    run: str | None = None,
    is_over_budget_included: bool = False,
    storage_section: StorageSection | None = None,
) -> int:
    """Publish one run, or all finished ones that are not published yet, oldest first; withdraw removed ones.

    Args:
        catalog: sqlite:///path, or a name from pyiceberg's configuration.
        run: publish it even when it is over its error budget.
        is_over_budget_included: also publish runs over their error budget or without a summary.

    Returns:
        The exit code: 1 when a run is left out, its record is damaged, or another process holds it, which also holds up
        all later runs; else 0.

    Raises:
        SpecError: no such catalog, its tables are of another output, or the run is not finished.
        InputError: no such run, or no run at all.
        StorageError: storage or the catalog failed; the next call finishes.
    """
    with opened_publisher(output_uri, catalog, namespace, storage_section) as (results, publisher):
        records, left_out = _chosen(results, run, publisher, is_over_budget_included=is_over_budget_included)
        publisher.make(records)
        missing = [record for record in records if not publisher.has(results, record.run)]
        # In order: after a run that cannot be added now, none is.
        entered = list(takewhile(lambda record: _add(publisher, results, record), missing))
        # A run whose record is damaged still exists.
        gone = sorted(publisher.runs() - {*results.runs(), *results.damaged_runs})
        for name in gone:
            publisher.withdraw(name, None)
            write_line(f"The run {name} is no longer in the output; it was withdrawn from the tables.")
        _report(results, entered)
        for name, reason in left_out.items():
            say(f"Not published: the run {name} {reason}.")
        if not missing and not gone:
            others = f" but {count_of(len(left_out), 'run')} left out" if left_out else ""
            write_line(f"Nothing to publish{others}.")
    is_left_out = bool(left_out) or (run is None and bool(results.damaged_runs))
    return 0 if len(entered) == len(missing) and not is_left_out else 1


def withdraw_run(
    output_uri: str,
    catalog: str,
    run: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    storage_section: StorageSection | None = None,
) -> int:
    """Withdraw a run from the tables; its files stay.

    Returns:
        The exit code.

    Raises:
        SpecError, InputError, StorageError: see `publish_output`.
    """
    with opened_publisher(output_uri, catalog, namespace, storage_section) as (results, publisher):
        results.check_run(run)
        with hold_run(results.storage, results.output_uri, run) as lease:
            was_there = publisher.withdraw(run, lease)
    write_line(f"The run {run} was withdrawn." if was_there else f"The run {run} was not in the tables.")
    return 0


@contextmanager
def opened_publisher(
    output_uri: str, catalog: str, namespace: str, storage_section: StorageSection | None
) -> "Iterator[tuple[Results, Publisher]]":
    """Open an output and its tables in a catalog; inside the block the catalog's errors are translated.

    Raises:
        SpecError: no such catalog, or its tables are of another output.
        InputError: the folder holds no run.
    """
    section = storage_section or StorageSection()
    # The tables need absolute names: their readers have other working folders.
    results = open_results(absolute_uri(output_uri), Storage(section))
    if not namespace or not all(part.isidentifier() for part in namespace.split(".")):
        raise SpecError(
            f"--catalog-namespace must be a name, or several names with dots between them, not {namespace!r}."
        )
    opened = open_catalog(catalog, results.output_uri, section)
    from jobs.maintenance.iceberg.publisher import Publisher

    with translated_catalog_errors(opened.label):
        yield results, Publisher(opened, namespace, results.output_uri, results.storage)


def _chosen(
    results: "Results", run: str | None, publisher: "Publisher", *, is_over_budget_included: bool
) -> tuple[list[RunRecord], dict[str, str]]:
    """Return the runs to publish, and why each other run that is not published is left out."""
    if run is not None:
        results.check_run(run)
        record = next(each for each in results.records if each.run == run)
        if not has_all_rows_in(results, record):
            raise SpecError(f"The run {run} is not finished; only runs with all rows are published.")
        return [record], {}
    chosen, left_out = [], {}
    for record in results.records:
        reason = _reason_left_out(results, record, is_over_budget_included=is_over_budget_included)
        noted = read_publications(results.storage, results.output_uri, record.run) if reason else ()
        # A run that was published by its name is not left out.
        if not reason or any(each.place == publisher.place and each.snapshots for each in noted):
            chosen.append(record)
        else:
            left_out[record.run] = reason
    return chosen, left_out


def _reason_left_out(results: "Results", record: RunRecord, *, is_over_budget_included: bool) -> str:
    if not has_all_rows_in(results, record):
        return "is not finished; resume it with the same `htc run` command, or remove it with `htc prune`"
    if is_over_budget_included:
        return ""
    also = f"; --run {record.run} or {INCLUDE_FLAG} publishes it all the same"
    summary = read_summary(results.storage, results.output_uri, record.run)
    if summary is None:
        return f"has no readable summary, which the same `htc run` command writes{also}"
    return "" if summary.get("status") == "complete" else f"ended as {summary.get('status')}{also}"


def _add(publisher: "Publisher", results: "Results", record: RunRecord) -> bool:
    try:
        with hold_run(results.storage, results.output_uri, record.run) as lease:
            if load_record(results.storage, results.output_uri, record.run) is None:
                say(f"Not published: the run {record.run} was pruned meanwhile.")
                return False
            publisher.add(results, record, lease)
    except RunHeldError as error:
        say(f"Not published: {error}")
        return False
    return True


def _report(results: "Results", entered: list[RunRecord]) -> None:
    if not entered:
        return
    rows = []
    for record in entered:
        noted = read_publications(results.storage, results.output_uri, record.run)[-1]
        rows.append(
            [record.run, f"{record.image_count:,}", *(str(noted.snapshots.get(t, "")) for t in ("images", "instances"))]
        )
    columns = ["run", "images", "snapshot of images", "of instances"]
    write_table(columns, rows, alignments=["left", "right", "right", "right"])
    write_line(f"{count_of(len(entered), 'run')} published.")
