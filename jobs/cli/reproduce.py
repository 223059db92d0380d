"""Reproduce: published tables, run again."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups

reproduce_app = typer.Typer(
    help="Published tables, run again on the same photos.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(reproduce_app, name="reproduce")


class TableFormat(enum.StrEnum):
    """The formats of `htc reproduce`."""

    table = enum.auto()
    json = enum.auto()
    csv = enum.auto()


@dataclass(frozen=True, kw_only=True)
class _JobFlags:
    """The flags of `run` that change how a row is computed, not what it is."""

    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="fp32|bf16|auto", help="Arithmetic of the network. [default: fp32]"),
        options.SpecKey("model.precision"),
    ] = None
    workers: Annotated[
        str | None,
        typer.Option("--workers", metavar="auto|N|MIN:MAX", help="Processes with one model each. [default: auto]"),
        options.SpecKey("compute.workers"),
    ] = None
    batch_size: Annotated[
        str | None,
        typer.Option("--batch-size", metavar="auto|N", help="Images per inference. [default: auto]"),
        options.SpecKey("compute.batch_size"),
    ] = None

    def values(self) -> Iterator[tuple[str, object]]:
        """Yield the spec's dotted keys and values that the given flags set."""
        yield from options.spec_values_of(self)


@reproduce_app.command("table1")
@with_flag_groups
def table1(
    *,
    coco: Annotated[
        str,
        typer.Option(
            "--coco", metavar="DIR", help="Folder (or URI) with val2017/ and annotations/instances_val2017.json."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Write there: a folder (or URI) for the rows' outputs. [default: table1]",
            show_default=False,
        ),
    ] = "table1",
    presets: Annotated[
        list[str] | None,
        typer.Option(
            "--presets",
            metavar="NAMES",
            help="Only these presets or published weights, with commas between; all: every one that is published. "
            "[default: the rows of the paper's table]",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="URI",
            help="demo (bundled), coco (published), untrained, or a .pth or .safetensors file. Here as PRESET=FILE, in "
            "place of the published ones; repeatable.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N images.", show_default=False)
    ] = None,
    output_format: Annotated[
        TableFormat, typer.Option("--format", help="The format of what is written to stdout.")
    ] = TableFormat.table,
    job: _JobFlags,
    storage: options.StorageFlags,
) -> None:
    """Run HTC's and its rivals' published weights on COCO val2017.

    For each row of table 1 of arXiv:1901.07518: fetches the weights, runs the job, scores it, and prints box and mask
    AP beside the published figures. The same command continues where it was stopped; rows that are done are not run
    again. Exit code 1: a row failed, which is named, or the command was stopped.
    """
    from jobs.reproduce import ReproduceRequest, report_table1

    request = ReproduceRequest(
        coco=coco,
        work=to,
        presets=presets or (),
        weights=weights or (),
        limit=limit,
        output_format=output_format.value,
        job=dict(job.values()),
    )
    raise typer.Exit(report_table1(request, storage_section=storage.section()))
