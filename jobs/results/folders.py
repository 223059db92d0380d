"""Folders into which commands write their results."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SpecError
from pipeline.storage.uris import is_local, local_path

if TYPE_CHECKING:
    from pipeline.output.results import Results


def check_apart(folder: Path, outputs: "Iterable[Results]", *, has_pictures: bool = True) -> None:
    """Refuse a folder inside an output, or one of images: a later run would take pictures there for images.

    Args:
        folder: where a command is about to write. outputs: those that it reads.
        has_pictures: whether it writes pictures; other files may lie beside images.

    Raises:
        SpecError: it is inside an output, or the input of one of its runs.
    """
    place = folder.resolve()
    for results in outputs:
        if is_local(results.output_uri) and place.is_relative_to(Path(local_path(results.output_uri)).resolve()):
            raise SpecError(f"{folder} lies inside the output {results.output_uri}; name a folder outside it.")
        inputs = {str((record.spec.get("input") or {}).get("uri") or "") for record in results.records}
        for uri in sorted(inputs - {""}) if has_pictures else ():
            if is_local(uri) and Path(local_path(uri)).resolve() == place:
                raise SpecError(
                    f"{folder} holds the images of the run; pictures there would be its input next time. Name another "
                    "folder."
                )


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it.

    Raises:
        SpecError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"The folder {folder} cannot be created: {error.strerror or error}.") from None


def make_own_folder(folder: Path, mark: str) -> None:
    """Create a folder for the results of one command, or take one that has such results, which are replaced.

    Args:
        mark: the file by which the results of an earlier call are recognised.

    Raises:
        SpecError: it cannot be created, or holds other files.
    """
    make_folder(folder)
    found = next((each for each in sorted(folder.iterdir()) if not each.name.startswith(".")), None)
    if found is not None and not (folder / mark).is_file():
        raise SpecError(
            f"{folder} holds other files, such as {found.name}, and no {mark} of an earlier call; name a new folder."
        )
