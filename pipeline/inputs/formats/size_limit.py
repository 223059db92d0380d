"""The limit on an image's pixels, checked against the header before decoding."""

from pipeline.errors import ImageError


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Check the width and height in a header.

    Raises:
        ImageError: `too_large`: more than `max_pixels` pixels.
        ValueError: a side is less than one pixel.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} is {width * height} pixels; the limit is {max_pixels}")
