"""`htc diff`: writes what changed as a table, JSON or CSV, and pictures of the biggest changes."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.results.diff.compare import DEFAULT_LARGEST, diff_runs
from jobs.results.diff.result import CategoryChanges, Diff, RunSide
from jobs.results.diff.rules import DiffRules, ImageFate, Kind
from jobs.results.diff.writer import IMAGES, INSTANCES
from jobs.results.folders import check_apart, make_own_folder
from jobs.results.formats import QueryResult, write_answer
from jobs.terminal.console import Alignment, say, write_json, write_line, write_table
from jobs.terminal.output_file import atomic_output, check_local
from pipeline.errors import SpecError
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

EXIT_CHANGED = 1
SUMMARY = "diff.json"
# A picture's name, which leads to no other folder.
_PICTURE = re.compile(r"\d{3,}-[A-Za-z0-9._-]+\.png")
# Lines of the table; the other formats have all of them.
MAX_CLASS_CHANGES = 10
MAX_IMAGES_LISTED = 10
MAX_EXAMPLES_LISTED = 2
# In the order of the columns; one that is 0 in all rows is left out, so that the table fits a terminal.
_KINDS = {
    Kind.SAME: "same",
    Kind.MOVED: "moved",
    Kind.SCORE_CHANGED: "score",
    Kind.CLASS_CHANGED: "class",
    Kind.APPEARED: "appeared",
    Kind.VANISHED: "vanished",
}
_FATES = {
    ImageFate.COMPARED: "compared: ok in both, of the same content",
    ImageFate.CARRIED_OVER: "not done again: the same row in both",
    ImageFate.ADDED: "added: only in B",
    ImageFate.REMOVED: "removed: only in A",
    ImageFate.PENDING: "not done yet: one run is not complete",
    ImageFate.OUTCOME_CHANGED: "with another status",
    ImageFate.CONTENT_CHANGED: "with other content, not comparable",
    ImageFate.SIZE_CHANGED: "read with another size, not comparable",
    ImageFate.NOT_OK: "not ok in both",
}


@dataclass(frozen=True)
class DiffRequest:
    """What is compared and how it is reported.

    other: the output of run B, None for that of A. fail_over: the exit code is 1 when a larger share of the instances
    changed. folder: for pictures and tables. pictures: how many images. output_format: table, json or csv.
    """

    output: str
    run_a: str | None = None
    run_b: str | None = None
    other: str | None = None
    rules: DiffRules = field(default_factory=DiffRules)
    fail_over: float | None = None
    folder: Path | None = None
    pictures: int = DEFAULT_LARGEST
    output_format: str = "table"


def report_diff(request: DiffRequest, *, storage_section: "StorageSection | None" = None) -> int:
    """Compare two runs and write what changed.

    Returns:
        1 when more changed than `fail_over` allows, or when it is given and no image was compared, unless both runs
        have the very same rows; else 0.

    Raises: as `diff_runs`.
    """
    if request.fail_over is not None and not 0 <= request.fail_over <= 1:
        raise SpecError(f"--fail-over is {request.fail_over:g}; give a share from 0 to 1, such as 0.02.")
    storage = Storage(storage_section)
    if request.folder is not None:
        check_local(request.folder)
        outputs = {request.output, request.other or request.output}
        check_apart(request.folder, [open_results(each, storage) for each in sorted(outputs)])
        make_own_folder(request.folder, SUMMARY)
    with _advancing() as advance:
        diff = diff_runs(
            request.output,
            request.run_a,
            request.other,
            request.run_b,
            rules=request.rules,
            largest=max(request.pictures, MAX_IMAGES_LISTED),
            tables=request.folder,
            storage=storage,
            advance=advance,
        )
    for note in diff.notes:
        say(note)
    {"table": _write_table, "json": lambda found: write_json(found.to_dict()), "csv": _write_csv}[
        request.output_format
    ](diff)
    if request.folder is not None:
        _write_folder(diff, request, storage)
    return _judge(diff, request)


@contextlib.contextmanager
def _advancing() -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        row = bar.add_task("", total=None)
        yield lambda images, total: bar.update(row, advance=images, total=total)


def _judge(diff: Diff, request: DiffRequest) -> int:
    """Say how much changed, and return the exit code."""
    sentence = f"{diff.changed:,} of {count_of(diff.total, 'instance')} that count changed: {diff.changed_share:.2%}"
    is_table = request.output_format == "table"
    if request.fail_over is None:
        if is_table:
            write_line(f"{sentence}.")
        return 0
    if not diff.images[ImageFate.COMPARED] and not diff.lost:
        return _judge_without_images(diff)
    if not diff.total:
        images = count_of(diff.images[ImageFate.COMPARED], "compared image")
        say(f"In {images} no instance scores {request.rules.min_score:g} or more (--min-score).")
    is_over = diff.changed_share > request.fail_over
    relation = "more than" if is_over else "within"
    verdict = f"{sentence}, {relation} the {request.fail_over:.2%} that --fail-over allows."
    (write_line if is_table else say)(verdict)
    return EXIT_CHANGED if is_over else 0


def _judge_without_images(diff: Diff) -> int:
    """Say why no image was compared; that passes only where both runs have the very same rows."""
    fates = {fate: diff.images[fate] for fate in _FATES if diff.images[fate]}
    if set(fates) <= {ImageFate.CARRIED_OVER}:
        say("No image was done again: both runs have the same rows, so nothing has changed.")
        return 0
    named = ", ".join(f"{images:,} {re.split('[:,]', _FATES[fate])[0]}" for fate, images in fates.items())
    way = " With --compare-changed, images with other content are compared as well."
    say(
        f"No image was compared ({named}), so nothing shows that --fail-over is kept."
        + (way if ImageFate.CONTENT_CHANGED in fates else "")
    )
    return EXIT_CHANGED


def _write_table(diff: Diff) -> None:
    write_table(
        ["", "run", "began", "mode", "model", "images", "output"],
        [_side_row("A", diff.a), _side_row("B", diff.b)],
        alignments=["left", "left", "left", "left", "left", "right", "left"],
    )
    rows = []
    for fate, text in _FATES.items():
        if diff.images[fate]:
            named = diff.examples.get(fate, ())[:MAX_EXAMPLES_LISTED]
            more = ", ..." if named and len(named) < diff.images[fate] else ""
            rows.append((f"{diff.images[fate]:,}", text, ", ".join(named) + more))
    for outcome in diff.outcomes:
        rows.append((f"{outcome.images:,}", f"  {outcome.status_a} in A, {outcome.status_b} in B", ""))
    write_table(["images", "", "such as"], rows, alignments=["right", "left", "left"])
    if diff.categories:
        _write_categories([*diff.categories, _sum_of(diff)] if len(diff.categories) > 1 else diff.categories)
    if diff.class_changes:
        write_table(
            ["in A", "in B", "instances"],
            [(one, other, f"{n:,}") for one, other, n in diff.class_changes[:MAX_CLASS_CHANGES]],
            alignments=["left", "left", "right"],
        )
    if diff.largest:
        listed = [
            (each.uri_b, f"{len(each.changes):,}", f"{each.same:,}", f"{each.weight:.2f}")
            for each in diff.largest[:MAX_IMAGES_LISTED]
        ]
        write_table(
            ["most changed images", "changed", "same", "weight"],
            listed,
            alignments=["left", "right", "right", "right"],
        )
    if diff.lost:
        write_line(f"{count_of(diff.lost, 'instance')} lost with images that are not ok in B any more.")


def _side_row(name: str, side: RunSide) -> tuple[str, ...]:
    mode = side.mode if side.is_complete else f"{side.mode}, not complete"
    return name, side.run, side.created[:16].replace("T", " "), mode, side.model, f"{side.images:,}", side.output


def _sum_of(diff: Diff) -> CategoryChanges:
    counts = tuple(sum(each.counts[kind] for each in diff.categories) for kind in Kind)
    in_a, in_b = (sum(getattr(each, name) for each in diff.categories) for name in ("in_a", "in_b"))
    return CategoryChanges("all", in_a, in_b, counts, None)


def _write_categories(shown: Sequence[CategoryChanges]) -> None:
    kinds = [kind for kind in _KINDS if kind is Kind.SAME or any(each.counts[kind] for each in shown)]
    columns = ["category", "in A", "in B", *(_KINDS[kind] for kind in kinds), "changed", "mean IoU"]
    rows = [
        (
            each.category,
            f"{each.in_a:,}",
            f"{each.in_b:,}",
            *(f"{each.counts[kind]:,}" for kind in kinds),
            f"{each.changed / each.total:.1%}" if each.total else "",
            "" if each.mean_iou is None else f"{each.mean_iou:.3f}",
        )
        for each in shown
    ]
    numbers: list[Alignment] = ["right"] * (len(columns) - 1)
    write_table(columns, rows, alignments=["left", *numbers])


def _write_csv(diff: Diff) -> None:
    rows = [each.to_dict() for each in diff.categories]
    numbers = ("in_a", "in_b", *(kind.label for kind in Kind))
    columns = [("category", "VARCHAR"), *((name, "BIGINT") for name in numbers)]
    columns += [("changed_share", "DOUBLE"), ("mean_iou", "DOUBLE")]
    write_answer(QueryResult(columns, iter([row[name] for name, _ in columns] for row in rows)), "csv", None)


def _write_folder(diff: Diff, request: DiffRequest, storage: Storage) -> None:
    """Write the pictures and diff.json beside the tables that `diff_runs` has written."""
    from jobs.results.diff.pictures import draw_changes

    folder = request.folder or Path()
    a = open_results(diff.a.output, storage)
    b = a if diff.a.output == diff.b.output else open_results(diff.b.output, storage)
    _remove_former(folder)
    drawn = draw_changes(diff, a, b, folder, most=request.pictures)
    content = diff.to_dict() | {"pictures": [path.name for path in drawn]}
    with atomic_output(folder / SUMMARY) as sink:
        sink.write(json.dumps(content, indent=2).encode() + b"\n")
    say(f"{count_of(len(drawn), 'picture')}, {IMAGES}, {INSTANCES} and {SUMMARY} in {folder}.")


def _remove_former(folder: Path) -> None:
    """Remove the pictures of the comparison that was written there before, which its summary names."""
    try:
        names = json.loads((folder / SUMMARY).read_bytes())["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        # None was written before, or not by this command.
        return
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and _PICTURE.fullmatch(name):
            (folder / name).unlink(missing_ok=True)
