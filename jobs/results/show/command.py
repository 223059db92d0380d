"""`htc show`: pictures of a run's instances: overlays, crops of single instances, contact sheets."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.results.drawing.captions import short_names
from jobs.results.drawing.fonts import check_font
from jobs.results.drawing.image_reader import ImageReader
from jobs.results.drawing.picture_files import SUFFIXES, picture_names
from jobs.results.folders import check_apart, make_folder
from jobs.results.image_lookup import ImageLookup, ImageRecord
from jobs.results.show.choice import choose_images
from jobs.results.show.files import (
    SHEET_CELL_PX,
    check_free,
    check_not_input,
    list_pictures,
    write_pictures,
    write_sheets,
)
from jobs.results.show.pictures import DrawnImage, draw_image
from jobs.results.show.request import ShowRequest
from jobs.results.show.rows import reader_of
from jobs.results.show.truth import ShownSegments, ShownTruth, read_shown_segments, read_shown_truth
from jobs.results.threads import in_order
from jobs.terminal.console import say, write_line, write_table
from jobs.terminal.output_file import check_local
from pipeline.errors import SpecError
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection


def show_overlays(output_uri: str, request: ShowRequest, *, storage_section: "StorageSection | None" = None) -> int:
    """Draw images of one run with their instances, and list the pictures.

    Returns:
        The exit code: 1 if an image or an instance could not be drawn, else 0.

    Raises:
        SpecError: the request contradicts itself, or a picture cannot be written.
        InputError: no such run, no image of that URI, or none that is wanted.
    """
    _check(request)
    if request.is_sheet:
        # Drawn at the size of a cell, labels can be read on the page.
        style = replace(request.style, long_side=request.style.long_side or SHEET_CELL_PX, min_long_side=0)
        request = replace(request, style=style)
    results = open_results(output_uri, Storage(storage_section))
    check_apart(request.folder, [results])
    lookup = ImageLookup(results, request.run, request.map_table or "instances")
    truth: ShownTruth | ShownSegments | None = None
    if request.truth is not None:
        read_truth = read_shown_truth if request.map_table is None else read_shown_segments
        truth = read_truth(results, lookup, request.truth, request.match)
    for note in () if truth is None else truth.notes:
        say(note)
    images = lookup.find(request.uris) if request.uris else choose_images(lookup, request, truth)
    read_drawn = reader_of(results, lookup, images, request)
    make_folder(request.folder)
    check_not_input(images, request)
    stems = picture_names([image.uri for image in images], "")
    if not request.is_sheet and request.content != "crops":
        check_free([f"{stem}{SUFFIXES[request.picture_format]}" for stem in stems], request)
    reader = ImageReader(results)

    def draw(work: tuple[ImageRecord, str, str]) -> DrawnImage:
        image, stem, name = work
        annotated = None
        if truth is not None and image.image_id in truth.places:
            annotated = truth.instances(image.image_id, frozenset(request.categories))
        return draw_image(reader, image, read_drawn(image), stem, request, name=name, truth=annotated)

    work = list(zip(images, stems, short_names([image.uri for image in images]), strict=True))
    counts: Counter[str] = Counter()
    with _advancing(len(work)) as advance:
        if request.is_sheet:
            pictures = write_sheets(_counted(in_order(draw, work), counts, advance), request)
        else:
            write = partial(write_pictures, request=request)
            pictures = list_pictures(_counted(in_order(lambda each: write(draw(each)), work), counts, advance), request)
    if counts["unlabelled"]:
        say(
            f"{count_of(counts['unlabelled'], request.noun)} have no label for want of room; larger pictures (--size) "
            f"have more{', and --min-score leaves out the least confident' if request.map_table is None else ''}."
        )
    _report(pictures, request)
    return 1 if counts["problems"] else 0


def _check(request: ShowRequest) -> None:
    """Refuse a request that contradicts itself.

    Raises:
        SpecError: it does, or its folder or font cannot be used.
    """
    if request.uris and request.sample is not None:
        raise SpecError("Give either --uri or --sample, not both.")
    if request.limit is not None and (request.uris or request.sample is not None):
        raise SpecError("Give either --limit, the first images, or --uri or --sample, not both.")
    if request.truth is not None and request.content == "crops":
        raise SpecError("--truth draws whole images side by side; leave out --crops.")
    if request.is_beside and request.content == "crops":
        raise SpecError("--beside draws whole images side by side; leave out --crops.")
    if request.map_table is not None and request.min_score is not None:
        raise SpecError(
            f"--min-score chooses instances, and --{request.map_table} draws all of a map; leave out one of the two."
        )
    if request.map_table == "semantic" and request.truth is not None:
        raise SpecError("--truth is drawn beside instances or panoptic segments; leave out --semantic.")
    check_local(request.folder)
    if request.folder.exists() and not request.folder.is_dir():
        raise SpecError(f"{request.folder} is a file; name a folder.")
    if request.style.font is not None:
        check_font(request.style.font)


@contextlib.contextmanager
def _advancing(images: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        row = bar.add_task("", total=images)
        yield lambda: bar.advance(row)


def _counted(drawn: Iterable[DrawnImage], counts: "Counter[str]", advance: Callable[[], None]) -> Iterator[DrawnImage]:
    """Pass images on; say their problems, and count these and labels without room."""
    for each in drawn:
        for sentence in each.problems:
            say(sentence)
        counts["problems"] += len(each.problems)
        counts["unlabelled"] += each.unlabelled
        advance()
        yield each


def _report(rows: Sequence[tuple[str, str, str]], request: ShowRequest) -> None:
    if rows:
        write_table(["overlay", f"{request.noun}s", "image"], rows, alignments=["left", "right", "left"])
    write_line(f"{count_of(len(rows), 'overlay')} in {request.folder}")
