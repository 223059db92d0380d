"""The command: scores a run, and writes the result as a table, JSON, CSV or a page, with plots and pictures."""

import enum
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.results.evaluation.folder import PAGE, SUMMARY, write_folder
from jobs.results.evaluation.result import Evaluation
from jobs.results.evaluation.run_images import MatchRule
from jobs.results.evaluation.score import DEFAULT_MIN_SCORE, DEFAULT_WORST, Judgement, judge_run
from jobs.results.evaluation.text import write_csv, write_text
from jobs.results.evaluation.truth import listed
from jobs.results.folders import check_apart, make_own_folder
from jobs.results.formats import json_value
from jobs.terminal.console import say, write_json, write_line
from jobs.terminal.output_file import check_local
from pipeline.errors import SpecError
from pipeline.output.results import Results, open_results
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection


class ReportFormat(enum.StrEnum):
    """The formats of `htc evaluate`."""

    table = enum.auto()
    json = enum.auto()
    csv = enum.auto()
    html = enum.auto()


def report_evaluation(
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
    min_score: float = DEFAULT_MIN_SCORE,
    worst: int = DEFAULT_WORST,
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Score a run and write the result.

    Args:
        output_format: what is written to stdout; None is a table.
        folder: for the page, the JSON, the CSV, plots and pictures; created if it is missing.
        is_json: one line of JSON.

    Raises:
        InputError, SpecError: as `judge_run`.
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
    judgement = judge_run(
        results,
        truth_uri,
        storage,
        run=run,
        classes=classes,
        is_strict=is_strict,
        match=match,
        min_score=min_score,
        worst=worst,
    )
    evaluation = judgement.evaluation
    _say_notes(evaluation)
    if folder is not None or output_format is ReportFormat.html:
        page = _write_page(judgement, results, folder)
        if output_format is ReportFormat.html:
            sys.stdout.write(page)
            return 0
    _write_numbers(evaluation, output_format, per_category=per_category, is_json=is_json)
    return 0


def _say_notes(evaluation: Evaluation) -> None:
    if evaluation.missing:
        count = count_of(len(evaluation.missing), "annotated image")
        say(f"Not scored: {count} without a row in the run ({listed(evaluation.missing)}).")
    for sentence in evaluation.notes:
        say(sentence)


def _write_numbers(
    evaluation: Evaluation, output_format: ReportFormat | None, *, per_category: bool, is_json: bool
) -> None:
    if is_json:
        write_line(json.dumps(json_value(evaluation.to_dict())))
    elif output_format is ReportFormat.json:
        write_json(json_value(evaluation.to_dict()))
    elif output_format is ReportFormat.csv:
        write_csv(evaluation, None, per_category=per_category)
    else:
        write_text(evaluation, per_category=per_category)


def _write_page(judgement: Judgement, results: Results, folder: Path | None) -> str:
    """Build the page, and write it with all else into a folder, if there is one."""
    from jobs.results.evaluation import plots
    from jobs.results.evaluation.page import build_page
    from jobs.results.evaluation.pictures import draw_pictures

    figures = plots.draw_plots(judgement.evaluation)
    if not figures:
        say(plots.MISSING)
    pictures = draw_pictures(judgement, results)
    page = build_page(judgement.evaluation, {name: plots.save(each, "svg") for name, each in figures.items()}, pictures)
    if folder is not None:
        pngs = {name: plots.save(each, "png") for name, each in figures.items()}
        write_folder(judgement.evaluation, page, pngs, pictures, folder)
        say(f"The page is {folder / PAGE}; its plots, pictures and numbers are beside it.")
    return page
