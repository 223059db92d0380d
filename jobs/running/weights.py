"""`htc weights`: published checkpoints and local weights files."""

import time
from collections.abc import Callable
from pathlib import Path

from jobs.terminal.console import say, size_of, write_line, write_table
from jobs.terminal.output_file import check_local
from pipeline.errors import SpecError
from pipeline.text import count_of
from pipeline.weights.cache import cache_folder, fetch_weights
from pipeline.weights.verify import verify_file

# Often enough to show that a slow download makes progress.
PROGRESS_EVERY_S = 5.0


def report_published() -> None:
    """List every published checkpoint with its AP on COCO val2017, in percent, and whether its file is cached."""
    from htc_model.weights.model_zoo import BUNDLED_PRESET, PUBLISHED

    folder = cache_folder()
    rows = [
        (
            published.name,
            published.preset,
            f"{published.box_ap:.1f}",
            "" if published.mask_ap is None else f"{published.mask_ap:.1f}",
            published.sha256_prefix,
            _place(folder, published.file_name),
            published.note,
        )
        for published in PUBLISHED
    ]
    columns = ["name", "preset", "box AP", "mask AP", "sha256", "file", "note"]
    write_table(columns, rows, alignments=["left", "left", "right", "right", "left", "left", "left"])
    sources = dict.fromkeys(published.source for published in PUBLISHED)
    write_line(f"AP as published: {'; '.join(sources)}.")
    write_line(f"Files are kept in {folder}; htc weights fetch NAME downloads one.")
    write_line(f"Bundled: {BUNDLED_PRESET}, a small model of persons (--weights demo, the default).")


def report_fetch(name: str, folder: Path | None, *, fetch: Callable[..., Path] = fetch_weights) -> None:
    """Download a checkpoint and write its path.

    Args:
        name: a preset or a published name. folder: None is the cache. fetch: downloads it.

    Raises:
        WeightsUnavailableError: unknown name, no network, or wrong hash; the message says what to do.
    """
    if folder is not None:
        check_local(folder)
    write_line(str(fetch(name, folder, on_progress=DownloadLines())))


def report_verify(file: Path, preset: str | None) -> int:
    """Describe a weights file; returns 1 if its hash differs from the one in its name, else 0.

    Raises:
        ValueError: from htc_model: the file cannot be read, or does not fit the preset.
    """
    check_local(file)
    report = verify_file(file, preset)
    lines = [("file", f"{report.path} ({size_of(report.bytes)})"), ("sha256", report.sha256)]
    if report.is_hash_right is not None:
        agrees = "as its name says" if report.is_hash_right else f"but its name says {report.expected_prefix}"
        lines.append(("", agrees))
    lines.append(("published as", report.published or "no published checkpoint"))
    lines.append(("fits", report.preset or "no preset"))
    lines.append(("holds", f"{report.parameters:,} numbers"))
    if report.classes is not None:
        shown = ", ".join(report.classes[:5]) + (", ..." if len(report.classes) > 5 else "")
        lines.append(("classes", f"{len(report.classes)}: {shown}"))
    write_table(["", ""], lines, has_header=False)
    if report.is_hash_right is False:
        say(f"{file} is damaged or renamed: its sha256 does not begin with {report.expected_prefix}.")
        return 1
    return 0


def report_convert(source: Path, target: Path) -> None:
    """Convert a checkpoint to .safetensors and describe the new file.

    Raises:
        SpecError: the source and the target are the same file.
        ValueError: from htc_model: the source cannot be read, or the target cannot be written.
    """
    from htc_model.weights.load import convert_weights

    for path in (source, target):
        check_local(path)
    if source.exists() and target.exists() and source.samefile(target):
        raise SpecError(f"{source} cannot be converted into itself; name another file.")
    loaded = convert_weights(source, target)
    size = size_of(target.stat().st_size)
    write_line(f"{target}: {count_of(len(loaded.state), 'tensor')}, {size}, sha256 {loaded.sha256}")


def _place(folder: Path, file_name: str) -> str:
    return "here" if (folder / file_name).is_file() else "to fetch"


class DownloadLines:
    """Prints every few seconds how much of a download is done."""

    def __init__(self) -> None:
        self._last_line = time.monotonic()

    def __call__(self, here: int, total: int | None) -> None:
        is_end = here == total
        if not is_end and time.monotonic() - self._last_line < PROGRESS_EVERY_S:
            return
        self._last_line = time.monotonic()
        of_total = f" of {size_of(total)}" if total is not None else ""
        say(f"{size_of(here)}{of_total}")
