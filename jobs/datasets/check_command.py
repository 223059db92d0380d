"""`htc dataset check`, and `htc train --check`: what is wrong with a data set, how much of it, and the way out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.datasets.contact_sheet import draw_contact_sheets
from jobs.terminal.console import say, write_json, write_line, write_table
from jobs.terminal.output_file import check_local
from jobs.terminal.progress import ImageProgress
from pipeline.datasets.check import CheckOptions, check_dataset
from pipeline.datasets.findings import SEVERITIES, CheckReport, Finding
from pipeline.datasets.layout import Split, find_splits
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

EXIT_ERRORS = 1
DEFAULT_SAMPLE = 48
_SHOWN_CLASSES = 40
_SHOWN_EXAMPLES = 3


def report_check(
    dataset: str,
    *,
    images: str | None = None,
    folder: Path | None = None,
    sample: int = DEFAULT_SAMPLE,
    model: str | None = None,
    reads_pixels: bool = False,
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Check a data set and report what was found.

    Args:
        dataset: a folder or a COCO JSON file, a path or URI; see `find_splits`.
        images: the folder of its images, if it is none of the usual ones.
        folder: for contact sheets of `sample` images.
        model: the preset whose training size decides what is tiny.

    Returns:
        The exit code: 1 if there is an error, else 0.

    Raises:
        HtcError: the data set does not exist, or is not COCO's.
    """
    if folder is not None:
        check_local(folder)
    storage = Storage(storage_section)
    options = _options(model, reads_pixels=reads_pixels)
    splits = find_splits(dataset, storage, images=images)
    return check_splits(splits, storage=storage, options=options, folder=folder, sample=sample, is_json=is_json)


def check_splits(
    splits: Sequence[Split],
    *,
    storage: Storage,
    options: CheckOptions,
    folder: Path | None = None,
    sample: int = DEFAULT_SAMPLE,
    is_json: bool = False,
) -> int:
    """Check splits that are already known, the first to train on, and report; see `report_check`."""
    with ImageProgress() as progress:
        report = check_dataset(splits, storage=storage, options=options, on_image=progress.show)
    sheets = None if folder is None else draw_contact_sheets(report, folder, sample=sample, storage=storage)
    if is_json:
        pages = None if sheets is None else [str(page) for page in sheets.pages]
        write_json({**report.as_json(), "contact_sheets": pages})
    else:
        _write(report)
    if sheets is not None:
        for reason in sheets.undrawn[:_SHOWN_EXAMPLES]:
            say(f"Not drawn: {reason}")
        if not is_json:
            write_line(
                f"{count_of(sheets.images, 'image')} on {count_of(len(sheets.pages), 'contact sheet')} in {folder}"
            )
    return EXIT_ERRORS if report.has_errors else 0


def _options(model: str | None, *, reads_pixels: bool) -> CheckOptions:
    if model is None:
        return CheckOptions(reads_pixels=reads_pixels)
    from htc_model.config import load_preset

    resize = load_preset(model).resize
    return CheckOptions(reads_pixels=reads_pixels, short_side=resize.short_side, long_side=resize.long_side)


def _write(report: CheckReport) -> None:
    write_table(
        ["split", "images", "with objects", "objects", "crowds", "annotations"],
        [
            (
                split.name,
                f"{split.images:,}",
                f"{split.images_with_objects:,}",
                f"{split.objects:,}",
                f"{split.crowds:,}",
                split.annotations,
            )
            for split in report.splits
        ],
        alignments=["left", "right", "right", "right", "right", "left"],
    )
    _write_classes(report)
    for finding in report.findings:
        _write_finding(finding)
    depth = "all pixels decoded" if report.reads_pixels else "headers only; --pixels decodes every image"
    counts = ", ".join(f"{severity}s: {report.count(severity)}" for severity in SEVERITIES)
    write_line(f"{counts} ({depth})" if report.findings else f"Nothing was found ({depth}).")


def _write_classes(report: CheckReport) -> None:
    names = [split.name for split in report.splits]
    shown = sorted(report.classes, key=lambda each: -sum(each.objects.values()))[:_SHOWN_CLASSES]
    write_table(
        ["class", "id", *(f"objects {name}" for name in names), *(f"images {name}" for name in names), "median side"],
        [
            (
                each.name,
                str(each.category_id),
                *(f"{each.objects.get(name, 0):,}" for name in names),
                *(f"{each.images.get(name, 0):,}" for name in names),
                "-" if each.median_side is None else f"{each.median_side:.0f} px",
            )
            for each in shown
        ],
        alignments=["left", *["right"] * (2 * len(names) + 2)],  # type: ignore[list-item]
    )
    if len(report.classes) > _SHOWN_CLASSES:
        write_line(f"... and {len(report.classes) - _SHOWN_CLASSES:,} classes more; --json has all")


def _write_finding(finding: Finding) -> None:
    write_line(f"{finding.severity.upper()} {finding.code}: {finding.count:,} x {finding.message}")
    write_line(f"    {'; '.join(finding.examples[:_SHOWN_EXAMPLES])}{_more(finding)}")
    write_line(f"    -> {finding.way_out}")


def _more(finding: Finding) -> str:
    more = finding.count - min(len(finding.examples), _SHOWN_EXAMPLES)
    return f"; and {more:,} more" if more > 0 else ""
