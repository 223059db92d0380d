"""The files of a source: listed once, and images found by the names that annotations give."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import InputError, SpecError
from pipeline.inputs.formats.detect import IMAGE_SUFFIXES
from pipeline.text import json_problem


class SourceFiles:
    """All files below a source's folder, hidden ones left out, in the order of their names.

    Args:
        source: a folder, or one annotation file; then its folder is listed only when something is searched there.

    Raises:
        InputError: it does not exist, is empty, or may not be read.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.is_file = source.is_file()
        if not source.exists():
            raise InputError(f"{source} does not exist.")
        self.root = source.parent if self.is_file else source
        if not self.is_file and not self.all:
            raise InputError(f"The folder {source} is empty; name the folder of the annotation files.")

    @cached_property
    def all(self) -> list[Path]:
        """Every file."""
        try:
            return sorted(_walk(self.root))
        except OSError as error:
            raise InputError(f"{error.filename or self.root} cannot be listed: {error.strerror or error}.") from error

    @cached_property
    def images(self) -> list[Path]:
        """The files with an image's suffix."""
        return [path for path in self.all if path.suffix.lower() in IMAGE_SUFFIXES]

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the annotation files of a suffix: the one that was named, or all."""
        if self.is_file:
            return [self.source] if self.source.suffix.lower() in suffixes else []
        return [path for path in self.all if path.suffix.lower() in suffixes]

    def name_of(self, path: Path) -> str:
        """Return a file's path below the source, with slashes."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder; links to folders are followed, but no folder is entered twice."""

    def fail(error: OSError) -> None:
        raise error

    entered: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, onerror=fail, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            names.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


class ImageFinder:
    """Finds image files by the names in annotations.

    Args:
        images: returns the image files of the source; called when a name is not found directly.
        folders: where relative names begin, in this order.
    """

    def __init__(self, images: Callable[[], Iterable[Path]], folders: Iterable[Path]) -> None:
        self._images = images
        self._folders = list(folders)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for path in self._images():
            found[path.name].append(path)
        return found

    @cached_property
    def _by_stem(self) -> dict[tuple[Path, str], list[Path]]:
        found: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for path in self._images():
            found[path.parent, path.stem].append(path)
        return found

    def named(self, name: str) -> Path | None:
        """Return the image of a relative name: below one of the folders, else the only file whose path ends so."""
        name = PurePosixPath(name.replace("\\", "/")).as_posix()
        for folder in self._folders:
            if (folder / name).is_file():
                return folder / name
        parts = PurePosixPath(name).parts
        # A file with more of the folders in its name is nearer; without any it must be the only one of its name.
        for kept in range(len(parts), 0, -1):
            same = [path for path in self._by_name.get(parts[-1], []) if path.parts[-kept:] == parts[-kept:]]
            if len(same) == 1:
                return same[0]
            if same:
                return None
        return None

    def beside(self, annotation: Path, name: str | None) -> Path | None:
        """Return the image of an annotation file: by the name relative to it, else the only one of the same stem."""
        if name is not None:
            stated = annotation.parent / name
            if stated.is_file():
                return stated
            found = self.named(name)
            if found is not None:
                return found
        same = self.of_stem(annotation.parent, annotation.stem)
        return same[0] if len(same) == 1 else None

    def of_stem(self, folder: Path, stem: str) -> list[Path]:
        """Return the images of a folder with this stem: a.jpg and a.png for "a"."""
        return self._by_stem.get((folder, stem), [])


def load_json(path: Path, name: str) -> Any:
    """Read a JSON document in UTF-8, UTF-16 or UTF-32.

    Args:
        name: of the file, for messages.

    Raises:
        SpecError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{name} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{name} is not JSON: {json_problem(error)}; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise SpecError(f"{name} is not JSON (cut short?): {json_problem(error)}.") from error
    except RecursionError:
        raise SpecError(f"{name} is nested too deeply for an annotation file.") from None


def read_text(path: Path, name: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        SpecError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SpecError(f"{name} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise SpecError(f"{name} is not UTF-8 text; save it as UTF-8.") from None
