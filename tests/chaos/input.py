"""The input of every round: two dozen small images of several formats, on the disk or in a bucket."""

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
# The image that is deleted or replaced, one of the last; its replacement is smaller.
REPLACED = "z-last.png"
SMALLER: Size = (20, 28)
FORMATS = ("PNG", "JPEG", "BMP", "GIF")
COUNT = 21


@dataclass(frozen=True)
class Store:
    """The input, changed in the store itself, without the proxy."""

    input_uri: str
    write: Callable[[str, bytes], None]
    remove: Callable[[str], None]

    def fill(self) -> None:
        """Write the images; may be called again."""
        for name, payload in images():
            self.write(name, payload)

    def delete(self, name: str) -> None:
        """Delete one image."""
        self.remove(name)

    def replace(self, name: str) -> None:
        """Replace one image by another, smaller one."""
        self.write(name, encode_image(99, SMALLER, "PNG"))


def local_store(folder: Path) -> Store:
    """Return the store of a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Store(
        str(folder), lambda name, payload: _write(folder / name, payload), lambda name: (folder / name).unlink()
    )


def bucket_store(files: Any, uri: str) -> Store:
    """Return the store of a prefix of an S3 bucket; `files` is fsspec's file system of the server itself."""

    def write(name: str, payload: bytes) -> None:
        files.pipe_file(f"{uri}/{name}", payload)

    return Store(uri, write, lambda name: files.rm_file(f"{uri}/{name}"))


def images() -> Iterator[tuple[str, bytes]]:
    """Yield name and file of each image: valid ones, one that kills, a broken one, and the one that will change."""
    for number in range(COUNT):
        kind = FORMATS[number % len(FORMATS)]
        yield f"{number:02d}.{kind.lower()}", encode_image(number, SIZE, kind)
    yield "poison.png", encode_image(50, POISON_SIZE, "PNG")
    yield "broken.jpg", encode_image(51, SIZE, "JPEG")[:300]
    yield REPLACED, encode_image(52, SIZE, "PNG")


def encode_image(seed: int, size: Size, kind: str) -> bytes:
    """Return an image of (height, width) as a file; its colours follow from the seed."""
    height, width = size
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(sink, format=kind)
    return sink.getvalue()


def _write(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)
