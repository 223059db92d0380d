"""How a checkpoint's image processor makes its pixels, as a `PixelFormat`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ModelError
from pipeline.models.protocol import Interpolation, PixelFormat

# PIL.Image.Resampling
_INTERPOLATIONS: dict[int, Interpolation] = {2: "pillow_bilinear", 3: "pillow_bicubic"}
_OF_FLOATS: dict[int, Interpolation] = {2: "bilinear"}
_SIDES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class ProcessorPixels(PixelFormat):
    """The sizes of an image processor of transformers.

    bounds: `size` of preprocessor_config.json, as (name, pixels); none where images are not resized.
    divisor: the resized sides are rounded up to multiples, which changes the aspect ratio a little; 0 for not at all.
    padded_to: (height, width) of all padded images; None pads to `pad_multiple`.
    """

    bounds: tuple[tuple[str, int], ...] = ()
    divisor: int = 0
    padded_to: tuple[int, int] | None = None

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) of a decoded image after the resize."""
        if not self.bounds:
            return height, width
        new_height, new_width = (max(1, side) for side in self._within_bounds(height, width))
        if self.divisor:
            return -(-new_height // self.divisor) * self.divisor, -(-new_width // self.divisor) * self.divisor
        return new_height, new_width

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) inside a batch."""
        return self.padded_to or super().padded_size(height, width)

    def _within_bounds(self, height: int, width: int) -> tuple[int, int]:
        from transformers.image_transforms import get_size_with_aspect_ratio

        size = dict(self.bounds)
        if "height" in size:
            return size["height"], size["width"]
        if "max_height" in size:
            scale = min(size["max_height"] / height, size["max_width"] / width)
            return int(height * scale), int(width * scale)
        found = get_size_with_aspect_ratio((height, width), size["shortest_edge"], size.get("longest_edge"))
        return int(found[0]), int(found[1])


def read_pixels(processor: Any, name: str, *, floats_resized: bool, pad_multiple: int) -> ProcessorPixels:
    """Read a processor's settings.

    Args:
        processor: an image processor of transformers.
        name: of the checkpoint, for messages.
        floats_resized, pad_multiple: see `transformers_families.Family`, and `transformers_models.make`.

    Raises:
        ModelError: it does what cannot be done here.
    """
    if getattr(processor, "do_split_image", False):
        raise ModelError(f"The checkpoint {name} splits its images (do_split_image), which is for semantic maps.")
    bounds = _bounds(processor, name) if processor.do_resize else ()
    interpolation = (_OF_FLOATS if floats_resized else _INTERPOLATIONS).get(int(processor.resample))
    if interpolation is None:
        raise ModelError(
            f"The checkpoint {name} resizes its images with the filter {int(processor.resample)} of Pillow, which is "
            "not known here; bilinear is 2."
        )
    # value * factor, less the mean, by the standard deviation: the factor goes into the two, which are in grey levels.
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    does_normalize = bool(getattr(processor, "do_normalize", False))
    mean = _three(processor.image_mean) if does_normalize else (0.0, 0.0, 0.0)
    std = _three(processor.image_std) if does_normalize else (1.0, 1.0, 1.0)
    sides = dict(bounds)
    return ProcessorPixels(
        # For the estimate of a batch's memory.
        long_side=sides.get("longest_edge") or max(sides.values(), default=None),
        short_side=sides.get("shortest_edge") or min(sides.values(), default=None),
        pad_multiple=pad_multiple,
        mean_rgb=(mean[0] / factor, mean[1] / factor, mean[2] / factor),
        std_rgb=(std[0] / factor, std[1] / factor, std[2] / factor),
        interpolation=interpolation,
        bounds=bounds,
        divisor=int(getattr(processor, "size_divisor", None) or 0),
        padded_to=_padded_to(processor, sides),
    )


def _bounds(processor: Any, name: str) -> tuple[tuple[str, int], ...]:
    sides = tuple((key, int(side)) for key, side in _read_size(processor.size).items() if side)
    if {key for key, _ in sides} not in (
        {"shortest_edge", "longest_edge"},
        {"shortest_edge"},
        {"height", "width"},
        {"max_height", "max_width"},
    ):
        raise ModelError(f"The checkpoint {name} resizes its images to {dict(sides)}, which is not understood here.")
    return sides


def _read_size(size: Any) -> dict[str, int | None]:
    """Return a processor's size, which is a mapping or, in later versions, an object with the same names."""
    if isinstance(size, Mapping):
        return {str(key): side for key, side in size.items()}
    return {key: getattr(size, key, None) for key in _SIDES}


def _padded_to(processor: Any, sides: Mapping[str, int]) -> tuple[int, int] | None:
    size = getattr(processor, "pad_size", None)
    if size:
        values = _read_size(size)
        return int(values["height"] or 0), int(values["width"] or 0)
    if getattr(processor, "do_pad", False) and sides.get("shortest_edge", 0) == sides.get("longest_edge", -1):
        # A square of the sides that the image is resized to lie within.
        return sides["shortest_edge"], sides["shortest_edge"]
    return None


def _three(values: Any) -> Rgb:
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    red, green, blue = (float(value) for value in values)
    return red, green, blue
