"""Flags and arguments that several commands share, and the keys of the job spec that they set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from jobs.cli.flag_groups import AlsoFlag

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from pipeline.job_spec.job import JobSpec
    from pipeline.storage.config import StorageSection


@dataclass(frozen=True)
class SpecKey:
    """In a flag's annotation: the dotted key of the job spec that the flag sets."""

    name: str


InputUri = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="Images: a folder, prefix, glob, .tar or .parquet shards, or a listing (.txt, .csv, .json, .parquet …).",
        show_default=False,
    ),
    AlsoFlag("--input"),
]
OutputUri = Annotated[
    str | None,
    typer.Argument(metavar="OUTPUT", help="Folder or prefix for the tables.", show_default=False),
    AlsoFlag("--output"),
]
SpecFile = Annotated[
    str | None,
    typer.Option("--spec", metavar="FILE", help="Job spec (YAML); flags override it.", show_default=False),
]
StoredOutput = Annotated[
    str,
    typer.Argument(metavar="OUTPUT", help="The folder or prefix given to `htc run`."),
    AlsoFlag("--output"),
]
StoredOrCurrentRun = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help='The run of this name. "current" takes the newest rows of each image. [default: the newest with images]',
    ),
]
StoredRun = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="The run of this name. [default: the newest with images]")
]
EndpointUrl = Annotated[
    str | None,
    typer.Option("--endpoint-url", metavar="URL", help="S3-compatible server."),
    SpecKey("storage.endpoint_url"),
]
Anonymous = Annotated[
    bool, typer.Option("--anonymous", help="Read public buckets without credentials."), SpecKey("storage.anonymous")
]


