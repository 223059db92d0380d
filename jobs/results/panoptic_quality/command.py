"""The command: scores a run's segments, and writes the result as a table, JSON, CSV or a page, with pictures."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.results.evaluation.command import ReportFormat
from jobs.results.evaluation.folder import PAGE, SUMMARY, write_worst_pictures
from jobs.results.evaluation.run_images import MatchRule
from jobs.results.evaluation.truth import listed
from jobs.results.folders import check_apart, make_own_folder
from jobs.results.formats import json_value
from jobs.results.panoptic_quality.pictures import Picture, draw_pictures
from jobs.results.panoptic_quality.result import PanopticEvaluation
from jobs.results.panoptic_quality.score import DEFAULT_WORST, judge_panoptic
from jobs.results.panoptic_quality.text import build_page, write_csv, write_text
from jobs.terminal.console import say, write_json, write_line
from jobs.terminal.output_file import atomic_output, check_local
from pipeline.errors import SpecError
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection


def report_panoptic_quality(
    output_uri: str,
    truth_uri: str,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
    match: MatchRule = MatchRule.file_name,
    output_format: ReportFormat | None = None,
    per_category: bool = False,
    folder: Path | None = None,
    worst: int = DEFAULT_WORST,
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Score the panoptic segments of a run and write the result.

    Args:
        output_format: what is written to stdout; None is a table.
        folder: for the page, the JSON, the CSV and pictures; created if it is missing.
        is_json: one line of JSON.

    Raises:
        InputError, SpecError: as `judge_panoptic`.
        SpecError: `is_json` beside another format.
    """
    if is_json and output_format not in (None, ReportFormat.json):
        raise SpecError(f"--json writes one line of JSON, --format {output_format} does not; give one of the two.")
    if folder is not None:
        check_local(folder)
    storage = Storage(storage_section)
    results = open_results(output_uri, storage)
    if folder is not None:
        # Before the work, which may take minutes.
        check_apart(folder, [results])
        make_own_folder(folder, SUMMARY)
    evaluation, truth = judge_panoptic(
        results, truth_uri, storage, run=run, classes=classes, is_strict=is_strict, match=match, worst=worst
    )
    if evaluation.missing:
        count = count_of(len(evaluation.missing), "annotated image")
        say(f"Not scored: {count} without a row in the run ({listed(evaluation.missing)}).")
    for sentence in evaluation.notes:
        say(sentence)
    if folder is not None or output_format is ReportFormat.html:
        pictures = draw_pictures(evaluation, truth, results)
        page = build_page(evaluation, pictures)
        if folder is not None:
            _write_folder(evaluation, page, pictures, folder)
        if output_format is ReportFormat.html:
            sys.stdout.write(page)
            return 0
    _write_numbers(evaluation, output_format, per_category=per_category, is_json=is_json)
    return 0


def _write_numbers(
    evaluation: PanopticEvaluation, output_format: ReportFormat | None, *, per_category: bool, is_json: bool
) -> None:
    if is_json:
        write_line(json.dumps(json_value(evaluation.to_dict())))
    elif output_format is ReportFormat.json:
        write_json(json_value(evaluation.to_dict()))
    elif output_format is ReportFormat.csv:
        write_csv(evaluation, None, per_category=per_category)
    else:
        write_text(evaluation, per_category=per_category)


def _write_folder(evaluation: PanopticEvaluation, page: str, pictures: Sequence[Picture], folder: Path) -> None:
    """Write everything; files of the same names are replaced, and so are pictures of an earlier evaluation."""
    with atomic_output(folder / PAGE) as sink:
        sink.write(page.encode())
    with atomic_output(folder / SUMMARY) as sink:
        sink.write(json.dumps(json_value(evaluation.to_dict()), indent=2).encode() + b"\n")
    write_csv(evaluation, folder / "metrics.csv", per_category=True)
    write_worst_pictures([(picture.image.uri, picture.jpeg) for picture in pictures], folder)
    say(f"The page is {folder / PAGE}; its pictures and numbers are beside it.")
