"""Writes pictures and contact sheets into a folder, in which other files may lie."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.results.drawing.compose import Cell, contact_sheet
from jobs.results.drawing.picture_files import SUFFIXES, is_own_picture, write_picture
from jobs.results.image_lookup import ImageRecord
from jobs.results.show.pictures import DrawnImage, Picture
from jobs.results.show.request import ShowRequest
from pipeline.errors import SpecError
from pipeline.storage.uris import is_local

SHEET_COLUMNS, SHEET_ROWS, SHEET_CELL_PX, SHEET_GAP_PX = 4, 3, 420, 12


def check_not_input(images: Sequence[ImageRecord], request: ShowRequest) -> None:
    """Refuse a folder with images of the run, which --overwrite would replace.

    Raises:
        SpecError: a chosen image lies in the folder.
    """
    folder = request.folder.resolve()
    inside = [image.uri for image in images if is_local(image.uri) and Path(image.uri).parent.resolve() == folder]
    if inside:
        raise SpecError(f"{request.folder} holds images of the run, such as {inside[0]}; name another folder.")


def check_free(names: Sequence[str], request: ShowRequest) -> None:
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


def write_pictures(drawn: DrawnImage, request: ShowRequest) -> DrawnImage:
    """Write an image's pictures; return it without their pixels."""
    names = [f"{picture.stem}{SUFFIXES[request.picture_format]}" for picture in drawn.pictures]
    if request.content == "crops":
        check_free(names, request)
    for name, picture in zip(names, drawn.pictures, strict=True):
        _save(picture.pixels, request.folder / name, request)
    nothing = np.zeros((0, 0, 3), np.uint8)
    return replace(drawn, pictures=tuple(replace(picture, pixels=nothing) for picture in drawn.pictures))


def list_pictures(drawn: Iterable[DrawnImage], request: ShowRequest) -> list[tuple[str, str, str]]:
    """Return the rows of the table of pictures."""
    suffix = SUFFIXES[request.picture_format]
    return [
        (f"{picture.stem}{suffix}", str(picture.instances), each.image.uri)
        for each in drawn
        for picture in each.pictures
    ]


def write_sheets(drawn: Iterable[DrawnImage], request: ShowRequest) -> list[tuple[str, str, str]]:
    """Write pages; return the rows of the table of pictures."""
    rows: list[tuple[str, str, str]] = []
    cells: list[tuple[Picture, str]] = []
    columns, cell_px = SHEET_COLUMNS, request.style.long_side or SHEET_CELL_PX
    if request.sides > 1:
        # Several pictures each, and the gaps between.
        columns = max(1, SHEET_COLUMNS // request.sides)
        cell_px = request.sides * cell_px + (request.sides - 1) * SHEET_GAP_PX

    def write_page() -> None:
        name = f"sheet-{len(rows) + 1:02d}{SUFFIXES[request.picture_format]}"
        check_free([name], request)
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
        for picture in each.pictures:
            cells.append((picture, each.image.uri))
            if len(cells) == columns * SHEET_ROWS:
                write_page()
    if cells:
        write_page()
    return rows


def _save(pixels: NDArray[np.uint8], path: Path, request: ShowRequest) -> None:
    try:
        write_picture(pixels, path, request.picture_format)
    except ValueError as error:
        raise SpecError(f"{path} cannot be written: {error}; choose --format png, or a smaller --size.") from None
