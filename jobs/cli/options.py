"""The arguments that `run` and `plan` share, and their places in the job spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.job_spec.job import JobSpec
    from pipeline.storage.config import StorageSection

OVERRIDES: Mapping[str, str] = {
    "input_uri": "input.uri",
    "output_uri": "output.uri",
    "limit": "input.limit",
    "image_column": "input.image_column",
    "uri_column": "input.uri_column",
    "model": "model.preset",
    "weights": "model.weights",
    "score_threshold": "model.score_threshold",
    "max_detections": "model.max_detections",
    "precision": "model.precision",
    "workers": "compute.workers",
    "batch_size": "compute.batch_size",
    "shard_images": "compute.shard_images",
    "max_error_rate": "retry.max_error_rate",
    "max_errors": "retry.max_errors",
    "where": "select.where",
    "max_deleted_share": "select.max_deleted_share",
    "endpoint_url": "storage.endpoint_url",
    "anonymous": "storage.anonymous",
}

InputUri = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="Images: a folder, prefix, glob, .tar or .parquet shards, or a listing (.txt, .csv, .json, .parquet …).",
        show_default=False,
    ),
]
OutputUri = Annotated[
    str | None, typer.Argument(metavar="OUTPUT", help="Folder or prefix for the tables.", show_default=False)
]
SpecFile = Annotated[
    str | None,
    typer.Option("--spec", metavar="FILE", help="Job spec (YAML); flags override it.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PRESET", help="Network preset. [default: the weights' own]"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="URI",
        help="demo (comes along), coco (published), untrained, or a .pth or .safetensors file. "
        "[default: demo, or coco with --model]",
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option("--score-threshold", metavar="F", help="Keep instances scoring above it. [default: 0.05]"),
]
MaxDetections = Annotated[
    int | None,
    typer.Option("--max-detections", metavar="N", help="At most N instances per image. [default: 100]"),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="fp32|bf16|auto", help="Arithmetic of the network. [default: auto]"),
]
Workers = Annotated[
    str | None,
    typer.Option("--workers", metavar="auto|N", help="Processes holding a model each. [default: auto]"),
]
BatchSize = Annotated[
    str | None,
    typer.Option("--batch-size", metavar="auto|N", help="Images per inference. [default: auto]"),
]
ShardImages = Annotated[
    str | None,
    typer.Option("--shard-images", metavar="auto|N", help="Images per shard; auto: several shards for each worker."),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", help="Only the first N images."),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        "--column",
        metavar="NAME",
        help="Of Parquet files, the column with image bytes. [default: judged by the first rows]",
    ),
]
UriColumn = Annotated[
    str | None,
    typer.Option(
        "--uri-column",
        metavar="NAME",
        help="Column (or key) of a listing or of Parquet files that names the images; a number where a text listing "
        "has no heading.",
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Create or resume this run; without it, the newest. A new name must not read as a number, a date or null.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Start a new run instead of resuming."),
]
MaxErrorRate = Annotated[
    float | None,
    typer.Option(
        "--max-error-rate",
        metavar="F",
        help="Share of bad images up to which the exit code is 0. [default: 0.05]",
    ),
]
MaxErrors = Annotated[
    int | None,
    typer.Option(
        "--max-errors",
        metavar="N",
        help="So many bad images are no failure whatever their share, up to half of all. "
        "[default: 5, or 0 with --max-error-rate 0]",
    ),
]
Incremental = Annotated[
    bool,
    typer.Option("--incremental", help="Only images that are new or changed, or were done by another model."),
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Only images whose newest row is not ok (a kind of --incremental)."),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="SQL",
        help="With --incremental: of images that only another model did, those whose uri or image_id this answers.",
    ),
]
MaxDeletedShare = Annotated[
    float | None,
    typer.Option(
        "--max-deleted-share",
        metavar="F",
        help="With --incremental: refuse a listing that lacks more of the known images. [default: 0.5]",
    ),
]
EndpointUrl = Annotated[
    str | None,
    typer.Option("--endpoint-url", metavar="URL", help="S3-compatible server."),
]
Anonymous = Annotated[
    bool,
    typer.Option("--anonymous", help="Read public buckets without credentials."),
]
StoredOutput = Annotated[str, typer.Argument(metavar="OUTPUT", help="The folder or prefix given to `htc run`.")]
StoredRun = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="This run. [default: the newest with images]")
]
Folder = Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder for the pictures; made if missing.")]


def load_job_spec(parameters: Mapping[str, Any]) -> "JobSpec":
    """Lay the given flags over the spec file.

    Args:
        parameters: the command's parameters by name, as typer's context holds them; a flag that was not
            given is None or False and leaves the file's value alone.

    Raises:
        SpecError: see `pipeline.job_spec.job.load_spec`.
    """
    from pipeline.job_spec.job import load_spec

    # By identity: 0 equals False, and `--max-error-rate 0` is meant.
    given = {
        key: parameters[name]
        for name, key in OVERRIDES.items()
        if parameters.get(name) is not None and parameters[name] is not False
    }
    if parameters.get("incremental") or parameters.get("retry_failed"):
        given["select.mode"] = "incremental"
    if parameters.get("retry_failed"):
        given["select.retry"] = "failed"
    return load_spec(parameters.get("spec"), given)


def storage_section(endpoint_url: str | None, anonymous: bool) -> "StorageSection":
    """How `query` and `show`, which have no spec, reach remote storage."""
    from pipeline.storage.config import StorageSection

    return StorageSection(endpoint_url=endpoint_url, anonymous=anonymous)
