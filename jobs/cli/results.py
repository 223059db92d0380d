"""Query, show, evaluate: commands that read results."""

import enum
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups
from pipeline.errors import SpecError


class OutputFormat(enum.StrEnum):
    """The formats that `htc query` writes."""

    TABLE = "table"
    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"


class ExportFormat(enum.StrEnum):
    """The formats of `htc export`."""

    coco = enum.auto()
    yolo = enum.auto()
    labelme = enum.auto()
    cvat = enum.auto()
    geojson = enum.auto()
    png = enum.auto()
    fiftyone = enum.auto()
    coco_panoptic = "coco-panoptic"
    semantic_png = "semantic-png"


class EvaluationFormat(enum.StrEnum):
    """The formats of `htc evaluate`."""

    table = enum.auto()
    json = enum.auto()
    csv = enum.auto()
    html = enum.auto()


class MatchRule(enum.StrEnum):
    """How an annotated image is found in the run."""

    # Not `name`, which every member of an enum has.
    file_name = "name"
    stem = "stem"
    id = "id"


class ImagePlacement(enum.StrEnum):
    """Whether `htc export` puts images beside their annotations."""

    auto = enum.auto()
    none = enum.auto()
    link = enum.auto()
    copy = enum.auto()


class CoordinateSystem(enum.StrEnum):
    """In what coordinates `htc export` writes GeoJSON."""

    auto = enum.auto()
    wgs84 = enum.auto()
    native = enum.auto()
    pixels = enum.auto()


class ColourBy(enum.StrEnum):
    """By what `htc show` chooses colours."""

    CATEGORY = "category"
    INSTANCE = "instance"