@dataclass(frozen=True, kw_only=True)
class JobFlags:
    """The flags of `run`, `plan` and `submit`, in the order of their help."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PRESET",
            help="Network preset. Or a model of any family: torchvision:NAME, transformers:NAME, or its factory, "
            "package.module:function; see `htc model list`. [default: the weights' own]",
        ),
        SpecKey("model.preset"),
    ] = None
    model_option: Annotated[
        list[str] | None,
        typer.Option(
            "--model-option",
            metavar="KEY=VALUE",
            help="An option of a model that is none of the presets; can be repeated. VALUE is read as YAML.",
            show_default=False,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="URI",
            help="demo (bundled), coco (published), untrained, or a .pth or .safetensors file. Of a model that is none "
            "of the presets: default (its own), untrained, or a file. [default: demo, or coco with --model]",
        ),
        SpecKey("model.weights"),
    ] = None
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--member",
            metavar="[PRESET=]WEIGHTS",
            help="In the place of --model and --weights, once for each network of an ensemble: a preset, weights, or "
            "both; *2 behind it doubles its vote.",
            show_default=False,
        ),
        SpecKey("model.ensemble.members"),
    ] = None
    fusion: Annotated[
        str | None,
        typer.Option(
            "--fusion",
            metavar="nms|soft_nms|wbf",
            help="Of an ensemble's boxes: NMS or soft-NMS of their means, or weighted boxes fusion. [default: nms]",
        ),
        SpecKey("model.ensemble.fusion"),
    ] = None
    spread: Annotated[
        bool,
        typer.Option("--spread", help="Each network of an ensemble in a process of its own, with its share of a GPU."),
        SpecKey("model.ensemble.spread"),
    ] = False
    score_threshold: Annotated[
        float | None,
        typer.Option("--score-threshold", metavar="F", help="Keep instances that score above F. [default: 0.05]"),
        SpecKey("model.score_threshold"),
    ] = None
    max_detections: Annotated[
        int | None,
        typer.Option("--max-detections", metavar="N", help="At most N instances per image. [default: 100]"),
        SpecKey("model.max_detections"),
    ] = None
    augment: Annotated[
        str | None,
        typer.Option(
            "--augment",
            metavar="none|flip|full",
            help="Test-time augmentation: mirrored as well (twice the work), or also at 3 scales (six times). "
            "[default: none]",
        ),
        SpecKey("model.augment"),
    ] = None
    semantic: Annotated[
        bool,
        typer.Option("--semantic", help="Semantic maps: store each image's as well, a mask for every class."),
        SpecKey("model.semantic"),
    ] = False
    panoptic: Annotated[
        bool,
        typer.Option(
            "--panoptic", help="Panoptic segments, things and stuff: store them as well, merged so that none overlap."
        ),
        SpecKey("model.panoptic"),
    ] = False
    tiles: Annotated[
        str | None,
        typer.Option(
            "--tiles",
            metavar="SIDE[:OVERLAP]|auto|none",
            help="Cut images larger than SIDE pixels into tiles, and join what their borders cut; auto: 1024:128, only "
            "beyond 4096 pixels. [default: none]",
        ),
        SpecKey("tiles"),
    ] = None
    suppression: Annotated[
        str | None,
        typer.Option(
            "--suppression",
            metavar="hard|soft_linear|soft_gaussian",
            help="Of duplicates: NMS, or soft-NMS, which lowers their scores. [default: hard]",
        ),
        SpecKey("model.suppression"),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="fp32|bf16|auto", help="Arithmetic of the network. [default: auto]"),
        SpecKey("model.precision"),
    ] = None
    workers: Annotated[
        str | None,
        typer.Option("--workers", metavar="auto|N|MIN:MAX", help="Processes with one model each. [default: auto]"),
        SpecKey("compute.workers"),
    ] = None
    batch_size: Annotated[
        str | None,
        typer.Option("--batch-size", metavar="auto|N", help="Images per inference. [default: auto]"),
        SpecKey("compute.batch_size"),
    ] = None
    shard_images: Annotated[
        str | None,
        typer.Option(
            "--shard-images", metavar="auto|N", help="Images per shard; auto: several shards for each worker."
        ),
        SpecKey("compute.shard_images"),
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N images."), SpecKey("input.limit")
    ] = None
    image_column: Annotated[
        str | None,
        typer.Option(
            "--image-column",
            metavar="NAME",
            help="Column with image bytes in Parquet files. [default: found from the first rows]",
        ),
        SpecKey("input.image_column"),
    ] = None
    uri_column: Annotated[
        str | None,
        typer.Option(
            "--uri-column",
            metavar="NAME",
            help="Column (or key) with the images' URIs in a listing or in Parquet files; a number for a text listing "
            "without a header.",
        ),
        SpecKey("input.uri_column"),
    ] = None
    bands: Annotated[
        str | None,
        typer.Option(
            "--bands", metavar="R,G,B", help="Bands that are red, green and blue, from 1. [default: the first three]"
        ),
        SpecKey("input.bands"),
    ] = None
    value_range: Annotated[
        str | None,
        typer.Option(
            "--value-range",
            metavar="LOW,HIGH",
            help="Values that are black and white in TIFFs of more than 8 bits. [default: their upper 8 bits]",
        ),
        SpecKey("input.value_range"),
    ] = None
    run_name: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="The run of this name. It is resumed, or begun if there is none. A new name must not read as a "
            "number, a date or null. [default: the newest]",
        ),
    ] = None
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start a new run instead of resuming."),
    ] = False
    incremental: Annotated[
        bool,
        typer.Option("--incremental", help="Only images that are new, changed, or done by another model."),
    ] = False
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Only images whose newest row is not ok (a kind of --incremental)."),
    ] = False
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="SQL",
            help="A choice in SQL: with --incremental, of the images done by another model only, those whose uri or "
            "image_id this query returns.",
        ),
        SpecKey("select.where"),
    ] = None
    max_deleted_share: Annotated[
        float | None,
        typer.Option(
            "--max-deleted-share",
            metavar="F",
            help="With --incremental: refuse a listing that lacks more than this share of the known images. "
            "[default: 0.5]",
        ),
        SpecKey("select.max_deleted_share"),
    ] = None
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            "--max-error-rate",
            metavar="F",
            help="Largest share of failed images with exit code 0. [default: 0.05]",
        ),
        SpecKey("retry.max_error_rate"),
    ] = None
    max_errors: Annotated[
        int | None,
        typer.Option(
            "--max-errors",
            metavar="N",
            help="Up to N failed images are allowed whatever their share, at most half of all images. "
            "[default: 5, or 0 with --max-error-rate 0]",
        ),
        SpecKey("retry.max_errors"),
    ] = None
    telemetry: Annotated[
        str | None,
        typer.Option(
            "--telemetry",
            metavar="auto|otel|off",
            help="Send traces and metrics through OpenTelemetry; auto: as its environment variables say. "
            "[default: auto]",
        ),
        SpecKey("telemetry"),
    ] = None
    endpoint_url: EndpointUrl = None
    anonymous: Anonymous = False

    def spec_values(self) -> Iterator[tuple[str, object]]:
        """Yield the spec's dotted keys and values that the given flags set."""
        yield from spec_values_of(self)
        yield from model_options_of(self.model_option or ())
        if self.incremental or self.retry_failed:
            yield "select.mode", "incremental"
        if self.retry_failed:
            yield "select.retry", "failed"


