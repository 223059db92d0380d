"""BandRule: which bands of an image become red, green and blue, and which values become 0 to 255."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError


@dataclass(frozen=True)
class BandRule:
    """How the bands of an image become its colours.

    bands: those for red, green and blue, counted from 1; None for the first three, or the one of a gray image. They are
        the samples of a TIFF that stores gray, RGB or several bands, and the decoded colours of every other image.
    value_range: the values of TIFF samples that become 0 and 255, those between them in proportion and rounded; for
        samples of more than 8 bits, signed or floating-point ones. None: the upper 8 bits of unsigned samples.
    """

    bands: tuple[int, int, int] | None = None
    value_range: tuple[float, float] | None = None


AS_STORED = BandRule()
_SCALED_AT_ONCE = 2**20


def rule_of(input_section: Mapping[str, Any]) -> BandRule:
    """Return the rule of a spec's section `input`, as plain values; of earlier releases, too, which lack the keys."""
    bands, value_range = input_section.get("bands"), input_section.get("value_range")
    return BandRule(None if bands is None else tuple(bands), None if value_range is None else tuple(value_range))


def check_bands(bands: tuple[int, ...], count: int) -> None:
    """Check that an image has the bands.

    Raises:
        ImageError: `unreadable`: it has not.
    """
    if max(bands) > count:
        has = "1 band" if count == 1 else f"{count} bands"
        raise ImageError("unreadable", f"it has {has}; input.bands asks for band {max(bands)}")


def permute(pixels: NDArray[np.uint8], rule: BandRule) -> NDArray[np.uint8]:
    """Return decoded [H, W, 3] colours in the order of the bands.

    Raises:
        ImageError: `unreadable`: a band beyond the third is asked for.
    """
    if rule.bands is None:
        return pixels
    check_bands(rule.bands, 3)
    return np.ascontiguousarray(pixels[..., [band - 1 for band in rule.bands]])


def scale_values(samples: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return samples as levels from 0 to 255 by a range of values; NaN becomes 0."""
    low, high = value_range
    levels = np.empty(samples.shape, np.uint8)
    # In pieces, as doubles of a whole image would be many times its size.
    rows = max(1, _SCALED_AT_ONCE // max(1, samples[:1].size))
    for top in range(0, len(samples), rows):
        values = (samples[top : top + rows].astype(np.float64) - low) * (255 / (high - low))
        np.nan_to_num(values, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        levels[top : top + rows] = np.rint(values.clip(0, 255))
    return levels
