"""An evaluation as files in a folder: the page, JSON, CSV, plots and pictures."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.results.drawing import picture_names
from jobs.results.evaluation.result import Evaluation
from jobs.results.evaluation.text import write_csv
from jobs.results.folders import make_folder
from jobs.results.formats import json_value
from jobs.terminal.output_file import atomic_output

if TYPE_CHECKING:
    from jobs.results.evaluation.pictures import Picture

PAGE = "evaluation.html"
SUMMARY = "evaluation.json"
_PICTURES = "worst"
# What an earlier evaluation left; other files are not touched.
_OWN_PICTURE = re.compile(r"\d{3}-.+\.jpg")


def write_folder(
    evaluation: Evaluation, page: str, plots: Mapping[str, bytes], pictures: "Sequence[Picture]", folder: Path
) -> None:
    """Write everything; files of the same names are replaced, and so are pictures of an earlier evaluation.

    Args:
        plots: PNGs by their names.

    Raises:
        SpecError: a file cannot be written.
    """
    with atomic_output(folder / PAGE) as sink:
        sink.write(page.encode())
    with atomic_output(folder / SUMMARY) as sink:
        sink.write(json.dumps(json_value(evaluation.to_dict()), indent=2).encode() + b"\n")
    write_csv(evaluation, folder / "metrics.csv", per_category=True)
    for name, png in plots.items():
        with atomic_output(folder / f"{name}.png") as sink:
            sink.write(png)
    write_worst_pictures([(picture.image.uri, picture.jpeg) for picture in pictures], folder)


def write_worst_pictures(pictures: Sequence[tuple[str, bytes]], below: Path) -> None:
    """Write pictures into a folder of their own, and remove those of an earlier evaluation.

    Args:
        pictures: of each the image's uri, and the JPEG.
        below: the evaluation's folder.

    Raises:
        SpecError: a file cannot be written.
    """
    folder = below / _PICTURES
    if not pictures and not folder.is_dir():
        return
    make_folder(folder)
    names = picture_names([uri for uri, _ in pictures], ".jpg")
    written = []
    for number, ((_, jpeg), name) in enumerate(zip(pictures, names, strict=True), start=1):
        written.append(f"{number:03d}-{name}")
        with atomic_output(folder / written[-1]) as sink:
            sink.write(jpeg)
    for left in folder.iterdir():
        if _OWN_PICTURE.fullmatch(left.name) and left.name not in written:
            left.unlink()
