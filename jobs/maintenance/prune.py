"""`htc prune`: lists the old runs that are no longer needed, and removes them when confirmed."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.maintenance.iceberg.catalog import DEFAULT_NAMESPACE, catalog_label
from jobs.maintenance.list_runs import state_of
from jobs.maintenance.prune_policy import PruneDecision, PrunePolicy, decide_runs, read_age
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
    confirmed: bool = False,
    catalog: str | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    storage_section: "StorageSection | None" = None,
    now: datetime | None = None,
) -> int:
    """List which runs would be removed and why the others are kept; remove them when `confirmed`.

    Args:
        keep_last: complete runs to keep, 1 or more; 1 when only `older_than` is given.
        older_than: keep runs that began since, such as 30d.
        catalog: withdraw published runs from this Iceberg catalog's tables before they are removed.
        now: UTC; the clock's when None.

    Returns:
        The exit code: 1 when a run could not be removed, else 0.

    Raises:
        SpecError: neither rule is given, and there is no unfinished removal.
        DamagedFileError: a run.json is damaged, so that it is unknown which rows are still needed; or a part is.
        InputError: the folder holds no run.
        StorageError: storage failed; the next prune finishes an unfinished removal.
    """
    place = None if catalog is None else (catalog_label(catalog), namespace)
    moment = now or datetime.now(UTC)
    storage = Storage(storage_section)
    output_uri = local_path(output_uri).rstrip("/") if is_local(output_uri) else output_uri.rstrip("/")
    has_rules = keep_last is not None or older_than is not None
    # An unfinished removal is finished without a rule.
    unfinished = half_pruned(storage, output_uri) if has_rules or confirmed else []
    policy = _read_policy(keep_last, older_than, [place] if place else []) if has_rules or not unfinished else None
    for run in unfinished:
        write_line(f"The run {run} is half pruned; {'finishing that.' if confirmed else '--yes finishes that.'}")
    failures = sum(not _remove(storage, output_uri, run, moment) for run in unfinished) if confirmed else 0
    if policy is None:
        return 1 if failures else 0
    results = open_results(output_uri, storage)
    for error in results.damaged_runs.values():
        # Without that run it is unknown what the view current needs.
        raise error
    decisions = decide_runs(survey_runs(results, now=moment, report=say), needed_runs(results), policy, moment)
    _report(decisions)
    to_remove = [decision for decision in decisions if decision.is_removed]
    if catalog is None and any(decision.kept_because.startswith("published") for decision in decisions):
        write_line("With --iceberg CATALOG, published runs are withdrawn from its tables first.")
    if not to_remove:
        write_line("Nothing to remove.")
        return 1 if failures else 0
    total = f"{size_of(sum(each.info.bytes for each in to_remove))} in {_files(to_remove)}"
    if not confirmed:
        write_line(f"Removing {count_of(len(to_remove), 'run')} would free {total}; --yes does it.")
        return 0
    with ExitStack() as closing:
        publisher = None
        if catalog is not None and any(each.info.publications for each in to_remove):
            opening = opened_publisher(output_uri, catalog, namespace, storage_section)
            _, publisher = closing.enter_context(opening)
        removed = _remove_all(results, to_remove, moment, publisher)
    freed = f"{size_of(sum(each.info.bytes for each in removed))} in {_files(removed)}"
    write_line(f"Removed {count_of(len(removed), 'run')}, freed {freed}.")
    return 0 if len(removed) == len(to_remove) and not failures else 1


def _read_policy(
    keep_last: int | None, older_than: str | None, withdrawn_from: Sequence[tuple[str, str]]
) -> PrunePolicy:
    if keep_last is None and older_than is None:
        raise SpecError("Say how much to keep: --keep-last N, --older-than 30d, or both.")
    if keep_last is not None and keep_last < 1:
        raise SpecError("--keep-last must be 1 or more; to remove a whole output, remove its folder.")
    age = None if older_than is None else read_age(older_than)
    return PrunePolicy(1 if keep_last is None else keep_last, age, withdrawn_from)


def _report(decisions: Sequence[PruneDecision]) -> None:
    rows = [
        [
            decision.info.run,
            f"{decision.info.began:%Y-%m-%d %H:%M}",
            state_of(decision.info),
            size_of(decision.info.bytes),
            "remove" if decision.is_removed else "keep",
            decision.kept_because,
        ]
        for decision in decisions
    ]
    columns = ["run", "created", "state", "size", "", "because"]
    write_table(columns, rows, alignments=["left", "left", "left", "right", "left", "left"])


def _remove_all(
    results: "Results", to_remove: Sequence[PruneDecision], moment: datetime, publisher: "Publisher | None"
) -> list[PruneDecision]:
    """Remove runs, oldest first, and stop at one that stays: a later run may hide rows of that."""
    removed: list[PruneDecision] = []
    for decision in to_remove:
        run = decision.info.run
        shards = results.committed_shards(run)

        def is_unchanged(lease: Lease, run: str = run, shards: int = shards) -> bool:
            if publisher is not None:
                publisher.withdraw(run, lease)
            return _is_unchanged(results, run, shards)

        if not _remove(results.storage, results.output_uri, run, moment, is_unchanged):
            break
        removed.append(decision)
    return removed


def _is_unchanged(results: "Results", run: str, shards: int) -> bool:
    """Return whether a run is as it was when it was chosen, now that its lease is held; reports what has changed."""
    places = read_publications(results.storage, results.output_uri, run)
    if places:
        say(f"Not removed: the run {run} was published in {places[0].catalog} meanwhile.")
    elif _count_shards(results, run) != shards:
        say(f"Not removed: the run {run} was resumed meanwhile.")
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
    is_unchanged: Callable[[Lease], bool] = lambda _: True,
) -> bool:
    """Remove a run under its lease; return False, and report why, when it is held or has changed."""
    try:
        with hold_run(storage, output_uri, run) as lease:
            if not is_unchanged(lease):
                return False
            remove_run(storage, output_uri, run, check=lease.check, moment=moment.isoformat())
    except RunHeldError as error:
        say(f"Not removed: {error}")
        return False
    remove_empty_folders(output_uri, run)
    return True


def _files(decisions: Sequence[PruneDecision]) -> str:
    return count_of(sum(decision.info.files for decision in decisions), "file")
