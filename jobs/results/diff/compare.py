"""Compares the tables of two runs, image by image."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.results.diff.images import JoinedImages, join_images
from jobs.results.diff.matching import DamagedMaskError
from jobs.results.diff.result import Diff
from jobs.results.diff.rules import DiffRules
from jobs.results.diff.tables import CURRENT, Side, SideTables, SortedRows, choose_side, previous_run, read_sides
from jobs.results.diff.totals import Batch, Totals
from jobs.results.diff.writer import TableWriter
from jobs.results.run_settings import other_settings, score_threshold
from pipeline.errors import InputError
from pipeline.output.results import open_results
from pipeline.output.run_record import list_records
from pipeline.output.schema import BBOX_TYPE, MASK_TYPE
from pipeline.storage.storage import Storage

DEFAULT_LARGEST = 20
_IMAGES = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "uri")),
        ("image_id", pa.int64()),
        *((name, pa.string()) for name in ("run", "status", "etag")),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_INSTANCES = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "uri")),
        ("image_id", pa.int64()),
        ("instance", pa.int32()),
        ("category", pa.string()),
        ("score", pa.float32()),
        ("bbox", BBOX_TYPE),
        ("area", pa.int64()),
        ("mask", MASK_TYPE),
    ]
)


def diff_runs(
    output_a: str,
    run_a: str | None = None,
    output_b: str | None = None,
    run_b: str | None = None,
    *,
    rules: DiffRules | None = None,
    uris: Sequence[str] | None = None,
    largest: int = DEFAULT_LARGEST,
    tables: Path | None = None,
    storage: Storage | None = None,
    advance: Callable[[int, int | None], None] | None = None,
) -> Diff:
    """Compare run A with run B.

    Args:
        output_a, output_b: their outputs; None for B takes A's.
        run_a, run_b: their names, or "current". None for B takes the newest run with images; None for A the one before
            it in the same output, or the newest of another output.
        rules: what counts as a change.
        uris: compare these images only.
        largest: how many of the most changed images are returned.
        tables: a folder into which images.parquet and instances.parquet are written, a row for each image and for each
            instance that counts.
        storage: how outputs are read; None for the default options.
        advance: is called with the number of images that were compared since the last call, and with the number of
            all; None where that is not known.

    Raises:
        InputError: there is no such run, both are the same one, they have no image in common, or a mask is damaged.
        SpecError: the tables cannot be written.
        DamagedFileError: a part is damaged or missing.
        StorageError: an output was compacted or pruned at each of several attempts.
    """
    storage = storage or Storage()
    a, b = _choose(output_a, run_a, output_b, run_b, storage)
    rules = rules or DiffRules()
    outputs = [a.results] if a.results is b.results else [a.results, b.results]
    comparison = _Comparison((a, b), rules, uris=uris, largest=largest, tables=tables, advance=advance)
    return read_sides(outputs, comparison.run)


def _choose(
    output_a: str, run_a: str | None, output_b: str | None, run_b: str | None, storage: Storage
) -> tuple[Side, Side]:
    results_a = open_results(output_a, storage)
    results_b = results_a if output_b is None else open_results(output_b, storage)
    if results_b.output_uri == results_a.output_uri:
        results_b = results_a
    for run, other_given in ((run_a, output_b), (run_b, output_b)):
        if run is not None and other_given is None and run not in (CURRENT, *results_a.runs()):
            _refuse_output(run, storage)
    b = choose_side(results_b, results_b.newest_run() if run_b is None else run_b)
    if run_a is None:
        is_same_output = results_a is results_b
        run_a = previous_run(results_b, b.run) if is_same_output else results_a.newest_run()
    a = choose_side(results_a, run_a)
    if results_a is results_b and a.record is b.record and a.is_cumulative == b.is_cumulative:
        raise InputError(f"Both sides are the run {b.record.run}, which does not differ from itself; name two runs.")
    return a, b


def _refuse_output(run: str, storage: Storage) -> None:
    """Refuse an output where a run is named.

    Raises:
        InputError: `run` is the folder of an output.
    """
    if ("/" in run or Path(run).is_dir()) and list_records(storage, run, damaged_runs={}):
        raise InputError(f"{run} is an output and not a run; to compare with it, write --other {run}.")


class _Comparison:
    """One comparison, which may be run again when the tables moved meanwhile."""

    def __init__(
        self,
        sides: tuple[Side, Side],
        rules: DiffRules,
        *,
        uris: Sequence[str] | None,
        largest: int,
        tables: Path | None,
        advance: Callable[[int, int | None], None] | None,
    ) -> None:
        self._sides = sides
        self._rules = rules
        self._uris = uris
        self._largest = largest
        self._tables = tables
        self._advance = advance or (lambda _images, _all: None)

    def run(self) -> Diff:
        """Compare, by the images' uris; by their names below each run's input when no uri is in both."""
        totals = self._read(is_relative=False)
        if not totals.images_in_both and totals.images_in[0] and totals.images_in[1] and self._has_other_input:
            totals = self._read(is_relative=True)
        a, b = self._sides
        if not totals.images_in_both and self._uris is None:
            self._refuse(totals)
        described = [side.described(images) for side, images in zip(self._sides, totals.images_in, strict=True)]
        found = totals.finish(*described)
        settings = other_settings(a.record, b.record)
        notes = [f"The runs differ in {', '.join(settings)}."] if settings else []
        thresholds = [score_threshold(side.record) for side in self._sides]
        if self._rules.min_score < max(thresholds) and min(thresholds) < max(thresholds):
            notes.append(
                f"One run has no instance that scores less than {max(thresholds):g}, its score threshold: those of the "
                f"other count as changed. --min-score {max(thresholds):g} or more leaves them out."
            )
        return found.with_notes([*notes, *found.notes])

    @property
    def _has_other_input(self) -> bool:
        a, b = self._sides
        return a.input_uri != b.input_uri

    @property
    def _image_count(self) -> int | None:
        """How many images there are on the larger side, where the manifests say it."""
        if self._uris is not None or any(side.is_cumulative for side in self._sides):
            return None
        return max(side.record.image_count for side in self._sides)

    def _refuse(self, totals: Totals) -> None:
        """Refuse two runs without an image in common.

        Raises:
            InputError: always, unless a run is not complete and its images may still come.
        """
        a, b = self._sides
        for side, images in zip(self._sides, totals.images_in, strict=True):
            if not images and side.is_complete:
                raise InputError(f"The run {side.run} of {side.results.output_uri} has no images; name another run.")
            if not images:
                raise InputError(
                    f"The run {side.run} of {side.results.output_uri} has no committed images yet; wait, or name "
                    "another run."
                )
        of_a, of_b = totals.first_uris
        raise InputError(
            f"The runs {a.run} and {b.run} have no image in common, neither by uri nor by name below their inputs: one "
            f"has {of_a}, the other {of_b}."
        )

    def _read(self, *, is_relative: bool) -> Totals:
        a, b = self._sides
        totals = Totals(self._rules, largest=self._largest, is_relative=is_relative)
        with contextlib.ExitStack() as stack:
            tables = []
            for side, other in ((a, b), (b, a)):
                opened = SideTables(side, other, uris=self._uris, is_relative=is_relative)
                stack.callback(opened.close)
                tables.append(opened)
            writer = stack.enter_context(TableWriter(self._tables)) if self._tables is not None else None
            for batch in self._batches(tables):
                totals.add(batch)
                if writer is not None:
                    writer.write(batch)
                self._advance(len(batch.images), self._image_count)
        return totals

    def _batches(self, tables: Sequence[SideTables]) -> Iterator[Batch]:
        images = [SortedRows(each.images()) for each in tables]
        instances = [SortedRows(each.instances()) for each in tables]
        a, b = self._sides
        is_pending = np.array([not a.is_complete, not b.is_complete])
        while True:
            lasts = [key for each in images if (key := each.last_key) is not None]
            if not lasts:
                return
            # Up to here all images of both sides are read.
            through = min(lasts, key=str.encode)
            rows_a, rows_b = (pa.Table.from_batches(each.take_through(through), _IMAGES) for each in images)
            joined = join_images(
                rows_a, rows_b, self._rules, is_same_output=a.results is b.results, is_pending=is_pending
            )
            found = [pa.Table.from_batches(each.take_through(through), _INSTANCES) for each in instances]
            try:
                yield Batch.of(joined, found[0], found[1], self._rules)
            except DamagedMaskError as error:
                raise self._damaged(error, joined, found) from None

    def _damaged(self, error: DamagedMaskError, joined: JoinedImages, found: Sequence[pa.Table]) -> InputError:
        place = "ab".index(error.side)
        side = self._sides[place]
        rows = Batch.compared_rows(joined, found[place])
        row = rows.slice(error.place, 1).to_pylist()[0]
        return InputError(
            f"The mask of instance {row['instance']} of {row['uri']} is damaged in {side.results.output_uri} (run "
            f"{side.run}): its counts do not fill the image's size. `htc query` finds such rows with WHERE NOT "
            "mask_is_valid(mask); do the image again, or take the run out of the comparison."
        )
