"""The `htc` program, to which each file of this folder adds its commands."""

import platform
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# In the order of use: run and read results, cluster jobs, schedules, maintenance, training.
ORDER = (
    *("run", "plan", "query", "show", "evaluate", "export"),
    *("submit", "status", "logs", "stop", "list", "manifests"),
    *("schedule", "scheduler"),
    *("runs", "prune", "compact", "publish", "doctor"),
    *("train", "weights"),
)


EXIT_CODES = (
    "Exit codes: 0 complete; 1 incomplete, interrupted, over its error budget, or failed; 2 bad usage, spec or input; "
    "3 complete before, and its input has changed since; 130 a command other than run was stopped by Ctrl-C."
)


class _InOrder(TyperGroup):
    """Lists the commands in `ORDER` instead of the order of imports; commands that are not in it come last.

    Messages on wrong values are shown without pydantic's prefix.
    """

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        known = super().list_commands(ctx)
        return sorted(known, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            # typer passes on pydantic's prefix.
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="htc",
    cls=_InOrder,
    help="Instance masks for large image collections: images in, COCO masks in Parquet out.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of htc-batch, Python, torch and Ray.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    # No docstring: it would replace the program's help.
    del version


def version_line() -> str:
    """Return the versions that an error report needs; reads metadata only, and imports none of them."""
    parts = []
    for name in ("torch", "ray"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"no {name}")
    return f"htc-batch {metadata.version('htc-batch')} (Python {platform.python_version()}, {', '.join(parts)})"
