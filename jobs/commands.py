"""The commands of `htc`, one thin function each; what they need is imported when they run."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from jobs import options

app = typer.Typer(
    name="htc",
    help="Instance masks for large image collections: photos in, COCO masks in Parquet out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(
    help="Published checkpoints: list, fetch, verify, convert.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(weights_app, name="weights")


class OutputFormat(enum.StrEnum):
    """How `htc query` writes its answer."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


# typer reads the parameters of `run` and `plan` from the signatures; their values arrive together in the
# context, by the names that jobs.options maps to keys of the job spec.
@app.command()
def run(
    context: typer.Context,
    input_uri: options.InputUri = None,
    output_uri: options.OutputUri = None,
    *,
    spec: options.SpecFile = None,
    model: options.Model = None,
    weights: options.Weights = None,
    score_threshold: options.ScoreThreshold = None,
    max_detections: options.MaxDetections = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    batch_size: options.BatchSize = None,
    shard_images: options.ShardImages = None,
    limit: options.Limit = None,
    run_name: options.RunName = None,
    fresh: options.Fresh = False,
    max_error_rate: options.MaxErrorRate = None,
    endpoint_url: options.EndpointUrl = None,
    anonymous: options.Anonymous = False,
) -> None:
    """Segment every image of INPUT into tables in OUTPUT.

    The same command again resumes what is left; --fresh starts over in a new run.
    """
    from jobs.run_report import run_and_report

    raise typer.Exit(run_and_report(options.load_job_spec(context.params), run=run_name, fresh=fresh))


@app.command()
def plan(
    context: typer.Context,
    input_uri: options.InputUri = None,
    output_uri: options.OutputUri = None,
    *,
    spec: options.SpecFile = None,
    model: options.Model = None,
    weights: options.Weights = None,
    score_threshold: options.ScoreThreshold = None,
    max_detections: options.MaxDetections = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    batch_size: options.BatchSize = None,
    shard_images: options.ShardImages = None,
    limit: options.Limit = None,
    run_name: options.RunName = None,
    fresh: options.Fresh = False,
    max_error_rate: options.MaxErrorRate = None,
    endpoint_url: options.EndpointUrl = None,
    anonymous: options.Anonymous = False,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Skip loading and timing the model (needs no torch).")
    ] = False,
) -> None:
    """Show what `run` would do, and how long it would take.

    Lists the input, decodes a few images, loads the model and times it on one. Writes nothing.
    """
    from jobs.plan_report import report_plan

    job_spec = options.load_job_spec(context.params)
    raise typer.Exit(report_plan(job_spec, run=run_name, fresh=fresh, is_model_timed=not no_model))


@app.command()
def query(
    output_uri: options.StoredOutput,
    sql: Annotated[str, typer.Argument(metavar="SQL", help='One or more statements; "-" reads them from stdin.')],
    *,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="[default: table, or what --output's suffix says]", show_default=False),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write there instead of to stdout.")
    ] = None,
    allow_external: Annotated[
        bool, typer.Option("--allow-external", help="Let the SQL read and write other files and settings.")
    ] = False,
    endpoint_url: options.EndpointUrl = None,
    anonymous: options.Anonymous = False,
) -> None:
    """Ask DuckDB about the tables of a run.

    The views images, instances and runs hold committed rows only; a column `run` tells runs apart.
    """
    from jobs.query import query_output

    query_output(
        output_uri,
        sql,
        output_format=output_format.value if output_format else None,
        output_file=output_file,
        is_external_allowed=allow_external,
        storage_section=options.storage_section(endpoint_url, anonymous),
    )


@app.command()
def show(
    output_uri: options.StoredOutput,
    to: options.Folder,
    *,
    uri: Annotated[
        list[str] | None,
        typer.Option("--uri", metavar="URI", help="An image's uri, or the end of one; repeatable.", show_default=False),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", min=1, help="N images spread over the run. [default: 16]"),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="F", min=0, max=1, help="Draw instances from it on. [default: 0.3]"),
    ] = None,
    run_name: options.StoredRun = None,
    endpoint_url: options.EndpointUrl = None,
    anonymous: options.Anonymous = False,
) -> None:
    """Draw masks, boxes, labels and scores over photos."""
    from jobs.show import show_overlays

    raise typer.Exit(
        show_overlays(
            output_uri,
            to,
            uris=uri or [],
            sample=sample,
            min_score=min_score,
            run=run_name,
            storage_section=options.storage_section(endpoint_url, anonymous),
        )
    )


@app.command()
def evaluate(
    output_uri: options.StoredOutput,
    annotations: Annotated[str, typer.Argument(metavar="ANNOTATIONS", help="A COCO JSON file, a path or URI.")],
    *,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Score this class; repeatable. [default: all the model knows]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line, in [0, 1], instead of a table.")] = False,
    run_name: options.StoredRun = None,
    endpoint_url: options.EndpointUrl = None,
    anonymous: options.Anonymous = False,
) -> None:
    """Score a run's boxes and masks against COCO annotations (average precision)."""
    from jobs.evaluate import report_evaluation

    raise typer.Exit(
        report_evaluation(
            output_uri,
            annotations,
            run=run_name,
            classes=classes or (),
            is_json=as_json,
            storage_section=options.storage_section(endpoint_url, anonymous),
        )
    )


@app.command()
def train(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Training spec (YAML); flags override it.")],
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
        int | None, typer.Option("--epochs", metavar="N", help="Passes over the pictures. [default: 12]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Pictures per step and worker. [default: 4]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="F", help="For the whole batch. [default: 0.001]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes training together. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of all that is random. [default: 0]")] = None,
) -> None:
    """Train a network on photos with COCO annotations.

    The same command again goes on from the last checkpoint. The result is one .safetensors file for --weights.
    """
    from jobs.train_report import train_and_report

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


@weights_app.command("list")
def list_weights() -> None:
    """List the published checkpoints and their AP."""
    from jobs.weights_report import report_published

    report_published()


@weights_app.command("fetch")
def fetch_weights(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset or a name from `htc weights list`.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder. [default: the cache]")] = None,
) -> None:
    """Download a published checkpoint and check its hash.

    A partial download is resumed.
    """
    from jobs.weights_report import report_fetch

    report_fetch(name, to)


@weights_app.command("verify")
def verify_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .safetensors file.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PRESET", help="Check against this preset.", show_default=False),
    ] = None,
) -> None:
    """Say what a weights file holds and which preset it fits."""
    from jobs.weights_report import report_verify

    raise typer.Exit(report_verify(file, model))


@weights_app.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .pth or .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
) -> None:
    """Rewrite a checkpoint as .safetensors.

    Such a file loads fast and cannot run code.
    """
    from jobs.weights_report import report_convert

    report_convert(source, target)
