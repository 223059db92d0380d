"""Measures the runs of an output, and compares each with those before it."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from jobs.results.drift.counts import (
    AREA_LABELS,
    INSTANCE_LABELS,
    OK,
    SCORE_LABELS,
    RunCounts,
    count_images,
    count_instances,
)
from jobs.results.drift.result import Drift, MeasureDrift, MeasuredRun
from jobs.results.drift.stability import MIN_IMAGES, compare
from jobs.results.run_settings import other_settings, score_threshold
from pipeline.errors import SpecError
from pipeline.output.results import Results, open_results
from pipeline.output.views import query_views
from pipeline.runs.state import has_all_rows_in
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    import duckdb

    from pipeline.output.run_record import RunRecord

DEFAULT_WINDOW = 7
DEFAULT_LAST = 30
# As for `htc diff`.
DEFAULT_MIN_SCORE = 0.5


def measure_drift(
    output_uri: str,
    *,
    baseline: str | None = None,
    window: int = DEFAULT_WINDOW,
    last: int = DEFAULT_LAST,
    min_score: float = DEFAULT_MIN_SCORE,
    storage: Storage | None = None,
) -> Drift:
    """Measure the newest runs of an output, and compare each with those before it.

    A run is measured by its own rows: of an incremental run, what it processed.

    Args:
        baseline: compare every run with this one; None compares each with up to `window` complete runs of the same
            model before it, taken together.
        last: so many of the newest runs that have images.
        min_score: instances that score less are left out of counts, areas and categories. Where a compared run has a
            higher score threshold, that is taken for all.

    Raises:
        InputError: there is no run, or none of the baseline's name.
        SpecError: a number is out of its range.
        DamagedFileError: a part is damaged or missing.
        StorageError: the output was compacted or pruned at each of several attempts.
    """
    if window < 1 or last < 1:
        raise SpecError("window and last are numbers of runs; give 1 or more.")
    if not 0 <= min_score <= 1:
        raise SpecError(f"min_score is {min_score:g}; give a number from 0 to 1.")
    results = open_results(output_uri, storage)
    if baseline is not None:
        results.check_run(baseline)
    with_rows = [record for record in results.records if results.committed(record.run)]
    names = [record.run for record in with_rows]

    def measure(database: "duckdb.DuckDBPyConnection") -> Drift:
        counts = count_images(database, names)
        with_images = [record for record in with_rows if counts[record.run].images]
        comparer = _Comparer(results, with_images, counts, baseline, window)
        places = range(max(0, len(with_images) - last), len(with_images))
        used = comparer.used(places)
        thresholds = [score_threshold(record) for record in used]
        cut = max(thresholds, default=0.0)
        counted_from = max(min_score, cut)
        count_instances(database, counts, [record.run for record in used], cut, counted_from)
        measured = [comparer.measure(place) for place in places]
        notes = [*_threshold_notes(thresholds, min_score), *_notes(results, measured, with_images)]
        return Drift(results.output_uri, counted_from, cut, baseline, tuple(measured), tuple(notes))

    return query_views(results, measure)


def _threshold_notes(thresholds: Sequence[float], min_score: float) -> list[str]:
    """Say where runs with several thresholds are cut."""
    lowest, highest = min(thresholds, default=0.0), max(thresholds, default=0.0)
    notes = []
    if lowest < highest:
        notes.append(
            f"The runs' score thresholds are from {lowest:g} to {highest:g}; of all runs only instances that score "
            f"{highest:g} or more are compared."
        )
    if min_score < highest:
        notes.append(f"Instances count from {highest:g}, not from {min_score:g}: below, a run has none.")
    return notes


class _Comparer:
    """Compares runs with their references."""

    def __init__(
        self,
        results: Results,
        records: Sequence["RunRecord"],
        counts: Mapping[str, RunCounts],
        baseline: str | None,
        window: int,
    ) -> None:
        self._records = records
        self._counts = counts
        self._baseline = baseline
        self._window = window
        self._is_complete = {record.run: has_all_rows_in(results, record) for record in records}

    def used(self, places: Sequence[int]) -> list["RunRecord"]:
        """Return the runs at these places and those that they are compared with."""
        wanted = {self._records[place].run for place in places}
        wanted |= {run for place in places for run in self._reference(place)[0]}
        return [record for record in self._records if record.run in wanted]

    def measure(self, place: int) -> MeasuredRun:
        """Measure a run, and compare it with its reference."""
        record = self._records[place]
        own = self._counts[record.run]
        reference, note = self._reference(place)
        pooled = reduce(add, (self._counts[run] for run in reference), RunCounts())
        return MeasuredRun(
            run=record.run,
            created=record.created,
            model=record.model_name,
            mode=str(record.spec.get("select", {}).get("mode", "full")),
            is_complete=self._is_complete[record.run],
            images=own.images,
            ok=own.ok,
            instances=own.instances,
            per_image=own.instances / own.ok if own.ok else None,
            mean_score=own.sum_score / own.instances if own.instances else None,
            mean_area=own.sum_area / own.instances if own.instances else None,
            reference=tuple(reference),
            measures=tuple(_measures(own, pooled if reference else None)),
            note=note,
        )

    def _reference(self, place: int) -> tuple[list[str], str]:
        """Return the runs that a run is compared with, and a note; none where the note says why."""
        record = self._records[place]
        own = self._counts[record.run]
        if record.run == self._baseline:
            return [], "the baseline"
        if not self._is_complete[record.run]:
            return [], "not complete, not compared"
        if own.ok < MIN_IMAGES:
            return [], f"{count_of(own.ok, 'ok image')}, not compared; {MIN_IMAGES} are needed"
        if self._baseline is not None:
            reference = [self._baseline] if self._baseline in self._counts else []
            other = next((each for each in self._records if each.run == self._baseline), record)
            note = "another model than the baseline" if other.model_name != record.model_name else ""
        else:
            earlier = [each for each in self._records[:place] if self._is_complete[each.run]]
            reference = [each.run for each in earlier if each.model_name == record.model_name][-self._window :]
            note = ""
            if not reference:
                return [], "first run of this model" if earlier else "first run"
        images = sum(self._counts[run].ok for run in reference)
        if images < MIN_IMAGES:
            return [], f"{count_of(images, 'ok image')} to compare with; {MIN_IMAGES} are needed"
        others = (each for each in self._records if each.run in reference)
        differing = sorted({key for each in others for key in other_settings(each, record)})
        notes = [note, *([f"other settings than the reference: {', '.join(differing)}"] if differing else [])]
        return reference, "; ".join(filter(None, notes))


def _measures(own: RunCounts, reference: RunCounts | None) -> list[MeasureDrift]:
    statuses = _names(own.statuses, reference.statuses if reference else {}, first=OK)
    categories = _names(own.categories, reference.categories if reference else {})
    return [
        compare(
            "outcomes",
            statuses,
            own.outcome_histogram(statuses),
            reference.outcome_histogram(statuses) if reference else None,
            is_ordered=False,
        ),
        compare(
            "instances",
            INSTANCE_LABELS,
            own.instance_histogram(),
            reference.instance_histogram() if reference else None,
            is_ordered=True,
        ),
        compare(
            "scores",
            SCORE_LABELS,
            own.score_histogram(),
            reference.score_histogram() if reference else None,
            is_ordered=True,
        ),
        compare(
            "areas",
            AREA_LABELS,
            own.area_histogram(),
            reference.area_histogram() if reference else None,
            is_ordered=True,
        ),
        compare(
            "categories",
            categories,
            own.category_histogram(categories),
            reference.category_histogram(categories) if reference else None,
            is_ordered=False,
        ),
    ]


def _names(own: Mapping[str, int], reference: Mapping[str, int], first: str = "") -> list[str]:
    return sorted({*own, *reference}, key=lambda name: (name != first, name))


def _notes(results: Results, measured: Sequence[MeasuredRun], with_images: Sequence["RunRecord"]) -> list[str]:
    notes = []
    without = len(results.records) - len(with_images)
    if without:
        notes.append(f"{count_of(without, 'run')} without images, not shown.")
    if len(with_images) > len(measured):
        notes.append(f"{count_of(len(with_images) - len(measured), 'older run')} not shown.")
    if len(with_images) == 1:
        notes.append("One run only: there is nothing to compare it with yet.")
    models = {each.model for each in measured}
    if len(models) > 1:
        notes.append(f"The runs are of {len(models)} models; `htc diff` compares two of them instance by instance.")
    return notes
