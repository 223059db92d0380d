"""`htc show`: pictures of a run's instances: overlays, crops of single instances, contact sheets."""

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.results.drawing.compose import Cell, Side, contact_sheet, crop, side_by_side
from jobs.results.drawing.fonts import check_font
from jobs.results.drawing.image_reader import ImageReader, draw_run_image
from jobs.results.drawing.instances import DrawnInstance, damaged_masks, instance_of_row
from jobs.results.drawing.picture_files import SUFFIXES, is_own_picture, picture_names, write_picture
from jobs.results.drawing.style import Style
from jobs.results.evaluation.run_images import MatchRule
from jobs.results.image_lookup import ImageLookup, ImageRecord, Wanted
from jobs.results.show_truth import ShownTruth, read_shown_truth
from jobs.terminal.console import say, write_line, write_table
from jobs.terminal.output_file import check_local
from pipeline.errors import InputError, SpecError
from pipeline.machine_limits import usable_cpus
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

DEFAULT_SAMPLE = 16
# Low enough to keep instances that a person would accept, high enough to keep clutter out of the overlay.
DEFAULT_MIN_SCORE = 0.3
# Instances drawn per image if no score reaches the default, or scores mean nothing.
FALLBACK_INSTANCES = 5
# Below this, a label would cover the image.
MIN_LONG_SIDE = 480
SHEET_COLUMNS, SHEET_ROWS, SHEET_CELL_PX, SHEET_GAP_PX = 4, 3, 420, 12
# Threads wait for storage, and decoding, drawing and writing leave Python's lock; more of them would only take memory.
_MAX_THREADS = 8

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class ShowRequest:
    """Which pictures, and how.

    folder: for the pictures; created if it is missing.
    uris: whole URIs of images or ends of them; without any, `sample` images from all over the run, 16 by default, or
        the first `limit`.
    categories: only instances of these, and images that have one.
    min_score: instances that score less are left out, 0.3 by default; if no instance reaches the default, or the
        weights are untrained, the five best of each image are drawn, with a message.
    statuses: images with these.
    run: None takes the newest.
    truth: COCO annotations, a path or URI; each image is drawn twice, truth beside detections, and only images that
        the file names. match: how they are found in the run.
    content: "images": a picture for each image; "crops": one for each instance.
    is_sheet: pages of twelve pictures instead.
    picture_format: png, jpeg or webp.
    is_overwriting: replace files that are not pictures of htc, too.
    """

    folder: Path
    uris: Sequence[str] = ()
    sample: int | None = None
    limit: int | None = None
    categories: Sequence[str] = ()
    min_score: float | None = None
    statuses: Sequence[str] = ("ok",)
    run: str | None = None
    truth: str | None = None
    match: MatchRule = MatchRule.file_name
    content: Literal["images", "crops"] = "images"
    is_sheet: bool = False
    picture_format: str = "png"
    is_overwriting: bool = False
    style: Style = field(default_factory=lambda: Style(min_long_side=MIN_LONG_SIDE))


@dataclass(frozen=True)
class Picture:
    """One drawn picture: the stem of its file, its caption on a page, and its pixels [H, W, 3] uint8 RGB."""

    stem: str
    caption: str
    pixels: NDArray[np.uint8]
    instances: int


