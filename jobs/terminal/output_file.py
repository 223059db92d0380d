"""Atomic local output files."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import SpecError
from pipeline.storage.local import sync_folder

# A path has one slash where the uri had two.
_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def check_local(path: Path) -> None:
    """Refuse a URI where a local file or folder is required.

    Raises:
        SpecError: the path has a scheme.
    """
    match = _REMOTE.match(str(path))
    if match is not None:
        uri = f"{match[1]}://{str(path)[match.end() :]}"
        raise SpecError(
            f"{uri} is not a local path; name a file or folder on this machine, and copy it there or from there."
        )


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears under its name only after the block succeeds and its bytes are on disk.

    Raises:
        SpecError: the folder is missing, not writable, full, or not on this machine.
    """
    check_local(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it can still be inspected.

    Returns:
        Its new path, `NAME.damaged`.

    Raises:
        OSError: it cannot be renamed.
    """
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged" + (f"-{number}" if number else ""))).exists():
        number += 1
    path.rename(aside)
    sync_folder(path.parent)
    return aside
