"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import SpecError


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when the block ends well.

    Raises:
        SpecError: the folder is missing, not writable, or full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as sink:
            yield sink
        aside.replace(path)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
