"""`htc dataset convert`: annotations of other formats to COCO JSON, with a report of what was left out or changed."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.terminal.console import say, write_json, write_line, write_table
from jobs.terminal.output_file import check_local
from pipeline.datasets.convert import Conversion, ConvertOptions, convert_dataset
from pipeline.datasets.layout import ANNOTATIONS, IMAGES, REPORT
from pipeline.datasets.source import listed
from pipeline.errors import SpecError
from pipeline.text import count_of

_SHOWN_CLASSES = 20


def report_conversion(
    source: Path, to: Path, options: ConvertOptions, *, renames: Sequence[str] = (), is_json: bool = False
) -> None:
    """Convert a data set and report it.

    Args:
        renames: OLD=NEW, names of classes.

    Raises:
        HtcError: see `convert_dataset`.
    """
    for path in (source, to, *([options.images] if options.images is not None else [])):
        check_local(path)
    conversion = convert_dataset(source, to, _with_renames(options, renames))
    if is_json:
        write_json(conversion.as_json())
        return
    _write(conversion, source)


def _with_renames(options: ConvertOptions, renames: Sequence[str]) -> ConvertOptions:
    renamed = {}
    for rename in renames:
        old, equals, new = rename.partition("=")
        if not equals or not old or not new:
            raise SpecError(
                f"--rename {rename!r} must be OLD=NEW, the class's name in the source and the one to write."
            )
        renamed[old] = new
    return replace(options, renamed=renamed)


def _write(conversion: Conversion, source: Path) -> None:
    for note in conversion.notes:
        say(note)
    write_line(f"{source} is read as {conversion.format}.")
    shown = list(conversion.classes.items())[:_SHOWN_CLASSES]
    write_table(["class", "objects"], [(name, f"{count:,}") for name, count in shown], alignments=["left", "right"])
    if len(conversion.classes) > _SHOWN_CLASSES:
        write_line(f"... and {len(conversion.classes) - _SHOWN_CLASSES} classes more")
    _write_flaws("left out", conversion.left_out)
    _write_flaws("changed", conversion.changed)
    if conversion.left_out or conversion.changed:
        write_line(f"All of them by name: {conversion.folder / REPORT}")
    names = ", ".join(path.name for path in conversion.files)
    write_line(
        f"{count_of(conversion.images, 'image')} with {count_of(conversion.objects, 'object')} in {conversion.folder}: "
        f"{names}, {IMAGES}/"
    )
    folder = shlex.quote(str(conversion.folder))
    write_line(f"Next: htc dataset check {folder} --to sheets")
    if conversion.files[0].name == ANNOTATIONS:
        write_line(f"      htc dataset split {folder} --val-share 0.1")


def _write_flaws(what: str, flaws: Mapping[str, Sequence[str]]) -> None:
    for kind, names in flaws.items():
        write_line(f"{what}: {len(names):,} x {kind} ({listed(names, between='; ')})")
