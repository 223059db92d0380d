"""`htc dataset split`: train.json, val.json and test.json of one annotation file."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.terminal.console import say, write_json, write_line, write_table
from jobs.terminal.output_file import check_local
from jobs.terminal.progress import ImageProgress
from pipeline.datasets.layout import find_whole
from pipeline.datasets.split import SplitOptions, SplitResult, split_dataset
from pipeline.errors import SpecError
from pipeline.storage.storage import Storage
from pipeline.storage.uris import folder_of, is_local, local_path
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

_SHOWN_CLASSES = 40


def report_split(
    dataset: str,
    to: Path | None,
    options: SplitOptions,
    *,
    images: str | None = None,
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
) -> None:
    """Split a data set and report it.

    Args:
        dataset: a folder or a COCO JSON file, a path or URI.
        to: the folder for the splits; None takes that of the JSON file.
        images: the folder of its images, if it is none of the usual ones.

    Raises:
        HtcError: see `split_dataset`.
    """
    storage = Storage(storage_section)
    whole = find_whole(dataset, storage, images=images)
    if to is None:
        if not is_local(whole[0].annotations):
            raise SpecError(
                f"{whole[0].annotations} is not on this machine; name a local folder for the splits by --to."
            )
        to = Path(local_path(folder_of(whole[0].annotations)))
    check_local(to)
    with ImageProgress() as progress:
        result = split_dataset(whole, to, options, storage=storage, on_image=progress.show)
    if is_json:
        write_json(result.as_json())
        return
    _write(result, to)


def _write(result: SplitResult, to: Path) -> None:
    for note in result.notes:
        say(note)
    splits = list(result.images)
    shown = sorted(result.classes.items(), key=lambda pair: -sum(pair[1].values()))[:_SHOWN_CLASSES]
    write_table(
        ["images with", *splits],
        [
            *((name, *(f"{counts[split]:,}" for split in splits)) for name, counts in shown),
            ("all images", *(f"{result.images[split]:,}" for split in splits)),
        ],
        alignments=["left", *["right"] * len(splits)],  # type: ignore[list-item]
    )
    if result.groups:
        write_line(f"{count_of(result.groups, 'group')} of {result.grouped:,} images are kept together.")
    if result.kept:
        new = sum(result.images.values()) - result.kept
        write_line(f"{count_of(result.kept, 'image')} stay where the earlier split has them; {new:,} are new.")
    write_line(f"{', '.join(path.name for path in result.files.values())} in {to}")
    write_line(f"Next: htc dataset check {shlex.quote(str(to))}")
