"""`htc export`: chooses, writes into a folder beside the final one, and puts it in place when it is whole."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.results.export.coco import write_coco
from jobs.results.export.coco_panoptic import write_coco_panoptic
from jobs.results.export.cvat import write_cvat
from jobs.results.export.fiftyone import write_fiftyone
from jobs.results.export.geojson import write_geojson
from jobs.results.export.images import FindPath, Images, local_path_of, place_images
from jobs.results.export.labelme import write_labelme
from jobs.results.export.png import write_png
from jobs.results.export.polygons import check_tolerance
from jobs.results.export.selection import Selection
from jobs.results.export.semantic_png import write_semantic_png
from jobs.results.export.world import Crs
from jobs.results.export.writers import ExportFolder
from jobs.results.export.yolo import write_yolo
from jobs.terminal.console import say, write_line
from jobs.terminal.output_file import check_local
from pipeline.datasets.source import listed
from pipeline.errors import SpecError
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.results import open_results
from pipeline.output.views import query_views
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    import duckdb

    from jobs.results.export.selection import ExportedImage
    from jobs.results.export.writers import Progress as Advance
    from pipeline.output.results import Results
    from pipeline.storage.config import StorageSection


class Format(StrEnum):
    """The formats of `htc export`."""

    COCO = "coco"
    YOLO = "yolo"
    LABELME = "labelme"
    CVAT = "cvat"
    GEOJSON = "geojson"
    PNG = "png"
    FIFTYONE = "fiftyone"
    COCO_PANOPTIC = "coco-panoptic"
    SEMANTIC_PNG = "semantic-png"


# Of the database, which keeps the images with their names in it; the rest spills to the temporary folder.
MOST_MEMORY_BYTES = 512 << 20
# Those whose polygons can be thinned.
_WITH_POLYGONS = (Format.COCO, Format.YOLO, Format.LABELME, Format.GEOJSON)
# Those of whole maps, by the table that holds them.
_OF_MAPS: Mapping[Format, MapTable] = {Format.COCO_PANOPTIC: "panoptic", Format.SEMANTIC_PNG: "semantic"}
_NOUNS = {"instances": "instance", "panoptic": "segment", "semantic": "region"}


@dataclass(frozen=True)
class ExportRequest:
    """What is exported, and how.

    run: a run's name, "current" for each image's newest rows, None for the newest run. where: a condition in SQL on the
    columns of `instances`. is_polygons: COCO's polygons in the place of run lengths. tolerance_px: how far polygons may
    be from the pixels' edges. is_overwriting: whether DIR may have files, which are replaced by those of the same name.
    crs: in what coordinates GeoJSON is written.
    """

    format: Format
    folder: Path
    run: str | None = None
    where: str | None = None
    min_score: float | None = None
    images: Images = Images.AUTO
    is_polygons: bool = False
    tolerance_px: float = 0.0
    is_overwriting: bool = False
    crs: Crs = Crs.AUTO

    @property
    def table(self) -> Literal["instances"] | MapTable:
        """The table whose rows are exported."""
        return _OF_MAPS.get(self.format, "instances")


def export_output(output_uri: str, request: ExportRequest, *, storage_section: "StorageSection | None" = None) -> None:
    """Export instances of an output, and say what was written.

    Raises:
        InputError: there is no such run, it has no image with a result, or a mask is damaged.
        SpecError: the condition is none, DIR is not empty, or a file cannot be written.
        StorageError: the output was compacted or pruned at each of several attempts.
    """
    _check(request)
    results = open_results(output_uri, Storage(storage_section))

    def export(database: "duckdb.DuckDBPyConnection") -> tuple[Selection, ExportFolder]:
        selection = Selection(
            database,
            results,
            run=request.run,
            where=request.where,
            min_score=request.min_score,
            table=request.table,
        )
        with _whole_folder(request) as folder:
            _write(selection, folder, request, results)
        return selection, folder

    selection, folder = query_views(results, export, most_memory_bytes=MOST_MEMORY_BYTES)
    _report(selection, folder, _NOUNS[request.table])


def _check(request: ExportRequest) -> None:
    check_local(request.folder)
    if request.is_polygons and request.format is not Format.COCO:
        raise SpecError(f"--polygons is for the format coco; {request.format} has one kind of mask.")
    if request.tolerance_px and request.format not in _WITH_POLYGONS:
        raise SpecError(f"--tolerance thins polygons; the format {request.format} has none.")
    if request.tolerance_px and request.format is Format.COCO and not request.is_polygons:
        raise SpecError("--tolerance thins polygons; add --polygons, or leave it out for exact run lengths.")
    if request.crs is not Crs.AUTO and request.format is not Format.GEOJSON:
        raise SpecError(f"--crs is for the format geojson; {request.format} has pixels.")
    check_tolerance(request.tolerance_px)
    if request.table != "instances" and (request.where is not None or request.min_score is not None):
        given = "--where" if request.where is not None else "--min-score"
        raise SpecError(f"{given} chooses instances, and the format {request.format} has whole maps; leave it out.")
    folder = request.folder
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder} is a file; name a folder.")
    if not request.is_overwriting and folder.is_dir() and any(folder.iterdir()):
        raise SpecError(
            f"{folder} is not empty; name another folder, or add --overwrite to replace files of the same names."
        )


@contextlib.contextmanager
def _whole_folder(request: ExportRequest) -> Iterator[ExportFolder]:
    """Give a folder to write into; its files appear in the final one when the block succeeds, and else not at all."""
    final = request.folder
    aside = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise SpecError(f"The folder {final} cannot be created: {error.strerror or error}.") from None
    try:
        yield ExportFolder(aside, final)
        _put_in_place(aside, final)
    except OSError as error:
        raise SpecError(f"{final} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, final: Path) -> None:
    if not final.exists() or not any(final.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            final.rmdir()
        aside.rename(final)
        return
    for place, folders, files in os.walk(aside):
        target = final / Path(place).relative_to(aside)
        target.mkdir(parents=True, exist_ok=True)
        # A link to a folder counts as a folder there.
        for name in (*files, *(each for each in folders if (Path(place) / each).is_symlink())):
            (Path(place) / name).replace(target / name)


def _write(selection: Selection, folder: ExportFolder, request: ExportRequest, results: "Results") -> None:
    chosen = request.format
    is_linked = chosen is Format.YOLO if request.images is Images.AUTO else request.images is not Images.NONE
    # labelme looks for an image beside its file.
    below = "." if chosen is Format.LABELME else "images"
    find_path: FindPath = local_path_of if request.images is Images.AUTO else _no_path
    if is_linked:
        find_path = place_images(selection, folder, request.images, results, below=below)
    if is_linked and chosen is Format.LABELME:
        find_path = _name_of(find_path)
    with _advancing(selection.instances, f"{_NOUNS[request.table]}s") as advance:
        match chosen:
            case Format.COCO_PANOPTIC:
                write_coco_panoptic(selection, folder, advance, results, is_beside=is_linked)
            case Format.SEMANTIC_PNG:
                write_semantic_png(selection, folder, advance, results)
            case _:
                _write_instances(selection, folder, request, advance, find_path, is_beside=is_linked)


def _write_instances(
    selection: Selection,
    folder: ExportFolder,
    request: ExportRequest,
    advance: "Advance",
    find_path: FindPath,
    *,
    is_beside: bool,
) -> None:
    tolerance = request.tolerance_px
    match request.format:
        case Format.COCO:
            polygons = tolerance if request.is_polygons else None
            write_coco(selection, folder, advance, tolerance_px=polygons, is_beside=is_beside)
        case Format.YOLO:
            write_yolo(selection, folder, advance, tolerance_px=tolerance)
        case Format.LABELME:
            write_labelme(selection, folder, advance, tolerance_px=tolerance, find_path=find_path)
        case Format.CVAT:
            write_cvat(selection, folder, advance, is_beside=is_beside)
        case Format.GEOJSON:
            write_geojson(selection, folder, advance, tolerance_px=tolerance, crs=request.crs)
        case Format.PNG:
            write_png(selection, folder, advance)
        case Format.FIFTYONE:
            write_fiftyone(selection, folder, advance, find_path=find_path)


def _no_path(image: "ExportedImage") -> str | None:
    return None


def _name_of(find_path: FindPath) -> FindPath:
    def name(image: "ExportedImage") -> str | None:
        path = find_path(image)
        return None if path is None else Path(path).name

    return name


@contextlib.contextmanager
def _advancing(rows: int, nouns: str) -> "Iterator[Advance]":
    """Show a bar on a terminal, and nothing elsewhere."""
    columns = (TextColumn(nouns), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        row = bar.add_task("", total=rows)
        yield lambda count: bar.advance(row, count)


def _report(selection: Selection, folder: ExportFolder, noun: str) -> None:
    if selection.left_out:
        say(f"Left out: {count_of(selection.left_out, 'image')} without a result; `htc query` shows why.")
    if selection.categories_left_out:
        say(f"No instance was chosen; run {selection.run} has {listed(selection.categories_left_out)}.")
    for sentence, number in folder.counts.items():
        if number:
            say(f"{sentence.format(n=f'{number:,}')}.")
    write_line(
        f"{count_of(selection.instances - folder.left_out_instances, noun)} of "
        f"{count_of(selection.images - folder.left_out_images, 'image')} "
        f"of run {selection.run} in {folder.final}"
    )
