"""`htc drift`: writes the runs of an output and how far each is from its reference, as a table, JSON or CSV."""

from typing import TYPE_CHECKING

from jobs.results.drift.measure import DEFAULT_LAST, DEFAULT_MIN_SCORE, DEFAULT_WINDOW, measure_drift
from jobs.results.drift.result import Drift, Level, MeasureDrift, MeasuredRun
from jobs.results.formats import QueryResult, write_answer
from jobs.terminal.console import Alignment, say, write_json, write_line, write_table
from pipeline.errors import SpecError
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

EXIT_DRIFTED = 1
# Bins named of a measure that has shifted.
MAX_BINS = 3
MEASURES = ("outcomes", "instances", "scores", "areas", "categories")
_MARKS = {Level.ALARM: " !!", Level.SHIFT: " !", Level.UNCLEAR: " ?"}


def report_drift(
    output_uri: str,
    *,
    baseline: str | None = None,
    window: int = DEFAULT_WINDOW,
    last: int = DEFAULT_LAST,
    min_score: float = DEFAULT_MIN_SCORE,
    fail_over: float | None = None,
    output_format: str = "table",
    storage_section: "StorageSection | None" = None,
) -> int:
    """Measure the runs of an output, and write them.

    Args:
        fail_over: the exit code is 1 when an index of the newest run is above, and chance does not explain it.
        output_format: table, json or csv.

    Returns:
        The exit code.

    Raises: as `measure_drift`.
    """
    if fail_over is not None and fail_over < 0:
        raise SpecError(f"--fail-over is {fail_over:g}; give an index from 0, such as 0.25.")
    drift = measure_drift(
        output_uri,
        baseline=baseline,
        window=window,
        last=last,
        min_score=min_score,
        storage=Storage(storage_section),
    )
    if output_format == "json":
        write_json(drift.to_dict())
    elif output_format == "csv":
        _write_csv(drift)
    else:
        _write_table(drift)
    for note in drift.notes:
        say(note)
    return _judge(drift, fail_over)


def _judge(drift: Drift, fail_over: float | None) -> int:
    """Return the exit code, and say why it is 1."""
    if fail_over is None:
        return 0
    if drift.newest is None:
        say("There is no run with images, so --fail-over has nothing to judge.")
        return 0
    newest = drift.newest
    found = newest.exceeding(fail_over)
    if not found:
        if not newest.reference:
            say(f"The newest run {newest.run} is compared with nothing ({newest.note}), so --fail-over cannot find it.")
        return 0
    named = ", ".join(f"{each.measure} {each.psi:.2f}" for each in found)
    why = f" ({newest.note})" if newest.note else ""
    say(f"The newest run {newest.run} has drifted by more than the {fail_over:g} of --fail-over: {named}{why}.")
    return EXIT_DRIFTED


def _write_table(drift: Drift) -> None:
    of_rows: list[Alignment] = ["right"] * 6
    write_table(
        ["run", "began", "mode", "images", "ok", "instances", "per image", "mean score", "mean area"],
        [_counts_of(each) for each in drift.runs],
        alignments=["left", "left", "left", *of_rows],
    )
    write_line(
        f"Instances are those that score {drift.min_score:g} or more, in all columns but the index of scores, "
        f"which is of those from {drift.score_threshold:g}."
    )
    of_measures: list[Alignment] = ["right"] * len(MEASURES)
    write_table(
        ["run", *MEASURES, "level"],
        [_indices_of(each) for each in drift.runs],
        alignments=["left", *of_measures, "left"],
    )
    for run in drift.runs:
        for each in run.measures:
            if each.level in (Level.SHIFT, Level.ALARM):
                write_line(f"{run.run}: {each.measure}: {_largest_shifts(each)}.")
    if any(each.level is Level.UNCLEAR for run in drift.runs for each in run.measures):
        write_line("? is a large index that so few images may have by chance: no alarm.")


def _counts_of(run: MeasuredRun) -> tuple[str, ...]:
    return (
        run.run,
        run.created[:16].replace("T", " "),
        run.mode if run.is_complete else f"{run.mode}, not complete",
        f"{run.images:,}",
        f"{run.ok / run.images:.1%}",
        f"{run.instances:,}",
        "" if run.per_image is None else f"{run.per_image:.2f}",
        "" if run.mean_score is None else f"{run.mean_score:.3f}",
        "" if run.mean_area is None else f"{run.mean_area:,.0f}",
    )


def _indices_of(run: MeasuredRun) -> tuple[str, ...]:
    indices = {each.measure: _index(each) for each in run.measures}
    note = f"{run.level.value} ({run.note})" if run.reference and run.note else run.note or run.level.value
    return run.run, *(indices[name] for name in MEASURES), note


def _index(each: MeasureDrift) -> str:
    return "" if each.psi is None else f"{each.psi:.2f}{_MARKS.get(each.level, '')}"


def _largest_shifts(each: MeasureDrift) -> str:
    """Return the bins that changed most, such as "dog 10.0% -> 31.5%"."""
    moved = sorted(zip(each.bins, each.reference, each.shares, strict=True), key=lambda row: -abs(row[2] - row[1]))
    return ", ".join(f"{label} {before:.1%} -> {now:.1%}" for label, before, now in moved[:MAX_BINS])


def _write_csv(drift: Drift) -> None:
    of_run = ("run", "created", "model", "mode", "is_complete", "images", "ok", "instances")
    columns = [(name, "VARCHAR") for name in of_run[:4]] + [("is_complete", "BOOLEAN")]
    columns += [(name, "BIGINT") for name in of_run[5:]]
    columns += [(name, "DOUBLE") for name in ("per_image", "mean_score", "mean_area")]
    columns += [("measure", "VARCHAR"), ("psi", "DOUBLE"), ("chance", "DOUBLE"), ("level", "VARCHAR")]
    rows = [{**run.to_dict(), **each.to_dict()} for run in drift.runs for each in run.measures]
    write_answer(QueryResult(columns, iter([row[name] for name, _ in columns] for row in rows)), "csv", None)
