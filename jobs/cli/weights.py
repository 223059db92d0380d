"""Published checkpoints: list, fetch, verify, convert."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.app import app

weights_app = typer.Typer(
    help="Published checkpoints: list, fetch, verify, convert.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def list_weights() -> None:
    """List the published checkpoints and their AP."""
    from jobs.running.weights import report_published

    report_published()


@weights_app.command("fetch")
def fetch_weights(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset or a name from `htc weights list`.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Write there: a folder. [default: the cache]")
    ] = None,
) -> None:
    """Download a published checkpoint and check its hash.

    A partial download is resumed.
    """
    from jobs.running.weights import report_fetch

    report_fetch(name, to)


@weights_app.command("verify")
def verify_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .safetensors file.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PRESET", help="Check against this preset.", show_default=False),
    ] = None,
) -> None:
    """Show what a weights file holds and which preset it fits."""
    from jobs.running.weights import report_verify

    raise typer.Exit(report_verify(file, model))


@weights_app.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .pth or .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
) -> None:
    """Rewrite a checkpoint as .safetensors.

    Such a file loads fast and cannot run code.
    """
    from jobs.running.weights import report_convert

    report_convert(source, target)
