"""Dataset: convert, check and split the data that a network is trained on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups

dataset_app = typer.Typer(
    help="Data sets to train on: convert annotations to COCO, check them, split them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dataset_app, name="dataset")

Dataset = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="A folder that `convert` or `split` wrote, or a COCO JSON file; path or URI."
    ),
    AlsoFlag("--input"),
]
ImageFolder = Annotated[
    str | None,
    typer.Option("--images", metavar="DIR", help="Folder of the images. [default: images/ beside the JSON]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout instead of text.")]


@dataset_app.command("convert")
@with_flag_groups
def convert_dataset(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder of annotations and images, or one annotation file."),
        AlsoFlag("--input"),
    ],
    *,
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            metavar="PATH",
            help="Write there: a folder, which gets the COCO JSON and images/.",
        ),
    ],
    source_format: Annotated[
        Literal["auto", "labelme", "cvat", "yolo", "coco", "masks"],
        typer.Option(
            "--format",
            help="The format of what is read; auto recognises labelme, CVAT's XML, YOLO's polygons, COCO's JSON "
            "(also CVAT's), Pascal VOC's label maps.",
        ),
    ] = "auto",
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder of the images. [default: SOURCE]", show_default=False),
    ] = None,
    is_copied: Annotated[
        bool, typer.Option("--copy-images/--link", help="Copy the images, or make symbolic links to them.")
    ] = True,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="NAME", help="This class only; repeatable. In the order of their ids. [default: all]"
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="OLD=NEW", help="Rename a class, or join it to another; repeatable."),
    ] = None,
    crowds: Annotated[
        Literal["auto", "keep", "objects"],
        typer.Option("--crowds", help="Keep masks marked as crowds, or take them as objects (auto: CVAT's only)."),
    ] = "auto",
    keep_empty: Annotated[
        bool,
        typer.Option("--keep-empty", help="Take images without a labelme file as images without objects."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse flawed annotations instead of reporting and skipping them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert annotations to COCO JSON with a folder of images.

    The format is recognised from the content. What is left out or changed is counted, and named in
    convert_report.json.
    """
    from jobs.datasets.convert_command import report_conversion
    from pipeline.datasets.convert import ConvertOptions

    report_conversion(
        Path(source),
        to,
        ConvertOptions(
            format=None if source_format == "auto" else source_format,
            images=images,
            is_linked=not is_copied,
            classes=tuple(classes or ()),
            crowds=crowds,
            keeps_empty=keep_empty,
            is_strict=strict,
        ),
        renames=rename or (),
        is_json=as_json,
    )


@dataset_app.command("check", epilog="Exit codes: 0 no errors; 1 errors; 2 bad usage or annotation files.")
@with_flag_groups
def check_dataset(
    dataset: Dataset,
    *,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="PATH",
            help="Write there: a folder, which gets contact sheets: images with their masks.",
            show_default=False,
        ),
    ] = None,
    sheet_images: Annotated[
        int, typer.Option("--sheet-images", metavar="N", min=1, help="Images on the contact sheets.")
    ] = 48,
    images: ImageFolder = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PRESET",
            help="Network preset. Its input size decides what is tiny. [default: htc_lite0_fpn]",
        ),
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Decode every image: finds damage and images that look alike.")
    ] = False,
    as_json: AsJson = False,
    storage: options.StorageFlags,
) -> None:
    """Check images, masks, classes and splits before training.

    Each finding has a severity, a count, examples and the way out. Reads every image file once.
    """
    from jobs.datasets.check_command import report_check

    raise typer.Exit(
        report_check(
            dataset,
            images=images,
            folder=to,
            sample=sheet_images,
            model=model,
            reads_pixels=pixels,
            is_json=as_json,
            storage_section=storage.section(),
        )
    )


@dataset_app.command("split")
@with_flag_groups
def split_dataset(
    dataset: Dataset,
    *,
    val: Annotated[
        float,
        typer.Option(
            "--val-share",
            metavar="F",
            help="Hold out this share of the images, each class by its share. To validate on.",
        ),
    ] = 0.1,
    test: Annotated[float, typer.Option("--test-share", metavar="F", help="Hold out this share for a test.")] = 0.0,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="PATH",
            help="Write there: a folder, which gets train.json, val.json, test.json. [default: the folder of the JSON]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed. Another one gives another split.")] = 0,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="REGEX|folder",
            help="Keep images together whose names match alike, or that share a folder.",
            show_default=False,
        ),
    ] = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Keep images together that look alike; decodes every image.")
    ] = False,
    no_read: Annotated[
        bool, typer.Option("--no-read", help="Do not read the images to keep equal ones together.")
    ] = False,
    resplit: Annotated[bool, typer.Option("--resplit", help="Forget an earlier split in the same folder.")] = False,
    images: ImageFolder = None,
    as_json: AsJson = False,
    storage: options.StorageFlags,
) -> None:
    """Split a data set into train, val and test.

    By a hash of the file names, so that the same images always give the same split, and with the same share of every
    class in each. Images of an earlier split in the same folder stay where they are.
    """
    from jobs.datasets.split_command import report_split
    from pipeline.datasets.split import SplitOptions

    report_split(
        dataset,
        to,
        SplitOptions(
            val=val,
            test=test,
            seed=seed,
            group_by=group_by,
            finds_equal=not no_read,
            finds_alike=near_duplicates,
            is_fresh=resplit,
        ),
        images=images,
        is_json=as_json,
        storage_section=storage.section(),
    )
