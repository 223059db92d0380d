"""Metrics for Prometheus, of outputs and schedules."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups

if TYPE_CHECKING:
    from jobs.monitoring.metrics import Sample

ExpectEvery = Annotated[
    str | None,
    typer.Option(
        "--expect-every",
        metavar="TIME",
        help="A complete run is expected this long after the last: 26h, 8d. "
        "[default: the spec's notify.expect_every_s, or 26h]",
    ),
]
Listen = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Serve the metrics on /metrics until stopped."),
]


@app.command()
@with_flag_groups
def metrics(
    outputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="OUTPUT...", help="Folders or prefixes given to `htc run`.", show_default=False),
    ] = None,
    *,
    listen: Listen = None,
    textfile: Annotated[
        Path | None,
        typer.Option("--textfile", metavar="FILE.prom", help="Write them into this file, for node_exporter."),
    ] = None,
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="How often --listen reads the outputs: 30s, 5m.")
    ] = "60s",
    expect_every: ExpectEvery = None,
    schedules: Annotated[
        bool, typer.Option("--schedules", help="Also the schedules of this machine; see --home.")
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", metavar="DIR", help="Folder of the schedules. [default: $HTC_HOME or ~/.local/state/htc]"
        ),
    ] = None,
    check_rules: Annotated[
        Path | None,
        typer.Option(
            "--check-rules",
            metavar="FILE",
            help="Check instead that Prometheus' rules (or a dashboard) ask for metrics that are exported.",
        ),
    ] = None,
    storage: options.StorageFlags,
) -> None:
    """Export how the last run of each OUTPUT ended, for Prometheus.

    Prints the metrics; with --listen serves them, with --textfile writes them. They are read from the outputs, so that
    they are there when no run is.
    """
    from jobs.scheduling.durations import parse_duration
    from pipeline.errors import SpecError

    if check_rules is not None:
        from jobs.monitoring.rules_check import check_rules as check

        raise typer.Exit(check(check_rules))
    if not outputs and not schedules:
        raise SpecError("Name the outputs to export, or --schedules.")
    if listen is not None and textfile is not None:
        raise SpecError("--listen and --textfile exclude each other: serve the metrics, or write them.")
    every_s = parse_duration(every, "--every")
    if not every_s:
        raise SpecError("--every must be longer than 0.")

    from jobs.monitoring.exporter import export_metrics
    from pipeline.storage.storage import Storage

    def schedule_samples() -> "Iterable[Sample]":
        from jobs.scheduling.home import resolve_home
        from jobs.scheduling.metrics import read_samples

        return read_samples(resolve_home(home))

    raise typer.Exit(
        export_metrics(
            outputs or [],
            Storage(storage.section()),
            listen=listen,
            textfile=textfile,
            every_s=every_s,
            expect_every_s=parse_duration(expect_every, "--expect-every"),
            extra=schedule_samples if schedules else tuple,
        )
    )
