"""The `htc` program, to which each file of this folder adds its commands."""

import typer

app = typer.Typer(
    name="htc",
    help="Instance masks for large image collections: photos in, COCO masks in Parquet out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
