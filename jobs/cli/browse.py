"""Browse: results as a local web app."""

from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import with_flag_groups


@app.command()
@with_flag_groups
def browse(
    output_uri: options.StoredOutput,
    *,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=65535,
            help="Listen on this port of 127.0.0.1; 0 takes a free one. [default: 8484, or a free one]",
            show_default=False,
        ),
    ] = None,
    is_opening: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open the address in the browser, or do not. [default: where there is a screen]",
            show_default=False,
        ),
    ] = None,
    storage: options.StorageFlags,
) -> None:
    """Look at the results in a browser: search, page through, compare.

    Serves a web app on this machine only, which reads and writes nothing else, until Ctrl-C. The printed address holds
    a random token. Needs the extra `web`.
    """
    from jobs.results.browse.command import browse_output

    raise typer.Exit(browse_output(output_uri, port=port, is_opening=is_opening, storage_section=storage.section()))
