"""`htc publish`: finished runs into the tables of an Iceberg catalog, by reference, a snapshot each."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING

from jobs.console import say, write_line, write_table
from jobs.retention.holding import lease_on
from jobs.retention.iceberg_catalog import DEFAULT_NAMESPACE, catalog_errors_in_words, open_catalog
from pipeline.config import StorageSection
from pipeline.errors import SpecError
from pipeline.lease import RunHeldError
from pipeline.progress import count_of
from pipeline.publication import read_publications
from pipeline.records import RunRecord, load_record
from pipeline.spec_reading import absolute_uri
from pipeline.standing import is_whole
from pipeline.storage import Storage
from pipeline.summary import read_summary
from pipeline.tables import open_results

if TYPE_CHECKING:
    from jobs.retention.publisher import Publisher
    from pipeline.results import Results


def publish_output(
    output_uri: str,
    catalog: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    run: str | None = None,
    storage_section: StorageSection | None = None,
) -> int:
    """Publish one run, or all that are finished and not published yet, oldest first; take out those that are gone.

    Args:
        catalog: sqlite:///path, or a name from pyiceberg's configuration.
        run: publish it even when it is over its error budget.

    Returns:
        The exit code: 1 when another process holds a run, which then waits with all later ones, or when a run's record
        is damaged, else 0.

    Raises:
        SpecError: no such catalog, its tables are of another output, or the run is not finished.
        InputError: no such run, or no run at all.
        StorageError: storage or the catalog failed; the next call finishes.
    """
    with opened_publisher(output_uri, catalog, namespace, storage_section) as (results, publisher):
        records = _chosen(results, run)
        publisher.make()
        missing = [record for record in records if not publisher.has(results, record.run)]
        # In their order: behind a run that cannot enter now, none does.
        entered = list(takewhile(lambda record: _enter(publisher, results, record), missing))
        # A run whose record is damaged is still there.
        gone = sorted(publisher.runs() - {*results.runs(), *results.damaged_runs})
        for name in gone:
            publisher.leave(name, None)
            write_line(f"The run {name} is in the output no more; it was taken out of the tables.")
        _report(results, entered)
        if not missing and not gone:
            write_line("Nothing to publish.")
    is_left_out = run is None and bool(results.damaged_runs)
    return 0 if len(entered) == len(missing) and not is_left_out else 1


def withdraw_run(
    output_uri: str,
    catalog: str,
    run: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    storage_section: StorageSection | None = None,
) -> int:
    """Take a run out of the tables; its files stay.

    Returns:
        The exit code.

    Raises:
        SpecError, InputError, StorageError: see `publish_output`.
    """
    with opened_publisher(output_uri, catalog, namespace, storage_section) as (results, publisher):
        _require(results, run)
        with lease_on(results.storage, results.output_uri, run) as lease:
            was_there = publisher.leave(run, lease)
    write_line(f"The run {run} was taken out." if was_there else f"The run {run} was not in the tables.")
    return 0


@contextmanager
def opened_publisher(
    output_uri: str, catalog: str, namespace: str, storage_section: StorageSection | None
) -> "Iterator[tuple[Results, Publisher]]":
    """Open an output and its tables in a catalog; inside the block the catalog's errors become ours.

    Raises:
        SpecError: no such catalog, or its tables are of another output.
        InputError: the folder holds no run.
    """
    section = storage_section or StorageSection()
    # The tables name files from anywhere, not from this folder.
    results = open_results(absolute_uri(output_uri), Storage(section))
    if not namespace or not all(part.isidentifier() for part in namespace.split(".")):
        raise SpecError(f"--namespace is a name, or several with dots between them, not {namespace!r}.")
    opened = open_catalog(catalog, results.output_uri, section)
    from jobs.retention.publisher import Publisher

    with catalog_errors_in_words(opened.label):
        yield results, Publisher(opened, namespace, results.output_uri, results.storage)


def _require(results: "Results", run: str) -> None:
    results.check_run(run)


def _chosen(results: "Results", run: str | None) -> list[RunRecord]:
    """Return the runs to publish; say why others are left out."""
    if run is not None:
        _require(results, run)
        record = next(each for each in results.records if each.run == run)
        if not is_whole(results, record):
            raise SpecError(f"The run {run} is not finished; readers of the tables see whole runs only.")
        return [record]
    chosen = []
    for record in results.records:
        reason = _left_out(results, record)
        if reason:
            say(f"Not published: the run {record.run} {reason}.")
        else:
            chosen.append(record)
    return chosen


def _left_out(results: "Results", record: RunRecord) -> str:
    if not is_whole(results, record):
        return "is not finished"
    summary = read_summary(results.storage, results.output_uri, record.run)
    if summary is None:
        return "has no summary to read; the same `htc run` writes it"
    if summary.get("status") != "complete":
        return f"ended as {summary.get('status')}; --run {record.run} publishes it all the same"
    return ""


def _enter(publisher: "Publisher", results: "Results", record: RunRecord) -> bool:
    try:
        with lease_on(results.storage, results.output_uri, record.run) as lease:
            if load_record(results.storage, results.output_uri, record.run) is None:
                say(f"Not published: the run {record.run} was pruned meanwhile.")
                return False
            publisher.enter(results, record, lease)
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
