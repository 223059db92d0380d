"""What a model must keep to, to be run by the pipeline: `InstanceModel`, and how it wants its pixels, `PixelFormat`.

docs/models/any_model.md has a complete example. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from htc_model.structures import FrameDetections, ImageBatch, RawDetections

Interpolation = Literal["opencv", "bilinear", "pillow_bilinear", "pillow_bicubic"]
Rgb = tuple[float, float, float]
_Dtype = Literal["float32", "uint8"]


@dataclass(frozen=True)
class PixelFormat:
    """How a model wants its pixels. By default: the image as it is, RGB, float32 from 0 to 1.

    A model with another rule for sizes subclasses this, and overrides `resized_size`.

    long_side, short_side: in pixels; the image is resized, its aspect ratio kept, to the largest size whose sides are
        within both bounds. None for no bound; without either bound there is no resize.
    exact_size: (height, width) to which every image is resized, whatever its aspect ratio; excludes the two bounds.
    pad_multiple: the resized image is padded right and bottom, with zeros after normalising, to multiples of this.
    mean_rgb, std_rgb: per channel, in grey levels (0 to 255): a value becomes (value - mean) / std.
    has_bgr: whether the channels are blue, green, red; mean_rgb and std_rgb stay in the order of their names.
    dtype: "float32", or "uint8" for grey levels that are not normalised; mean_rgb and std_rgb then have no effect.
    interpolation: of the resize. "opencv": bilinear in 8-bit fixed point, as OpenCV's INTER_LINEAR. "bilinear": of the
        normalised floats without antialiasing, with torchvision's arithmetic, for its detection models.
        "pillow_bilinear" and "pillow_bicubic": antialiased, on grey levels, as Pillow and the image processors of
        transformers do.
    """

    long_side: int | None = None
    short_side: int | None = None
    exact_size: tuple[int, int] | None = None
    pad_multiple: int = 1
    mean_rgb: Rgb = (0.0, 0.0, 0.0)
    std_rgb: Rgb = (255.0, 255.0, 255.0)
    has_bgr: bool = False
    dtype: _Dtype = "float32"
    interpolation: Interpolation = "pillow_bilinear"

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) of a decoded image of `height` x `width` pixels after the resize."""
        if self.exact_size is not None:
            return self.exact_size
        scales = []
        if self.long_side is not None:
            scales.append(self.long_side / max(height, width))
        if self.short_side is not None:
            scales.append(self.short_side / min(height, width))
        if not scales:
            return height, width
        scale = min(scales)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) inside a batch; images of equal padded size may share one."""
        new_height, new_width = self.resized_size(height, width)
        multiple = self.pad_multiple
        return -(-new_height // multiple) * multiple, -(-new_width // multiple) * multiple

    def problem(self) -> str:
        """Return what is wrong with the values, as a phrase; "" when nothing is."""
        return self._problem_of_sizes() or self._problem_of_values()

    def _problem_of_sizes(self) -> str:
        bounds = [side for side in (self.long_side, self.short_side) if side is not None]
        sides = [*bounds, *(self.exact_size or ())]
        if any(type(side) is not int or side < 1 for side in sides):
            return f"sides must be whole numbers of pixels, at least 1, not {sides}"
        if self.exact_size is not None and (len(self.exact_size) != 2 or bounds):
            return "exact_size is (height, width), and excludes long_side and short_side"
        if type(self.pad_multiple) is not int or self.pad_multiple < 1:
            return f"pad_multiple must be a whole number, at least 1, not {self.pad_multiple!r}"
        return ""

    def _problem_of_values(self) -> str:
        if len(self.mean_rgb) != 3 or len(self.std_rgb) != 3 or 0 in self.std_rgb:
            return "mean_rgb and std_rgb are three numbers each, and no std is 0"
        for name, value, known in (
            ("dtype", self.dtype, get_args(_Dtype)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
        ):
            if value not in known:
                return f"{name} must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}"
        if self.dtype == "uint8" and self.interpolation == "bilinear":
            return 'the interpolation "bilinear" is of floats, and dtype is "uint8"'
        return ""


class InstanceModel(Protocol):
    """A model of one's own; any object, a torch module or not.

    What it may have besides, and need not:

    category_ids: Sequence[int], one for each class: the data set's own ids, for the tables' column `category_id`; by
        default 1, 2, 3, ...
    to(device), eval(): called once after it is made, as torch modules have them.
    """

    @property
    def name(self) -> str:
        """Its name in messages about it; in the tables, models are named as the spec names them."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of its classes, without background, in the order of its labels."""

    @property
    def pixels(self) -> PixelFormat:
        """How it wants its pixels."""

    def infer(self, batch: "ImageBatch") -> "Sequence[RawDetections | FrameDetections]":
        """Find the instances of every image of a batch, on the batch's device, in the order of its images.

        An image's detections must not depend on the other images of its batch. Called in `torch.inference_mode()`;
        `torch.OutOfMemoryError` may be raised, and a smaller batch follows.

        Args:
            batch: pixels [B, 3, H, W] as `pixels` says; the sizes of its images resized (without padding) and decoded.

        Returns:
            one result for each image: `RawDetections` with square masks of any side over each box (or without masks),
            or `FrameDetections` with masks over the whole image; in either case at most 10,000 instances.
        """
