"""Models of any family: list, check."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.app import app

model_app = typer.Typer(help="Models of any family: list, check.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(model_app, name="model")


@model_app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Write the list as JSON.")] = False,
) -> None:
    """List what `--model` takes here: presets, torchvision's and transformers' models, and what packages register."""
    from jobs.running.models import report_models

    report_models(is_json=as_json)


@model_app.command("check")
def check_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model that is none of the presets: package.module:function, torchvision:NAME, transformers:NAME, "
            "or a registered name.",
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="URI",
            help="demo (bundled), coco (published), untrained, or a .pth or .safetensors file. Of a model that is none "
            "of the presets: default (its own), untrained, or a file. [default: its own]",
            show_default=False,
        ),
    ] = "default",
    model_option: Annotated[
        list[str] | None,
        typer.Option(
            "--model-option",
            metavar="KEY=VALUE",
            help="An option of a model that is none of the presets; can be repeated. VALUE is read as YAML.",
            show_default=False,
        ),
    ] = None,
    photo: Annotated[
        Path | None,
        typer.Option(
            "--photo",
            metavar="FILE",
            help="A photo in which it finds something. [default: images that are computed]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the outcome as JSON.")] = False,
) -> None:
    """Try everything that a run does with a model of your own; see docs/models/any_model.md.

    Exit code 1: a check failed.
    """
    from jobs.cli.options import model_options_of
    from jobs.running.models import report_check

    options = dict(model_options_of(model_option or ()))
    raise typer.Exit(report_check(model, weights, options, photo, is_json=as_json))
