"""SizeSample: a random sample of a listing, the same each time, with the listing's mix of sizes."""

import heapq
import itertools
from collections.abc import Iterable, Iterator

from pipeline.inputs.image_ref import ImageRef, image_id

# Enough for the sizes of any input; a sample is taken from these.
POOL_IMAGES = 4096


class SizeSample:
    """Keeps a uniform sample of the images that pass by, by a hash of their names, whatever their order and number."""

    def __init__(self, pool_images: int = POOL_IMAGES) -> None:
        self._pool_images = pool_images
        # A heap with the largest hash first; the position breaks ties, as images do not compare.
        self._kept: list[tuple[int, int, ImageRef]] = []

    def follow(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass the images on."""
        for position, ref in enumerate(refs):
            key = -_hash(ref)
            if len(self._kept) < self._pool_images:
                heapq.heappush(self._kept, (key, position, ref))
            elif key > self._kept[0][0]:
                heapq.heapreplace(self._kept, (key, position, ref))
            yield ref

    def pick(self, images: int) -> list[ImageRef]:
        """Return at most `images` of them, each from a part of its own of the images sorted by size, smallest first.

        Images of unknown size come last, as if they were the largest.
        """
        pool = sorted(
            (ref for _, _, ref in self._kept),
            key=lambda ref: (ref.bytes is None, ref.bytes or 0, _hash(ref)),
        )
        count = min(images, len(pool))
        bounds = [len(pool) * number // count for number in range(count + 1)] if count else []
        parts = [pool[begin:end] for begin, end in itertools.pairwise(bounds)]
        return [min(part, key=_hash) for part in parts]


def _hash(ref: ImageRef) -> int:
    return image_id(ref.uri)
