"""Report: what a run did and found, as one page."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups


@app.command()
@with_flag_groups
def report(
    output_uri: options.StoredOutput,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="Write there: the page, .html; one that exists is replaced.")
    ],
    *,
    run_name: options.StoredRun = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", metavar="FILE", help="COCO annotations to score the run with, a path or URI.", show_default=False
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", min=1, max=2000, help="N images from all over the run. [default: 500]"),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="F", min=0, max=1, help="Only instances that score. [default: 0.3]"),
    ] = None,
    storage: options.StorageFlags,
) -> None:
    """Write a page on a run: speed, failures, instances, a gallery.

    One HTML file that loads nothing else, for any browser.
    """
    from jobs.results.report import ReportRequest, write_report

    request = ReportRequest(path=to, run=run_name, truth=truth, min_score=min_score)
    write_report(
        output_uri,
        request if sample is None else replace(request, images=sample),
        storage_section=storage.section(),
    )
