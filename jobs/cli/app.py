"""The `htc` program, to which each file of this folder adds its commands."""

import copy
import enum
import logging
import os
import platform
from importlib import metadata
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from jobs.cli.common_flags import commands_of, rename_former, share_texts
from pipeline import logs

# In the order of use: run and read results, cluster jobs, schedules, maintenance, training.
ORDER = (
    *("run", "plan", "query", "show", "browse", "evaluate", "diff", "drift", "report", "export"),
    *("submit", "status", "top", "logs", "stop", "list", "manifests"),
    *("schedule", "scheduler", "metrics"),
    *("runs", "prune", "compact", "publish", "doctor"),
    *("dataset", "train", "model", "weights", "reproduce"),
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
            _log_usage_error(error)
            raise
        except _USAGE_ERROR as error:
            _log_usage_error(error)
            raise

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        return super().resolve_command(ctx, rename_former(args))

    def make_context(self, *arguments: Any, **keywords: Any) -> Any:
        try:
            return super().make_context(*arguments, **keywords)
        except _USAGE_ERROR as error:
            _log_usage_error(error)
            raise


# typer brings its own copy of click; the class is public under no name of typer's.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def _log_usage_error(error: Any) -> None:
    """In the JSON log, one line instead of click's three; ends the command."""
    if not logs.is_json():
        return
    usage = error.ctx.get_usage() if getattr(error, "ctx", None) else ""
    log = logging.getLogger(__name__)
    logs.log_event(log, "usage_error", error.format_message(), exit_code=error.exit_code, usage=usage)
    _leave(error.exit_code)


def _leave(exit_code: int) -> NoReturn:
    raise SystemExit(exit_code)


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


class LogFormat(enum.StrEnum):
    """The forms of the log."""

    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """The levels of the log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _set_log_format(chosen: LogFormat | None) -> None:
    _set(logs.FORMAT_VARIABLE, chosen)


def _set_log_level(chosen: LogLevel | None) -> None:
    _set(logs.LEVEL_VARIABLE, chosen)


def _set(variable: str, chosen: str | None) -> None:
    # In the environment, because workers and the scheduler's runs inherit it.
    if chosen is not None:
        os.environ[variable] = str(chosen)
        logs.configure()


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
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            help="What stderr gets: text, or one JSON object per line. [default: $HTC_LOG_FORMAT, or text]",
            callback=_set_log_format,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            help="Log from this level on. [default: $HTC_LOG_LEVEL, or info]",
            callback=_set_log_level,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    # No docstring: it would replace the program's help.
    del version, log_format, log_level


# Flags of the program that every command takes too, after its name.
_EVERYWHERE = ("log_format", "log_level")


def add_common_flags(program: TyperGroup) -> TyperGroup:
    """Give every command the flags of the log, as its last ones, and flags of one name one text."""
    common = [copy.copy(each) for each in program.params if each.name in _EVERYWHERE]
    for flag in common:
        flag.expose_value = False
    for _, command in commands_of(program):
        command.params.extend(common)
    share_texts(program)
    return program


def version_line() -> str:
    """Return the versions that an error report needs; reads metadata only, and imports none of them."""
    parts = []
    for name in ("torch", "ray"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"no {name}")
    return f"htc-batch {metadata.version('htc-batch')} (Python {platform.python_version()}, {', '.join(parts)})"
