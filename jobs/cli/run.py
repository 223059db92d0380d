"""Run, plan, train."""

from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import EXIT_CODES, app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups


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


@app.command()
@with_flag_groups
def train(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="Training spec (YAML); flags override it."), AlsoFlag("--spec")
    ],
    *,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="DIR", help="Folder for weights, checkpoint and metrics.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="Network preset. [default: htc_lite0_fpn]")
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option("--initial", metavar="WEIGHTS", help="imagenet, none, or a weights file. [default: imagenet]"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Passes over the images. [default: 12]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Images per step and worker. [default: 4]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="F", help="For the whole batch. [default: 0.001]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that train together. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed. [default: 0]")] = None,
) -> None:
    """Train a network on images with COCO annotations.

    Run the same command again to resume from the last checkpoint. The result is one .safetensors file for --weights.
    """
    from jobs.running.train import train_and_report

    overrides = {
        "output": output,
        "model.preset": model,
        "model.initial": initial,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimiser.learning_rate": learning_rate,
        "workers": workers,
        "seed": seed,
    }
    train_and_report(spec, overrides)
