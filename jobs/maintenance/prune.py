"""`htc prune`: remove old runs that nothing needs any more; says so first, and does it when it is told to."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.maintenance.iceberg.catalog import DEFAULT_NAMESPACE, catalog_label
from jobs.maintenance.list_runs import state_of
from jobs.maintenance.prune_policy import PruneDecision, PrunePolicy, choose_runs, read_age
from jobs.maintenance.publish import opened_publisher
from jobs.maintenance.run_lease import hold_run
from jobs.terminal.console import say, size_of, write_line, write_table
from pipeline.errors import SpecError
from pipeline.maintenance.needed_runs import needed_runs
from pipeline.maintenance.publications import read_publications
from pipeline.maintenance.removal import remove_empty_folders, remove_run
from pipeline.maintenance.survey import half_pruned, survey_runs
from pipeline.output.parts import committed_parts
from pipeline.output.results import open_results
from pipeline.runs.lease import Lease, RunHeldError
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, local_path
from pipeline.text import count_of

if TYPE_CHECKING:
    from jobs.maintenance.iceberg.publisher import Publisher
    from pipeline.output.results import Results
    from pipeline.storage.config import StorageSection


def prune_output(
    output_uri: str,
    *,
    keep_last: int | None = None,
    older_than: str | None = None,
    is_meant: bool = False,
    catalog: str | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    storage_section: "StorageSection | None" = None,
    now: datetime | None = None,
) -> int:
    """Say which runs are removed and why the others are kept; remove them when it `is_meant`.

    Args:
        keep_last: complete runs to keep, 1 or more; 1 when only `older_than` is given.
        older_than: keep runs that began since, such as 30d.
        catalog: take published runs out of this Iceberg catalog's tables before they are removed.
        now: UTC; the clock's when None.

    Returns:
        The exit code: 1 when a run that was to be removed could not be, else 0.

    Raises:
        SpecError: neither rule is given, and no removal is to be finished.
        DamagedFileError: a run.json is damaged, so that nobody knows which rows are still needed; or a part is.
        InputError: the folder holds no run.
        StorageError: storage failed; what is removed by halves is finished by the next prune.
    """
    place = None if catalog is None else (catalog_label(catalog), namespace)
    moment = now or datetime.now(UTC)
    storage = Storage(storage_section)
    output_uri = local_path(output_uri).rstrip("/") if is_local(output_uri) else output_uri.rstrip("/")
    has_rules = keep_last is not None or older_than is not None
    # Finishing what was begun needs no rule.
    unfinished = half_pruned(storage, output_uri) if has_rules or is_meant else []
    rules = _read_rules(keep_last, older_than, [place] if place else []) if has_rules or not unfinished else None
    for run in unfinished:
        write_line(f"The run {run} is half pruned; {'finishing that.' if is_meant else '--yes finishes that.'}")
    failures = sum(not _remove(storage, output_uri, run, moment) for run in unfinished) if is_meant else 0
    if rules is None:
        return 1 if failures else 0
    results = open_results(output_uri, storage)
    for error in results.damaged_runs.values():
        # What the view current needs is not known without that run.
        raise error
    choices = choose_runs(survey_runs(results, now=moment, report=say), needed_runs(results), rules, moment)
    _report(choices)
    doomed = [choice for choice in choices if choice.is_removed]
    if catalog is None and any(choice.kept_because.startswith("published") for choice in choices):
        write_line("With --iceberg CATALOG, published runs are taken out of its tables first.")
    if not doomed:
        write_line("Nothing to remove.")
        return 1 if failures else 0
    total = f"{size_of(sum(each.standing.bytes for each in doomed))} in {_files(doomed)}"
    if not is_meant:
        write_line(f"Removing {count_of(len(doomed), 'run')} would free {total}; --yes does it.")
        return 0
    with ExitStack() as closing:
        publisher = None
        if catalog is not None and any(each.standing.publications for each in doomed):
            opening = opened_publisher(output_uri, catalog, namespace, storage_section)
            _, publisher = closing.enter_context(opening)
        removed = _remove_all(results, doomed, moment, publisher)
    freed = f"{size_of(sum(each.standing.bytes for each in removed))} in {_files(removed)}"
    write_line(f"Removed {count_of(len(removed), 'run')}, freed {freed}.")
    return 0 if len(removed) == len(doomed) and not failures else 1


def _read_rules(
    keep_last: int | None, older_than: str | None, withdrawn_from: Sequence[tuple[str, str]]
) -> PrunePolicy:
    if keep_last is None and older_than is None:
        raise SpecError("Say how much to keep: --keep-last N, --older-than 30d, or both.")
    if keep_last is not None and keep_last < 1:
        raise SpecError("--keep-last is 1 or more; an output is removed by removing its folder.")
    age = None if older_than is None else read_age(older_than)
    return PrunePolicy(1 if keep_last is None else keep_last, age, withdrawn_from)


def _report(choices: Sequence[PruneDecision]) -> None:
    rows = [
        [
            choice.standing.run,
            f"{choice.standing.began:%Y-%m-%d %H:%M}",
            state_of(choice.standing),
            size_of(choice.standing.bytes),
            "remove" if choice.is_removed else "keep",
            choice.kept_because,
        ]
        for choice in choices
    ]
    columns = ["run", "created", "state", "size", "", "because"]
    write_table(columns, rows, alignments=["left", "left", "left", "right", "left", "left"])


def _remove_all(
    results: "Results", doomed: Sequence[PruneDecision], moment: datetime, publisher: "Publisher | None"
) -> list[PruneDecision]:
    """Remove runs, oldest first, as far as that goes: a later one may hide rows of one that stays."""
    removed: list[PruneDecision] = []
    for choice in doomed:
        run = choice.standing.run
        shards = results.committed_shards(run)

        def is_as_chosen(lease: Lease, run: str = run, shards: int = shards) -> bool:
            if publisher is not None:
                publisher.leave(run, lease)
            return _is_as_chosen(results, run, shards)

        if not _remove(results.storage, results.output_uri, run, moment, is_as_chosen):
            break
        removed.append(choice)
    return removed


def _is_as_chosen(results: "Results", run: str, shards: int) -> bool:
    places = read_publications(results.storage, results.output_uri, run)
    if places:
        say(f"Not removed: the run {run} was published in {places[0].catalog} meanwhile.")
    elif _count_shards(results, run) != shards:
        say(f"Not removed: the run {run} went on meanwhile.")
    else:
        return True
    return False


def _count_shards(results: "Results", run: str) -> int:
    shard_count = next(each.shard_count for each in results.records if each.run == run)
    parts = committed_parts(results.storage, results.output_uri, run, shard_count=shard_count)
    return sum(len(part.shards) for part in parts)


def _remove(
    storage: Storage,
    output_uri: str,
    run: str,
    moment: datetime,
    is_as_chosen: Callable[[Lease], bool] = lambda _: True,
) -> bool:
    """Remove one run under its lease; False, and a sentence, when it is somebody's, or not what it was."""
    try:
        with hold_run(storage, output_uri, run) as lease:
            if not is_as_chosen(lease):
                return False
            remove_run(storage, output_uri, run, check=lease.check, moment=moment.isoformat())
    except RunHeldError as error:
        say(f"Not removed: {error}")
        return False
    remove_empty_folders(output_uri, run)
    return True


def _files(choices: Sequence[PruneDecision]) -> str:
    return count_of(sum(choice.standing.files for choice in choices), "file")
