"""Images that are computed, to try a model where no photo is at hand."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def made_images(size: tuple[int, int], count: int) -> Sequence[NDArray[np.uint8]]:
    """Make images [H, W, 3] with soft shading, hard discs and bars, different each, the same ones each time."""
    rng = np.random.default_rng(count)
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    images = []
    for _ in range(count):
        canvas = np.stack([(rows * a + columns * b) % 256 for a, b in rng.uniform(-1, 1, (3, 2))], axis=-1)
        for _ in range(8):
            y, x = rng.uniform(0, height), rng.uniform(0, width)
            largest = min(size) / 3
            radius = rng.uniform(min(10, largest / 2), largest)
            is_inside = (rows - y) ** 2 + ((columns - x) * rng.uniform(0.5, 2)) ** 2 < radius**2
            canvas[is_inside] = canvas[is_inside] * 0.2 + rng.uniform(0, 200, 3)
        images.append((canvas + rng.normal(0, 6, canvas.shape)).clip(0, 255).astype(np.uint8))
    return images
