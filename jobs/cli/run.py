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
    budget: options.BudgetFlags,
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

    job_spec = options.load_job_spec(spec, job, input_uri=input_uri, output_uri=output_uri, budget=budget)
    exit_code = run_and_report(job_spec, run=job.run_name, fresh=job.fresh, is_json=as_json, is_verbose=verbose)
    raise typer.Exit(exit_code)


@app.command(epilog=EXIT_CODES)
@with_flag_groups
def plan(
    input_uri: options.InputUri = None,
    output_uri: options.OutputUri = None,
    *,
    spec: options.SpecFile = None,
    job: options.PlanFlags,
    budget: options.BudgetFlags,
    estimates: options.EstimateFlags,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Skip loading and timing the model (needs no torch).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the plan as JSON.")] = False,
) -> None:
    """Show what `run` would do, and estimate how long it would take and what it would cost.

    Lists the input, decodes a few images, loads the model and times it on one image. Writes nothing. The estimate is
    from the last run of the model in OUTPUT where there is one; see docs/cost.md. Exit code 1: no number of workers
    that was named keeps --deadline and --max-cost.
    """
    from jobs.running.cost_estimate import EstimateOptions
    from jobs.running.plan import report_plan

    job_spec = options.load_job_spec(spec, job, input_uri=input_uri, output_uri=output_uri, budget=budget)
    asked = EstimateOptions(
        workers=tuple(job.workers or ()),
        is_price_given=budget.price_per_hour is not None or budget.price_per_node_hour is not None,
        is_probed=estimates.probe or estimates.probe_images is not None,
        probe_images=estimates.probe_images,
        like=estimates.like,
        images_per_s=estimates.images_per_s,
        start_up=estimates.start_up,
        scale_up=estimates.scale_up,
        spot_share=estimates.spot_share,
        spot_price_per_hour=estimates.spot_price_per_hour,
        spot_discount=estimates.spot_discount,
        spot_interruptions=estimates.spot_interruptions,
    )
    exit_code = report_plan(
        job_spec,
        run=job.run_name,
        fresh=job.fresh,
        is_model_timed=not no_model,
        is_json=as_json,
        options=asked,
    )
    raise typer.Exit(exit_code)
