"""Diff and drift: commands that compare runs."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups


class ComparisonFormat(enum.StrEnum):
    """The formats of `htc diff` and `htc drift`."""

    table = enum.auto()
    json = enum.auto()
    csv = enum.auto()


@app.command()
@with_flag_groups
def diff(
    output_uri: options.StoredOutput,
    run_a: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_A",
            help='The run before, or "current". [default: the run with images before RUN_B]',
            show_default=False,
        ),
    ] = None,
    run_b: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_B", help='The run after, or "current". [default: the newest with images]', show_default=False
        ),
    ] = None,
    *,
    other: Annotated[
        str | None,
        typer.Option("--other", metavar="OUTPUT", help="The output of RUN_B. [default: the same]"),
    ] = None,
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over",
            metavar="F",
            help="Exit with 1 when more than this has changed: a share of the instances, such as 0.02.",
        ),
    ] = None,
    min_score: Annotated[
        float,
        typer.Option(
            "--min-score",
            metavar="F",
            min=0,
            max=1,
            help="Only instances that score at least F. It is enough in one of the two runs.",
        ),
    ] = 0.5,
    match_iou: Annotated[
        float, typer.Option("--match-iou", metavar="F", help="Masks with at least this IoU may be of one object.")
    ] = 0.5,
    same_iou: Annotated[
        float, typer.Option("--same-iou", metavar="F", help="With a lower IoU an instance has moved.")
    ] = 0.9,
    score_change: Annotated[
        float, typer.Option("--score-change", metavar="F", help="A score may differ by this much.")
    ] = 0.1,
    compare_changed: Annotated[
        bool, typer.Option("--compare-changed", help="Compare images whose content has changed as well.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Write there: a folder for pictures and tables; created if missing."),
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", metavar="N", min=0, help="Draw the N images that changed most.")
    ] = 20,
    output_format: Annotated[
        ComparisonFormat, typer.Option("--format", help="The format of what is written to stdout.")
    ] = ComparisonFormat.table,
    storage: options.StorageFlags,
) -> None:
    """Compare two runs: which instances are the same, moved, appeared, vanished.

    Instances of an image are paired one to one by the IoU of their masks. Exit code 1: more changed than --fail-over
    allows.
    """
    from jobs.results.diff.command import DiffRequest, report_diff
    from jobs.results.diff.rules import DiffRules

    rules = DiffRules(
        min_score=min_score,
        match_iou=match_iou,
        same_iou=same_iou,
        score_change=score_change,
        is_changed_content_compared=compare_changed,
    )
    request = DiffRequest(
        output=output_uri,
        run_a=run_a,
        run_b=run_b,
        other=other,
        rules=rules,
        fail_over=fail_over,
        folder=to,
        pictures=pictures,
        output_format=output_format.value,
    )
    raise typer.Exit(report_diff(request, storage_section=storage.section()))


@app.command()
@with_flag_groups
def drift(
    output_uri: options.StoredOutput,
    *,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="RUN", help="Compare every run with this one. [default: with those before it]"
        ),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, help="Compare with up to N runs before, taken together.")
    ] = 7,
    last: Annotated[int, typer.Option("--last", metavar="N", min=1, help="Only the newest N.")] = 30,
    min_score: Annotated[
        float,
        typer.Option(
            "--min-score",
            metavar="F",
            min=0,
            max=1,
            help="Only instances that score at least F. A higher score threshold of a run counts for all.",
        ),
    ] = 0.5,
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over",
            metavar="F",
            help="Exit with 1 when more than this has changed: an index of the newest run, such as 0.25.",
        ),
    ] = None,
    output_format: Annotated[
        ComparisonFormat, typer.Option("--format", help="The format of what is written to stdout.")
    ] = ComparisonFormat.table,
    storage: options.StorageFlags,
) -> None:
    """Compare runs with those before: outcomes, counts, scores, areas, categories.

    Each by the population stability index; ! from 0.1, !! from 0.25, where chance does not explain it. Exit code 1: an
    index of the newest run is above --fail-over.
    """
    from jobs.results.drift.command import report_drift

    raise typer.Exit(
        report_drift(
            output_uri,
            baseline=baseline,
            window=window,
            last=last,
            min_score=min_score,
            fail_over=fail_over,
            output_format=output_format.value,
            storage_section=storage.section(),
        )
    )
