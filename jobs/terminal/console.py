"""Output of the commands: results to stdout, messages to stderr."""

import json
import logging
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import logs
from pipeline.redaction import redact
from pipeline.text import printable

# Wide enough for any row: outside a terminal, folded or cut lines would break grep.
UNLIMITED_WIDTH = 100_000

log = logging.getLogger(__name__)

Alignment = Literal["left", "right"]


def say(sentence: str) -> None:
    """Write one message to stderr, without folding or markup; as a line of JSON where those are asked for."""
    if logs.is_json():
        logs.log_note(log, sentence)
        return
    Console(stderr=True, highlight=False).print(Text(printable(redact(sentence), keep="\n")), soft_wrap=True)


def write_line(line: str = "") -> None:
    """Write one line to stdout, without folding or markup."""
    Console(highlight=False).print(Text(printable(line)), soft_wrap=True)


def write_json(value: object) -> None:
    """Write a value to stdout as indented JSON; in one line beside a log of JSON lines, which may share its file."""
    sys.stdout.write(json.dumps(value, indent=None if logs.is_json() else 2) + "\n")


def write_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    alignments: Sequence[Alignment] | None = None,
    has_header: bool = True,
    stream: TextIO | None = None,
) -> None:
    """Write a table of plain text, to stdout by default; long cells fold in a terminal only."""
    sink = stream or sys.stdout
    table = Table(box=box.SIMPLE_HEAD if has_header else None, show_header=has_header, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify=alignments[index] if alignments else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell, keep="\n")) for cell in row))
    width = shutil.get_terminal_size().columns if sink.isatty() else UNLIMITED_WIDTH
    console = Console(highlight=False, width=width, file=sink)
    with console.capture() as captured:
        console.print(table)
    # Rich pads every line to the table's width.
    sink.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def size_of(byte_count: int) -> str:
    """Format a size in the largest binary unit of which it has at least one: "3.4 MiB"."""
    size = float(byte_count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
