"""Runs, prune, compact, publish, doctor: maintenance of an output."""

from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups
from jobs.cli.metrics import ExpectEvery

Namespace = Annotated[str, typer.Option("--catalog-namespace", metavar="NAME", help="Where the catalog's tables are.")]


@app.command("runs")
@with_flag_groups
def list_runs(
    output_uri: options.StoredOutput,
    *,
    overdue: Annotated[
        bool,
        typer.Option("--overdue", help="Only say whether a run is missing, late or lost; exit code 1 when one is."),
    ] = False,
    expect_every: ExpectEvery = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of a table.")] = False,
    storage: options.StorageFlags,
) -> None:
    """List the runs of OUTPUT.

    With state, size, and whether the newest results need them.
    """
    if overdue:
        from jobs.monitoring.lateness import report_lateness
        from jobs.scheduling.durations import parse_duration
        from pipeline.storage.storage import Storage

        every_s = parse_duration(expect_every, "--expect-every")
        raise typer.Exit(
            report_lateness(output_uri, Storage(storage.section()), expect_every_s=every_s, is_json=as_json)
        )
    from jobs.maintenance.list_runs import report_runs

    raise typer.Exit(report_runs(output_uri, is_json=as_json, storage_section=storage.section()))


@app.command()
@with_flag_groups
def prune(
    output_uri: options.StoredOutput,
    *,
    keep_last: Annotated[
        int | None,
        typer.Option("--keep-last", metavar="N", help="Keep the N newest complete runs.", show_default=False),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Keep runs younger than this: 30d, 12h, 4w."),
    ] = None,
    iceberg: Annotated[
        str | None,
        typer.Option("--iceberg", metavar="CATALOG", help="Remove published runs from this catalog's tables first."),
    ] = None,
    namespace: Namespace = "htc",
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; without it, only list what would be removed.")
    ] = False,
    storage: options.StorageFlags,
) -> None:
    """Remove old runs that the newest results do not need.

    Never removes a run that is in progress, is published, or holds the newest result of an image.
    """
    from jobs.maintenance.prune import prune_output

    raise typer.Exit(
        prune_output(
            output_uri,
            keep_last=keep_last,
            older_than=older_than,
            confirmed=yes,
            catalog=iceberg,
            namespace=namespace,
            storage_section=storage.section(),
        )
    )


@app.command()
@with_flag_groups
def compact(
    output_uri: options.StoredOutput,
    *,
    run_name: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="The run of this name. [default: all complete ones]")
    ] = None,
    target_mib: Annotated[
        int | None,
        typer.Option(
            "--target-mib", metavar="N", help="Largest size of a file. [default: the run's output.target_part_mib]"
        ),
    ] = None,
    storage: options.StorageFlags,
) -> None:
    """Merge the small files of finished runs into large ones.

    The rows stay the same and are read faster. Readers that use htc see each row exactly once at any time.
    """
    from jobs.maintenance.compact import compact_output

    raise typer.Exit(
        compact_output(
            output_uri,
            run=run_name,
            target_mib=target_mib,
            storage_section=storage.section(),
        )
    )


@app.command()
@with_flag_groups
def publish(
    output_uri: options.StoredOutput,
    *,
    iceberg: Annotated[
        str,
        typer.Option(
            "--iceberg",
            metavar="CATALOG",
            help="sqlite:///PATH, or a catalog of pyiceberg's configuration.",
            show_default=False,
        ),
    ],
    namespace: Namespace = "htc",
    run_name: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="The run of this name. [default: all finished ones]")
    ] = None,
    include_over_budget: Annotated[
        bool,
        typer.Option(
            "--include-over-budget",
            help="Also publish runs over their error budget, and runs without a summary that have all rows; without it "
            "they are named and the exit code is 1.",
        ),
    ] = False,
    withdraw: Annotated[
        str | None, typer.Option("--withdraw", metavar="RUN", help="Remove this run from the tables instead.")
    ] = None,
    storage: options.StorageFlags,
) -> None:
    """Add finished runs to the tables of an Iceberg catalog.

    By reference: no file is copied. One snapshot per run, so that readers of the tables see complete runs only.
    """
    from jobs.maintenance.publish import publish_output, withdraw_run

    if withdraw is not None:
        raise typer.Exit(
            withdraw_run(output_uri, iceberg, withdraw, namespace=namespace, storage_section=storage.section())
        )
    raise typer.Exit(
        publish_output(
            output_uri,
            iceberg,
            namespace=namespace,
            run=run_name,
            is_over_budget_included=include_over_budget,
            storage_section=storage.section(),
        ),
    )


@app.command()
@with_flag_groups
def doctor(
    output_uri: options.StoredOutput,
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Rebuild what can be rebuilt, and move the rest to OUTPUT/quarantine."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    storage: options.StorageFlags,
) -> None:
    """Find damaged, missing and foreign files in OUTPUT.

    Exit code 0: nothing was found, or everything was repaired. 1: something is left.
    """
    from jobs.maintenance.doctor import examine_and_report

    raise typer.Exit(
        examine_and_report(output_uri, is_repaired=repair, is_json=as_json, storage_section=storage.section())
    )
