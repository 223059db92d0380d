"""Folders into which commands write their results."""

from pathlib import Path

from pipeline.errors import SpecError


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
