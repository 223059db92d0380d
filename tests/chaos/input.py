"""The input of every round: two dozen small pictures of several formats, on the disk or in a bucket."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.chaos.plan import POISON_SIZE

Size = tuple[int, int]
SIZE: Size = (32, 48)
# The picture that is deleted or replaced, among the last; what replaces it is smaller.
REPLACED = "z-last.png"
SMALLER: Size = (20, 28)
FORMATS = ("PNG", "JPEG", "BMP", "GIF")
COUNT = 21


@dataclass(frozen=True)
class Store:
    """Where the input lies, and how to change it past everything that stands before it."""

    input_uri: str
    write: Callable[[str, bytes], None]
    remove: Callable[[str], None]

    def fill(self) -> None:
        """Write the pictures; twice is no harm."""
        for name, payload in pictures():
            self.write(name, payload)

    def delete(self, name: str) -> None:
        """Take one picture away."""
        self.remove(name)

    def replace(self, name: str) -> None:
        """Put another, smaller picture in one's place."""
        self.write(name, encode_picture(99, SMALLER, "PNG"))


def local_store(folder: Path) -> Store:
    """A folder of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    return Store(
        str(folder), lambda name, payload: _write(folder / name, payload), lambda name: (folder / name).unlink()
    )


def bucket_store(files: Any, uri: str) -> Store:
    """A prefix of an S3 bucket; `files` is fsspec's file system of the server itself."""

    def write(name: str, payload: bytes) -> None:
        files.pipe_file(f"{uri}/{name}", payload)

    return Store(uri, write, lambda name: files.rm_file(f"{uri}/{name}"))


def pictures() -> Iterator[tuple[str, bytes]]:
    """Name and file of each picture: sound ones, a poisonous one, a broken one, and the one that will change."""
    for number in range(COUNT):
        kind = FORMATS[number % len(FORMATS)]
        yield f"{number:02d}.{kind.lower()}", encode_picture(number, SIZE, kind)
    yield "poison.png", encode_picture(50, POISON_SIZE, "PNG")
    yield "broken.jpg", encode_picture(51, SIZE, "JPEG")[:300]
    yield REPLACED, encode_picture(52, SIZE, "PNG")


def encode_picture(seed: int, size: Size, kind: str) -> bytes:
    """One picture of (height, width) as a file; its colours follow from the seed."""
    height, width = size
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(sink, format=kind)
    return sink.getvalue()


def _write(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)
