"""Run and plan."""

from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import EXIT_CODES, app
from jobs.cli.flag_groups import with_flag_groups


@app.command(epilog=EXIT_CODES)
@with_flag_groups
def run(
    input_uri: options.InputUri = None,
    output_uri: options.OutputUri = None,
    *,
    spec: options.SpecFile = None,
    job: options.JobFlags,
    as_json: Annotated[bool, typer.Option("--json", help="Write the outcome as JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show at the end how long each part of the start took.")
    ] = False,
) -> None:
    """Segment every image of INPUT into tables in OUTPUT.

    Run the same command again to resume; --fresh starts over in a new run. With --incremental, each command after a
    complete run begins a new run of the images that are new or changed since.

    When the run is complete, the same command only reports which images of INPUT are new, changed or gone since.
    """
    from jobs.running.run import run_and_report

    job_spec = options.load_job_spec(spec, job, input_uri=input_uri, output_uri=output_uri)
    exit_code = run_and_report(job_spec, run=job.run_name, fresh=job.fresh, is_json=as_json, is_verbose=verbose)
    raise typer.Exit(exit_code)


@app.command(epilog=EXIT_CODES)
@with_flag_groups
def plan(
    input_uri: options.InputUri = None,
    output_uri: options.OutputUri = None,
    *,
    spec: options.SpecFile = None,
    job: options.JobFlags,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Skip loading and timing the model (needs no torch).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the plan as JSON.")] = False,
) -> None:
    """Show what `run` would do, and estimate how long it would take.

    Lists the input, decodes a few images, loads the model and times it on one image. Writes nothing.
    """
    from jobs.running.plan import report_plan

    job_spec = options.load_job_spec(spec, job, input_uri=input_uri, output_uri=output_uri)
    exit_code = report_plan(job_spec, run=job.run_name, fresh=job.fresh, is_model_timed=not no_model, is_json=as_json)
    raise typer.Exit(exit_code)
