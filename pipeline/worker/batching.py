"""Full batches of one padded shape, and a batch size that follows the accelerator's memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
Shape = tuple[int, int]

# An image's detections must not depend on the other images of its batch, so only equal padded shapes share one.
# Photos have few shapes (4:3 and 3:2, both ways), and a look-ahead of 16 batches fills most of their batches.
LOOKAHEAD_BATCHES = 16
LOOKAHEAD_BYTES = 512 * 2**20


@dataclass
class _Group(Generic[T]):
    images: list[T] = field(default_factory=list)
    weights_bytes: list[int] = field(default_factory=list)


class Batcher(Generic[T]):
    """Groups images by padded shape, holding back a bounded number of images and bytes.

    The order of the batches depends on the order of the images alone: within a batch and within a shape images keep
    their order. When a bound is reached the fullest group leaves, among equals the one that has waited longest.

    Attributes:
        batch_size: the most images in a batch, at least 1; may be changed between calls.
    """

    def __init__(self, batch_size: int, *, max_images: int | None = None, max_bytes: int = LOOKAHEAD_BYTES) -> None:
        """`max_images` bounds the images held back; by default 16 batches of them."""
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one image, not {batch_size}")
        self.batch_size = batch_size
        self._max_images = max_images
        self._max_bytes = max_bytes
        # A dict keeps insertion order, and a group leaves the dict when it is empty: the first has waited longest.
        self._groups: dict[Shape, _Group[T]] = {}

    @property
    def images_held(self) -> int:
        """Images that wait for their batch."""
        return sum(len(group.images) for group in self._groups.values())

    @property
    def bytes_held(self) -> int:
        """Bytes of the images that wait for their batch."""
        return sum(sum(group.weights_bytes) for group in self._groups.values())

    def add(self, shape: Shape, image: T, weight_bytes: int = 0) -> Iterator[list[T]]:
        """Take one image of padded `shape` (height, width) and yield the batches now ready."""
        group = self._groups.setdefault(shape, _Group())
        group.images.append(image)
        group.weights_bytes.append(weight_bytes)
        while len(group.images) >= self.batch_size:
            yield self._take(shape)
        while self._is_over_bounds():
            yield self._take(max(self._groups, key=lambda key: len(self._groups[key].images)))

    def flush(self, is_wanted: Callable[[T], bool] | None = None) -> Iterator[list[T]]:
        """Yield what is left, shape by shape, the one that has waited longest first.

        Args:
            is_wanted: only shapes of which such an image waits, with all their images; None for every shape.
        """
        for shape in list(self._groups):
            while shape in self._groups and (is_wanted is None or any(map(is_wanted, self._groups[shape].images))):
                yield self._take(shape)

    def discard(self, is_unwanted: Callable[[T], bool]) -> None:
        """Drop the images for which `is_unwanted` is true."""
        for shape, group in list(self._groups.items()):
            kept = [number for number, image in enumerate(group.images) if not is_unwanted(image)]
            group.images[:] = [group.images[number] for number in kept]
            group.weights_bytes[:] = [group.weights_bytes[number] for number in kept]
            if not kept:
                del self._groups[shape]

    def _is_over_bounds(self) -> bool:
        max_images = self._max_images if self._max_images is not None else LOOKAHEAD_BATCHES * self.batch_size
        return self.images_held > max_images or (self.images_held > 0 and self.bytes_held > self._max_bytes)

    def _take(self, shape: Shape) -> list[T]:
        group = self._groups[shape]
        batch = group.images[: self.batch_size]
        del group.images[: self.batch_size]
        del group.weights_bytes[: self.batch_size]
        if not group.images:
            del self._groups[shape]
        return batch


class BatchSize:
    """The batch size in use: halved when memory runs out, doubled again after batches that fitted.

    Attributes:
        ceiling: the size to return to; at least 1.
        current: the size to use now, 1 to `ceiling`.
    """

    # Memory runs out because of several rare large shapes or of another process on the same card; both pass.
    QUIET_BATCHES = 32

    def __init__(self, ceiling: int) -> None:
        if ceiling < 1:
            raise ValueError(f"a batch holds at least one image, not {ceiling}")
        self.ceiling = ceiling
        self.current = ceiling
        self._quiet_batches = 0

    def succeeded(self, images: int) -> None:
        """Record that a batch of `images` fitted; only full batches count towards growing."""
        if images < self.current or self.current == self.ceiling:
            return
        self._quiet_batches += 1
        if self._quiet_batches >= self.QUIET_BATCHES:
            self.current = min(self.ceiling, self.current * 2)
            self._quiet_batches = 0

    def ran_out(self, images: int) -> None:
        """Record that a batch of `images` did not fit: from now on at most half of it."""
        self.current = max(1, min(self.current, images // 2))
        self._quiet_batches = 0