class PictureFormat(enum.StrEnum):
    """The formats of pictures."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class ImageStatus(enum.StrEnum):
    """What became of an image, as `pipeline.errors.ImageStatus`."""

    OK = "ok"
    UNREADABLE = "unreadable"
    MISSING = "missing"
    TOO_LARGE = "too_large"
    FAILED = "failed"


@app.command()
@with_flag_groups
def query(
    output_uri: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="The folder or prefix given to `htc run`."),
        # Until release 0.4: before `--to`, the flag named the file.
        AlsoFlag("--output", former="output_file", now="--to"),
    ],
    sql: Annotated[
        str | None,
        typer.Argument(
            metavar="SQL",
            help='Statements, each answered; "-", or none where stdin is no terminal, reads them from stdin.',
            show_default=False,
        ),
    ] = None,
    *,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option(
            "--format",
            help="The format of the answer. [default: table, or as the suffix of --to says]",
            show_default=False,
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Write there: a file, whose ending decides: .csv, .tsv, .json, .jsonl (all "
            "also .gz), .parquet, .txt. [default: stdout]",
        ),
    ] = None,
    allow_external: Annotated[
        bool, typer.Option("--allow-external", help="Let the SQL read and write other files and settings.")
    ] = False,
    storage: options.StorageFlags,
) -> None:
    """Query the tables of an output with DuckDB.

    The views images, instances and runs hold committed rows only; the column `run` names the run. Without SQL, in a
    terminal, it is a prompt: .help lists its commands, .functions the functions for masks.
    In JSON, image_id and other integers beyond 2^53 are strings, because many readers would round them.
    Times are in UTC.
    """
    from jobs.results.query import query_output

    if sql is None and sys.stdin.isatty():
        if output_format or output_file:
            raise SpecError("--format and --to need SQL; at the prompt, .format chooses how answers are written.")
        from jobs.results.prompt import run_prompt

        run_prompt(output_uri, is_external_allowed=allow_external, storage_section=storage.section())
        return
    query_output(
        output_uri,
        "-" if sql is None else sql,
        output_format=output_format.value if output_format else None,
        output_file=output_file,
        is_external_allowed=allow_external,
        storage_section=storage.section(),
    )


@app.command()
@with_flag_groups
def show(
    output_uri: options.StoredOutput,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="Write there: a folder for the pictures; created if missing.")
    ],
    *,
    uri: Annotated[
        list[str] | None,
        typer.Option("--uri", metavar="URI", help="An image's uri, or the end of one; repeatable.", show_default=False),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", min=1, help="N images from all over the run. [default: 16]"),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N images.")] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            "--category", metavar="NAME", help="Only instances of this category; repeatable.", show_default=False
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score", metavar="F", min=0, max=1, help="Draw instances that score at least F. [default: 0.3]"
        ),
    ] = None,
    status: Annotated[
        list[ImageStatus] | None,
        typer.Option("--status", help="Only images with this status; repeatable. [default: ok]", show_default=False),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", metavar="FILE", help="COCO annotations, a path or URI, drawn beside.", show_default=False
        ),
    ] = None,
    match: Annotated[
        MatchRule,
        typer.Option(
            "--match",
            help="How an annotated image is found in the run: by its file name, by that without its ending, or by "
            "its id.",
        ),
    ] = MatchRule.file_name,
    crops: Annotated[bool, typer.Option("--crops", help="A picture for each instance instead of each image.")] = False,
    panoptic: Annotated[
        bool,
        typer.Option("--panoptic", help="Panoptic segments, things and stuff, instead of instances."),
    ] = False,
    semantic: Annotated[bool, typer.Option("--semantic", help="Semantic maps instead of instances.")] = False,
    beside: Annotated[bool, typer.Option("--beside", help="The image itself beside each picture.")] = False,
    sheet: Annotated[bool, typer.Option("--sheet", help="Contact sheets, twelve pictures on each.")] = False,
    colour_by: Annotated[
        ColourBy,
        typer.Option("--colour-by", help="category: always the same for each; instance: one for each in an image."),
    ] = ColourBy.CATEGORY,
    boxes: Annotated[bool, typer.Option("--boxes", help="Draw boxes, too.")] = False,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Write category and score.")] = True,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PX",
            min=16,
            max=20_000,
            help="The pictures' longer side. [default: the image's, at least 480]",
        ),
    ] = None,
    font: Annotated[
        Path | None, typer.Option("--font", metavar="FILE", help="A font for labels in other scripts (.ttf, .otf).")
    ] = None,
    picture_format: Annotated[
        PictureFormat, typer.Option("--format", help="The format of the pictures.")
    ] = PictureFormat.PNG,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of the same names in a DIR that is not empty.")
    ] = False,
    run_name: options.StoredOrCurrentRun = None,
    storage: options.StorageFlags,
) -> None:
    """Draw masks, labels and scores over images.

    An image that is gone, or is not the one of the run any more, becomes a grey tile that says so.
    Pictures of an earlier call are replaced; other files only with --overwrite.
    """
    from jobs.results.drawing.style import Style
    from jobs.results.evaluation.run_images import MatchRule as Rule
    from jobs.results.show.command import show_overlays
    from jobs.results.show.request import MIN_LONG_SIDE, ShowRequest

    contents: dict[Literal["crops", "panoptic", "semantic"], bool] = {
        "crops": crops,
        "panoptic": panoptic,
        "semantic": semantic,
    }
    chosen = [name for name, is_chosen in contents.items() if is_chosen]
    if len(chosen) > 1:
        raise SpecError(f"Give one of --{' and --'.join(chosen)}, not both.")
    style = Style(
        colour_by="instance" if colour_by is ColourBy.INSTANCE else "category",
        has_labels=labels,
        has_boxes=boxes,
        long_side=size,
        min_long_side=0 if size else MIN_LONG_SIDE,
        font=font,
    )
    request = ShowRequest(
        to,
        uris=uri or (),
        sample=sample,
        limit=limit,
        categories=category or (),
        min_score=min_score,
        statuses=[each.value for each in status or (ImageStatus.OK,)],
        run=run_name,
        truth=truth,
        match=Rule(match.value),
        content=chosen[0] if chosen else "images",
        is_beside=beside,
        is_sheet=sheet,
        picture_format=picture_format.value,
        is_overwriting=overwrite,
        style=style,
    )
    raise typer.Exit(show_overlays(output_uri, request, storage_section=storage.section()))


@app.command()
@with_flag_groups
def export(
    output_uri: options.StoredOutput,
    export_format: Annotated[ExportFormat, typer.Option("--format", help="The format of the files.")],
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="Write there: a folder for the files; created if missing.")
    ],
    *,
    run_name: options.StoredOrCurrentRun = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="SQL",
            help='A choice in SQL: only instances of which this condition is true, such as "area > 1000".',
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="F", min=0, max=1, help="Only instances that score at least F."),
    ] = None,
    images: Annotated[
        ImagePlacement, typer.Option("--image-files", help="Put the images beside; auto links local ones for yolo.")
    ] = ImagePlacement.auto,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="COCO's polygons in the place of its run lengths.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", metavar="PX", min=0, help="Polygons may be this far off, with fewer corners."),
    ] = 0.0,
    crs: Annotated[
        CoordinateSystem,
        typer.Option(
            "--crs", help="Coordinates of geojson: WGS 84 by default where images say where they lie, else pixels."
        ),
    ] = CoordinateSystem.auto,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of the same names in a DIR that is not empty.")
    ] = False,
    storage: options.StorageFlags,
) -> None:
    """Export instances, or maps of segments or classes, for annotation tools, trainers and viewers.

    Nothing appears in DIR before everything is written.
    """
    from jobs.results.export.command import ExportRequest, Format, export_output
    from jobs.results.export.images import Images
    from jobs.results.export.world import Crs

    request = ExportRequest(
        format=Format(export_format.value),
        folder=to,
        run=run_name,
        where=where,
        min_score=min_score,
        images=Images(images.value),
        is_polygons=polygons,
        tolerance_px=tolerance,
        is_overwriting=overwrite,
        crs=Crs(crs.value),
    )
    export_output(output_uri, request, storage_section=storage.section())


@app.command()
@with_flag_groups
def evaluate(
    output_uri: options.StoredOutput,
    annotations: Annotated[
        str, typer.Argument(metavar="TRUTH", help="A COCO JSON file, a path or URI; also gzipped, also panoptic.")
    ],
    *,
    panoptic: Annotated[
        bool,
        typer.Option(
            "--panoptic",
            help="Panoptic segments, things and stuff: score them; TRUTH is a panoptic file beside the folder of its "
            "PNGs.",
        ),
    ] = False,
    per_category: Annotated[bool, typer.Option("--per-category", help="The metrics of each category, too.")] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="NAME", help="Score this class; repeatable. [default: all classes of the model]"
        ),
    ] = None,
    match: Annotated[
        MatchRule,
        typer.Option(
            "--match",
            help="How an annotated image is found in the run: by its file name, by that without its ending, or by "
            "its id.",
        ),
    ] = MatchRule.file_name,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse invalid annotations instead of reporting and skipping them.")
    ] = False,
    output_format: Annotated[
        EvaluationFormat | None,
        typer.Option("--format", help="The format of what is written to stdout. [default: table]", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Write there: a folder for a page with plots and the worst images, and for all of it in files of its "
            "own.",
            show_default=False,
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            metavar="F",
            min=0,
            max=1,
            help="Only instances that score at least F. In the confusion matrix and for the worst images; the metrics "
            "take every one. [default: 0.3]",
            show_default=False,
        ),
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, help="Name and draw the N images with most mistakes.")
    ] = 12,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON line instead of a table: scores in [0, 1], and every invalid annotation."
        ),
    ] = False,
    run_name: options.StoredOrCurrentRun = None,
    storage: options.StorageFlags,
) -> None:
    """Judge a run against COCO annotations.

    COCO's twelve metrics for boxes and masks, what each kind of error costs, and the worst images; with --panoptic the
    panoptic quality of its segments.
    """
    from jobs.results.evaluation import report_evaluation
    from jobs.results.evaluation.command import ReportFormat
    from jobs.results.evaluation.run_images import MatchRule as Rule
    from jobs.results.evaluation.score import DEFAULT_MIN_SCORE

    if panoptic:
        from jobs.results.panoptic_quality import report_panoptic_quality

        if min_score is not None:
            raise SpecError(
                "--min-score chooses instances, and segments were chosen when the map was merged; leave it out, or run "
                "again with another model.panoptic.min_score."
            )
        raise typer.Exit(
            report_panoptic_quality(
                output_uri,
                annotations,
                run=run_name,
                classes=classes or (),
                is_strict=strict,
                match=Rule(match.value),
                output_format=None if output_format is None else ReportFormat(output_format.value),
                per_category=per_category,
                folder=to,
                worst=worst,
                is_json=as_json,
                storage_section=storage.section(),
            )
        )
    raise typer.Exit(
        report_evaluation(
            output_uri,
            annotations,
            run=run_name,
            classes=classes or (),
            is_strict=strict,
            match=Rule(match.value),
            output_format=None if output_format is None else ReportFormat(output_format.value),
            per_category=per_category,
            folder=to,
            min_score=DEFAULT_MIN_SCORE if min_score is None else min_score,
            worst=worst,
            is_json=as_json,
            storage_section=storage.section(),
        )
    )