def model_options_of(given: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Yield the spec's dotted keys and values of `--model-option KEY=VALUE`.

    Raises:
        SpecError: one of them has no `=`, or its value is not valid YAML.
    """
    from pipeline.errors import SpecError
    from pipeline.job_spec.parsing import parse_value

    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not all(key.split(".")):
            raise SpecError(f"--model-option takes KEY=VALUE, such as min_size=640, not {each!r}.")
        yield f"model.options.{key}", parse_value(text, f"--model-option {key}")


def spec_values_of(flags: "DataclassInstance") -> Iterator[tuple[str, object]]:
    """Yield the spec's dotted keys and values that the given flags of a group set."""
    types = get_type_hints(type(flags), include_extras=True)
    for field in fields(flags):
        value = getattr(flags, field.name)
        # By identity: 0 equals False, and `--max-error-rate 0` is a value.
        if value is not None and value is not False and value != []:
            yield from ((key.name, value) for key in types[field.name].__metadata__ if isinstance(key, SpecKey))


@dataclass(frozen=True, kw_only=True)
class StorageFlags:
    """How a command that takes no job spec reaches remote storage."""

    endpoint_url: EndpointUrl = None
    anonymous: Anonymous = False

    def section(self) -> "StorageSection":
        """Return the section `storage` of a job spec with these values."""
        from pipeline.storage.config import StorageSection

        return StorageSection(endpoint_url=self.endpoint_url, anonymous=self.anonymous)


WorkersToCompare = Annotated[
    list[str] | None,
    typer.Option(
        "--workers",
        metavar="auto|N|MIN:MAX",
        help="Processes with one model each; repeat to compare. MIN:MAX: a cluster that grows. [default: auto]",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class PlanFlags(JobFlags):
    """The flags of `plan` in the place of those of `run`: several numbers of workers can be compared."""

    workers: WorkersToCompare = None  # type: ignore[assignment]

    def spec_values(self) -> Iterator[tuple[str, object]]:
        """Yield the spec's dotted keys and values; of several numbers of workers none is the spec's."""
        yield from super().spec_values()
        numbers: list[str] = list(self.workers or ())
        if len(numbers) == 1:
            yield "compute.workers", numbers[0]


@dataclass(frozen=True, kw_only=True)
class EstimateFlags:
    """The flags of `plan` about its estimates."""

    probe: Annotated[
        bool, typer.Option("--probe", help="Measure the model on a sample of the input, on this machine.")
    ] = False
    probe_images: Annotated[
        int | None,
        typer.Option("--probe-images", metavar="N", help="Probe with N images. [default: 24, with a GPU 256]"),
    ] = None
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="OUTPUT[/RUN]",
            help="Estimate from this run. [default: the last one of the model in OUTPUT]",
        ),
    ] = None
    images_per_s: Annotated[
        float | None,
        typer.Option("--images-per-s", metavar="F", help="Estimate from this throughput of one worker."),
    ] = None
    start_up: Annotated[
        str | None,
        typer.Option(
            "--start-up", metavar="TIME", help="Until the first workers have their model. [default: as in the run]"
        ),
    ] = None
    scale_up: Annotated[
        str | None,
        typer.Option(
            "--scale-up", metavar="TIME", help="With MIN:MAX, until the others have theirs. [default: --start-up]"
        ),
    ] = None
    spot_share: Annotated[
        float | None, typer.Option("--spot-share", metavar="F", help="Share of the workers that may be taken away.")
    ] = None
    spot_price_per_hour: Annotated[
        float | None, typer.Option("--spot-price-per-hour", metavar="PRICE", help="Price of a spot worker.")
    ] = None
    spot_discount: Annotated[
        float | None,
        typer.Option("--spot-discount", metavar="F", help="The same, as a share off the price: 0.7 leaves 30 %."),
    ] = None
    spot_interruptions: Annotated[
        float | None,
        typer.Option(
            "--spot-interruptions",
            metavar="F",
            help="How often a spot worker is taken away in an hour. [default: 0.05]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BudgetFlags:
    """The flags of `run`, `plan` and `submit` about time and money."""

    price_per_hour: Annotated[
        float | None,
        typer.Option("--price-per-hour", metavar="PRICE", help="Price of one worker for an hour."),
        SpecKey("budget.price_per_hour"),
    ] = None
    price_per_node_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-node-hour", metavar="PRICE", help="Price of a node for an hour; with --workers-per-node."
        ),
        SpecKey("budget.price_per_node_hour"),
    ] = None
    workers_per_node: Annotated[
        int | None,
        typer.Option("--workers-per-node", metavar="N", help="Workers that share a node's price."),
        SpecKey("budget.workers_per_node"),
    ] = None
    currency: Annotated[
        str | None,
        typer.Option("--currency", metavar="TEXT", help="Shown behind amounts, such as EUR.", show_default=False),
        SpecKey("budget.currency"),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            metavar="AMOUNT",
            help="Stop before the run's workers have cost more, earlier sessions included; needs a price.",
        ),
        SpecKey("budget.max_cost"),
    ] = None
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="TIME",
            help='Stop then: 6h from the start, "06:30 Europe/Berlin", or a date with its time.',
        ),
        SpecKey("budget.deadline"),
    ] = None
    refuse_late: Annotated[
        bool,
        typer.Option(
            "--refuse-late", help="Do not start when the end is expected past --deadline or --max-cost. [default: warn]"
        ),
        SpecKey("budget.refuse_late"),
    ] = False


def load_job_spec(
    spec_file: str | None,
    flags: JobFlags | None = None,
    *,
    input_uri: str | None = None,
    output_uri: str | None = None,
    budget: "BudgetFlags | None" = None,
) -> "JobSpec":
    """Read a job spec and set the values of the given flags over those of the file.

    Args:
        spec_file: path or URI of the YAML file; without it, the flags and the defaults are the spec.
        flags: a flag that is None or False leaves the file's value alone.
        input_uri: value of `input.uri`. output_uri: value of `output.uri`.
        budget: flags of the section `budget`.

    Raises:
        SpecError: see `pipeline.job_spec.job.load_spec`.
    """
    from pipeline.job_spec.job import load_spec

    uris = {key: uri for key, uri in {"input.uri": input_uri, "output.uri": output_uri}.items() if uri is not None}
    budget_values = {} if budget is None else dict(spec_values_of(budget))
    return load_spec(spec_file, {**uris, **dict((flags or JobFlags()).spec_values()), **budget_values})