@dataclass(frozen=True)
class DrawnImage:
    """An image's pictures, and what is wrong with them: sentences."""

    image: ImageRecord
    pictures: tuple[Picture, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class InstanceRule:
    """Which of an image's instances are drawn: those that reach the score, or the best ones."""

    min_score: float = 0.0
    best: int | None = None
    categories: frozenset[str] = frozenset()

    def choose(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Choose from an image's rows, which begin with the highest score."""
        known = [row for row in rows if not self.categories or row["category"] in self.categories]
        return [row for row in known if row["score"] >= self.min_score][: self.best]


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
    lookup = ImageLookup(results, request.run)
    truth = None if request.truth is None else read_shown_truth(results, lookup.run, request.truth, request.match)
    for note in () if truth is None else truth.notes:
        say(note)
    images = lookup.find(request.uris) if request.uris else _choose(lookup, request, truth)
    rule = _instance_rule(lookup, images, request)
    _make_folder(request.folder)
    stems = picture_names([image.uri for image in images], "")
    if not request.is_sheet and request.content == "images":
        _check_free([f"{stem}{SUFFIXES[request.picture_format]}" for stem in stems], request)
    reader = ImageReader(results)

    def draw(work: tuple[ImageRecord, str]) -> DrawnImage:
        image, stem = work
        rows = rule.choose(lookup.instances(image)) if image.status == "ok" else []
        annotated = None
        if truth is not None and image.image_id in truth.places:
            annotated = truth.instances(image.image_id, rule.categories)
        return draw_image(reader, image, rows, stem, request, truth=annotated)

    if request.is_sheet:
        pictures, problems = _write_sheets(_in_order(draw, list(zip(images, stems, strict=True))), request)
    else:

        def draw_and_write(work: tuple[ImageRecord, str]) -> DrawnImage:
            return _write(draw(work), request)

        pictures, problems = _listed(_in_order(draw_and_write, list(zip(images, stems, strict=True))), request)
    _report(pictures, request.folder)
    return 1 if problems else 0


def draw_image(
    reader: ImageReader,
    image: ImageRecord,
    rows: Sequence[Mapping[str, Any]],
    stem: str,
    request: ShowRequest,
    *,
    truth: Sequence[DrawnInstance] | None = None,
) -> DrawnImage:
    """Draw one image, its truth beside it if there is one, or its instances one by one.

    An image that is gone or has changed since the run is a grey tile that says so; an instance with a damaged mask is
    left out, and named.
    """
    read = reader.read(image.row())
    problems = []
    if read.problem is not None and image.status == "ok":
        problems.append(f"Not drawn: {image.uri}: {read.problem}.")
    instances = [instance_of_row(row) for row in rows]
    # Of an image that cannot be read, masks are compared with the size that it had.
    damaged = damaged_masks(instances, read.height, read.width)
    problems += [
        f"Not drawn: {image.uri}, instance {instances[place].number} ({instances[place].category}): {reason}."
        for place, reason in damaged.items()
    ]
    name = image.uri.rsplit("/", 1)[-1]
    if request.content == "images" or read.pixels is None:
        drawn = 0 if read.pixels is None else len(instances) - len(damaged)
        if read.pixels is None or request.truth is None:
            pixels = draw_run_image(read, instances, request.style)
        else:
            pixels = side_by_side(read.pixels, _sides(image, truth, instances, read.problem), request.style)
        whole = Picture(stem, name, pixels, drawn)
        return DrawnImage(image, (whole,), tuple(problems))
    pictures = []
    for place, instance in enumerate(instances):
        if place in damaged:
            continue
        try:
            drawn_crop = crop(read.pixels, instance, request.style)
        except ValueError as error:
            problems.append(f"Not drawn: {image.uri}, instance {instance.number} ({instance.category}): {error}.")
            continue
        pictures.append(Picture(f"{stem}_{instance.number:03d}", f"{name} #{instance.number}", drawn_crop, 1))
    return DrawnImage(image, tuple(pictures), tuple(problems))


def _sides(
    image: ImageRecord, truth: Sequence[DrawnInstance] | None, found: Sequence[DrawnInstance], problem: str | None
) -> list[Side]:
    """Return truth and detections with their titles."""
    known = "truth: none of this image" if truth is None else f"truth: {count_of(len(truth), 'object')}"
    detected = problem or f"{image.run}: {count_of(len(found), 'instance')}"
    return [Side(known, truth or ()), Side(detected, found)]


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
    check_local(request.folder)
    if request.folder.exists() and not request.folder.is_dir():
        raise SpecError(f"{request.folder} is a file; name a folder.")
    if request.style.font is not None:
        check_font(request.style.font)


def _choose(lookup: ImageLookup, request: ShowRequest, truth: ShownTruth | None) -> list[ImageRecord]:
    """Choose images by the filters; with a truth, only images that it names.

    Raises:
        InputError: no image is wanted.
    """
    is_spread = request.limit is None
    count = request.limit or request.sample or DEFAULT_SAMPLE
    min_score = request.min_score
    if min_score is None and lookup.is_trained:
        min_score = DEFAULT_MIN_SCORE
    image_ids = None if truth is None else tuple(truth.places)
    wanted = Wanted(tuple(request.statuses), tuple(request.categories), min_score, image_ids)
    images = lookup.choose(wanted, count, is_spread=is_spread)
    if images or not request.categories:
        if not images:
            raise InputError(_no_image(lookup, request, is_of_truth=truth is not None))
        return images
    known = lookup.categories()
    for category in request.categories:
        if category not in known:
            raise InputError(_no_category(lookup.run, category, known))
    if request.min_score is None:
        # No instance of these categories reaches the default score; the best ones are drawn.
        images = lookup.choose(replace(wanted, min_score=None), count, is_spread=is_spread)
    if not images:
        names = " or ".join(request.categories)
        raise InputError(
            f"Run {lookup.run} has no image of the wanted status with an instance of {names} that scores at least "
            f"{min_score or 0:g}; give a lower --min-score."
        )
    return images


def _no_image(lookup: ImageLookup, request: ShowRequest, *, is_of_truth: bool) -> str:
    which = f" that {request.truth} names" if is_of_truth else ""
    statuses = " or ".join(request.statuses) or "any"
    return f"Run {lookup.run} has no image with the status {statuses}{which}; `htc query` shows the errors."


def _no_category(run: str, category: str, known: Sequence[str]) -> str:
    if not known:
        return f"Run {run} has no instances, so none of the category {category}."
    close = difflib.get_close_matches(category.casefold(), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known[:8])}{' …' if len(known) > 8 else ''}."
    return f"Run {run} has no instance of the category {category}; {hint}"


def _instance_rule(lookup: ImageLookup, images: Sequence[ImageRecord], request: ShowRequest) -> InstanceRule:
    """Decide which instances are drawn; print a message if none reaches the score."""
    threshold = DEFAULT_MIN_SCORE if request.min_score is None else request.min_score
    categories = frozenset(request.categories)
    by_score = InstanceRule(threshold, None, categories)
    if all(image.status != "ok" for image in images):
        return by_score
    best = lookup.best_score(images, request.categories)
    if best is None:
        say("These images have no instances; they are drawn as they are.")
    elif request.min_score is None and not lookup.is_trained:
        say(
            f"The weights are untrained, so scores mean nothing: the best {FALLBACK_INSTANCES} of each image are drawn."
        )
        return InstanceRule(0.0, FALLBACK_INSTANCES, categories)
    elif request.min_score is None and best < threshold:
        say(
            f"No instance reaches {threshold:g} (the best score is {best:.3f}); "
            f"the best {FALLBACK_INSTANCES} of each image are drawn."
        )
        return InstanceRule(0.0, FALLBACK_INSTANCES, categories)
    elif best < threshold:
        say(f"No instance reaches {threshold:g}; the best score is {best:.3f}.")
    return by_score


def _in_order(function: Callable[[T], S], work: Sequence[T]) -> Iterator[S]:
    """Apply a function in threads, a few items ahead, and yield the results in order."""
    threads = min(_MAX_THREADS, usable_cpus() + 1)
    ahead: deque[Future[S]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for each in work:
                ahead.append(pool.submit(function, each))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _write(drawn: DrawnImage, request: ShowRequest) -> DrawnImage:
    """Write an image's pictures; return it without their pixels."""
    names = [f"{picture.stem}{SUFFIXES[request.picture_format]}" for picture in drawn.pictures]
    if request.content == "crops":
        _check_free(names, request)
    for name, picture in zip(names, drawn.pictures, strict=True):
        _save(picture.pixels, request.folder / name, request)
    nothing = np.zeros((0, 0, 3), np.uint8)
    return replace(drawn, pictures=tuple(replace(picture, pixels=nothing) for picture in drawn.pictures))


def _save(pixels: NDArray[np.uint8], path: Path, request: ShowRequest) -> None:
    try:
        write_picture(pixels, path, request.picture_format)
    except ValueError as error:
        raise SpecError(f"{path} cannot be written: {error}; choose --format png, or a smaller --size.") from None


def _listed(drawn: Iterable[DrawnImage], request: ShowRequest) -> tuple[list[tuple[str, str, str]], int]:
    """Return the rows of the table of pictures and the number of problems, which are said."""
    rows, problems = [], 0
    for each in drawn:
        problems += _say_problems(each)
        for picture in each.pictures:
            name = f"{picture.stem}{SUFFIXES[request.picture_format]}"
            rows.append((name, str(picture.instances), each.image.uri))
    return rows, problems


def _say_problems(drawn: DrawnImage) -> int:
    for sentence in drawn.problems:
        say(sentence)
    return len(drawn.problems)


def _write_sheets(drawn: Iterable[DrawnImage], request: ShowRequest) -> tuple[list[tuple[str, str, str]], int]:
    """Write pages; return the rows of the table and the number of problems."""
    rows: list[tuple[str, str, str]] = []
    cells: list[tuple[Picture, str]] = []
    problems = 0
    columns, cell_px = SHEET_COLUMNS, request.style.long_side or SHEET_CELL_PX
    if request.truth is not None:
        # Two pictures each, and the gap between.
        columns, cell_px = SHEET_COLUMNS // 2, 2 * cell_px + SHEET_GAP_PX

    def write_page() -> None:
        name = f"sheet-{len(rows) + 1:02d}{SUFFIXES[request.picture_format]}"
        _check_free([name], request)
        page = contact_sheet(
            [Cell(picture.pixels, picture.caption) for picture, _ in cells],
            columns=columns,
            cell_px=cell_px,
            style=request.style,
        )
        _save(page, request.folder / name, request)
        uris = list(dict.fromkeys(uri for _, uri in cells))
        more = f" and {len(uris) - 1} more" if len(uris) > 1 else ""
        rows.append((name, str(sum(picture.instances for picture, _ in cells)), f"{uris[0]}{more}"))
        cells.clear()

    for each in drawn:
        problems += _say_problems(each)
        for picture in each.pictures:
            cells.append((picture, each.image.uri))
            if len(cells) == columns * SHEET_ROWS:
                write_page()
    if cells:
        write_page()
    return rows, problems


def _check_free(names: Sequence[str], request: ShowRequest) -> None:
    """Refuse to replace files that are not pictures of htc: a photo may lie in the folder under the same name.

    Raises:
        SpecError: there is such a file.
    """
    if request.is_overwriting:
        return
    foreign = [name for name in names if (path := request.folder / name).exists() and not is_own_picture(path)]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise SpecError(
            f"{request.folder / foreign[0]}{more} is not a picture of `htc show`, so it is not replaced; name another "
            "folder, or add --overwrite."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"The folder {folder} cannot be created: {error.strerror or error}.") from None


def _report(rows: Sequence[tuple[str, str, str]], folder: Path) -> None:
    if rows:
        write_table(["overlay", "instances", "image"], rows, alignments=["left", "right", "left"])
    write_line(f"{count_of(len(rows), 'overlay')} in {folder}")
