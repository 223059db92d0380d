"""A page for each command of `htc`, from the commands themselves: what `--help` prints, as tables."""

import inspect
from typing import Any

from jobs.cli.app import EXIT_CODES
from jobs.cli.program import load_program

_BAR = "\\|"


def command_pages() -> dict[str, str]:
    """Return the pages as Markdown, by their place in the site, in the order of `htc --help`."""
    program = load_program()
    context = program.make_context("htc", [], resilient_parsing=True)
    pages = {}
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        pages[f"reference/commands/{name}.md"] = _page(command, inner)
    return pages


def _page(command: Any, context: Any) -> str:
    parts = [f"# `htc {command.name}`", *_described(command, context)]
    for name in command.list_commands(context) if hasattr(command, "list_commands") else []:
        inner = command.get_command(context, name)
        parts += [f"## `htc {command.name} {name}`"]
        parts += _described(inner, inner.make_context(name, [], parent=context, resilient_parsing=True))
    return "\n\n".join([*parts, EXIT_CODES]) + "\n"


def _described(command: Any, context: Any) -> list[str]:
    usage = context.get_usage().removeprefix("Usage: ")
    parts = [f"```text\n{usage}\n```", _escaped(inspect.cleandoc(command.help or "").replace("\f", ""))]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    flags = [each for each in command.get_params(context) if each.param_type_name == "option"]
    rows = [each.get_help_record(context) or (each.metavar or each.name, each.help or "") for each in arguments]
    if rows:
        parts.append(_table(("argument", "what it is"), [(name.split()[0], text) for name, text in rows]))
    parts.append(_table(("flag", "meaning"), [row for row in (each.get_help_record(context) for each in flags) if row]))
    return parts


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| `{name.replace('|', _BAR)}` | {_escaped(' '.join(text.split()))} |" for name, text in rows]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text for Markdown: `|` would end a cell, `<` begin a tag, `[` a link; code stays code."""
    pieces = text.replace("|", _BAR).split("`")
    return "`".join(
        piece if number % 2 else piece.replace("<", "&lt;").replace("[", "\\[") for number, piece in enumerate(pieces)
    )
