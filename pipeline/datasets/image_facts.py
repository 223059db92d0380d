"""Facts of image files: size, content hash, and with the pixels decoded a hash of what they look like."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.concurrency import read_ahead
from pipeline.errors import ImageError, NotFoundError, StorageError
from pipeline.inputs.decode import StoredSize, decode_image, read_size
from pipeline.storage.storage import Storage

# Below this many gray levels of spread a thumbnail is one colour, and looks like every other of its kind.
_FLAT_SPREAD = 4.0
_DIFFERENCES = 8
# The long side to which an image is reduced by taking pixels before it is averaged.
_SAMPLED_SIDE = 256


@dataclass(frozen=True)
class ImageFacts:
    """One image file.

    problem: why it cannot be read; None if it can. size: as stored. digest: of the file's bytes.
    look: 128 bits that are alike for images that look alike; None if the pixels were not decoded, or are of one colour.
    """

    uri: str
    is_missing: bool = False
    problem: str | None = None
    size: StoredSize | None = None
    digest: bytes | None = None
    look: int | None = None


def read_facts(
    uris: Sequence[str],
    storage: Storage,
    *,
    reads_pixels: bool,
    threads: int,
    on_image: Callable[[], None] = lambda: None,
) -> Iterator[ImageFacts]:
    """Yield the facts of images in their order; each file is read once.

    Args:
        reads_pixels: decode each image, which finds damage behind the header, and compute its look.
        on_image: called after each image.
    """
    for facts in read_ahead(threads, lambda uri: _read(uri, storage, reads_pixels=reads_pixels), uris):
        on_image()
        yield facts


def _read(uri: str, storage: Storage, *, reads_pixels: bool) -> ImageFacts:
    try:
        payload = storage.read(uri)
    except NotFoundError:
        return ImageFacts(uri, is_missing=True)
    except StorageError as error:
        return ImageFacts(uri, problem=str(error).rstrip("."))
    digest = hashlib.blake2b(payload, digest_size=16).digest()
    try:
        size = read_size(payload)
        look = compute_look(decode_image(payload)) if reads_pixels else None
    except ImageError as error:
        return ImageFacts(uri, problem=error.reason, digest=digest)
    return ImageFacts(uri, size=size, digest=digest, look=look)


def compute_look(pixels: NDArray[np.uint8]) -> int | None:
    """Compute a difference hash: which of neighbouring cells of a 9 x 9 thumbnail is brighter, in rows and columns.

    Args:
        pixels: [H, W, 3] uint8.

    Returns:
        128 bits; None for an image of one colour.
    """
    step = max(1, max(pixels.shape[:2]) // _SAMPLED_SIDE)
    small = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])).convert("L")
    side = _DIFFERENCES + 1
    cells = np.asarray(small.resize((side, side), Image.Resampling.BOX), np.float64)
    if cells.std() < _FLAT_SPREAD:
        return None
    bits = np.concatenate([(cells[:-1, 1:] > cells[:-1, :-1]).ravel(), (cells[1:, :-1] > cells[:-1, :-1]).ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


# Looks are split into parts of 16 bits; two looks that differ in fewer bits than there are parts have an equal part.
_PART_BITS = 16
_PARTS = 8
MOST_DIFFERENT_BITS = 6
# Parts that more looks share say nothing (skies, walls), and comparing all their pairs would take hours.
_MOST_ALIKE = 200


def find_alike(looks: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions whose looks differ in at most six of 128 bits, each pair once, in order."""
    found: set[tuple[int, int]] = set()
    for part in range(_PARTS):
        groups: dict[int, list[int]] = {}
        for position, look in enumerate(looks):
            if look is not None:
                groups.setdefault(look >> (part * _PART_BITS) & 0xFFFF, []).append(position)
        for group in groups.values():
            if len(group) > _MOST_ALIKE:
                continue
            for at, one in enumerate(group):
                for other in group[at + 1 :]:
                    if ((looks[one] or 0) ^ (looks[other] or 0)).bit_count() <= MOST_DIFFERENT_BITS:
                        found.add((one, other))
    yield from sorted(found)
