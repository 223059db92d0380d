"""What the report says of drift: the runs of the output beside each other, and which measure moved."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.results.drift import Drift, MeasuredRun, measure_drift
from jobs.results.drift.result import Level
from jobs.results.report import charts
from pipeline.errors import HtcError
from pipeline.text import count_of, one_line, printable

if TYPE_CHECKING:
    from markupsafe import Markup

    from pipeline.output.results import Results

MOST_RUNS = 14
MAX_BINS = 3
_KINDS = {Level.ALARM: "bad", Level.SHIFT: "warn", Level.UNCLEAR: "plain", Level.STABLE: "good", Level.NONE: "plain"}
_WORDS = {
    Level.ALARM: "alarm",
    Level.SHIFT: "shift",
    Level.UNCLEAR: "unclear: so few images may differ by chance",
    Level.STABLE: "stable",
    Level.NONE: "not compared",
}


@dataclass(frozen=True)
class DriftRow:
    """A run: its name, whether it is the reported one, texts of its numbers, its level and what that is of."""

    run: str
    is_reported: bool
    cells: tuple[str, ...]
    level: str
    kind: str
    reason: str


@dataclass(frozen=True)
class DriftSection:
    """The runs, oldest first. chart: instances per image by run. notes: sentences."""

    rows: tuple[DriftRow, ...]
    chart: "Markup | None"
    notes: tuple[str, ...]


def drift_section(results: "Results", run: str) -> DriftSection | None:
    """Measure the newest runs of an output; None where there is only one to measure.

    A damaged part of another run does not keep the report from being written: the section says it.
    """
    if len(results.records) < 2:
        return None
    try:
        drift = measure_drift(results.output_uri, last=MOST_RUNS, storage=results.storage)
    except HtcError as error:
        return DriftSection((), None, (f"Drift could not be measured: {one_line(error)}",))
    if len(drift.runs) < 2:
        return None
    rows = tuple(_row(each, run) for each in drift.runs)
    notes = [
        f"The newest {count_of(len(rows), 'run')}, oldest first, each compared with those of the same model before it; "
        f"instances that score {drift.min_score:g} or more. `htc drift` has more.".replace("`", ""),
        *drift.notes,
    ]
    return DriftSection(rows, _chart(drift), tuple(printable(note) for note in notes))


def _row(measured: MeasuredRun, run: str) -> DriftRow:
    cells = (
        measured.created[:16].replace("T", " "),
        f"{measured.images:,}",
        f"{measured.ok / measured.images:.1%}" if measured.images else "",
        "" if measured.per_image is None else f"{measured.per_image:.2f}",
        "" if measured.mean_score is None else f"{measured.mean_score:.3f}",
    )
    level = measured.level
    moved = [each for each in measured.measures if each.level in (Level.SHIFT, Level.ALARM)]
    reason = "; ".join(f"{each.measure} ({_largest(each.bins, each.reference, each.shares)})" for each in moved) or (
        measured.note if level is Level.NONE else ""
    )
    return DriftRow(
        run=printable(measured.run),
        is_reported=measured.run == run,
        cells=cells,
        level=_WORDS[level],
        kind=_KINDS[level],
        reason=printable(reason),
    )


def _largest(bins: tuple[str, ...], reference: tuple[float, ...], shares: tuple[float, ...]) -> str:
    moved = sorted(zip(bins, reference, shares, strict=True), key=lambda row: -abs(row[2] - row[1]))
    return ", ".join(f"{label}: {before:.1%}, now {now:.1%}" for label, before, now in moved[:MAX_BINS])


def _chart(drift: Drift) -> "Markup":
    values = [each.per_image or 0.0 for each in drift.runs]
    description = (
        f"Instances per image of {count_of(len(values), 'run')}, oldest first: from {charts.number(min(values))} to "
        f"{charts.number(max(values))}; the table has the numbers."
    )
    labels = [printable(drift.runs[0].created[:10]), *[""] * (len(values) - 1), printable(drift.runs[-1].created[:10])]
    return charts.columns(values, labels, description=description, are_ends_labelled=True)
