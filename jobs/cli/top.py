"""top: a run's workers and shards while it goes on."""

import enum
from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups


class Sort(enum.StrEnum):
    """Which workers come first."""

    WAIT = "wait"
    SPEED = "speed"
    STUCK = "stuck"
    MEMORY = "memory"
    FILL = "fill"
    WORKER = "worker"


@app.command()
@with_flag_groups
def top(
    output_uri: options.StoredOutput,
    *,
    run_name: options.StoredRun = None,
    sort: Annotated[
        Sort,
        typer.Option(
            "--sort",
            help="Workers whose models wait most, that are slowest, longest at one thing (stuck), with most memory, "
            "with the emptiest batches (fill), or by number.",
        ),
    ] = Sort.WAIT,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Show N workers.")] = 20,
    page: Annotated[int, typer.Option("--page", metavar="P", min=1, help="The Pth N workers.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="Show it once, as plain text.")] = False,
    storage: options.StorageFlags,
    as_json: Annotated[bool, typer.Option("--json", help="Once, as JSON.")] = False,
) -> None:
    """Watch a run: what each worker does or waits for.

    Everything is read from the output, which the driver updates every five seconds; no cluster is needed. Ctrl-C leaves
    the view, not the run.
    """
    from jobs.results.live_text import Page
    from jobs.results.top import report_top
    from pipeline.storage.storage import Storage

    raise typer.Exit(
        report_top(
            output_uri,
            Storage(storage.section()),
            run=run_name,
            page=Page(sort.value, workers, page),
            is_once=once,
            is_json=as_json,
        )
    )
