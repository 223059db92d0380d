"""From the bytes of one file to RGB pixels; a bad file is an `ImageError` with a reason, never a crash.

The published pipeline reads images with OpenCV's `IMREAD_COLOR`; the same pixels come out here, bit for
bit for JPEG (CMYK too), PNG, BMP and lossless WebP: EXIF orientation applied, alpha and transparency
dropped (not blended), ICC profiles ignored, 16 bits cut to the upper 8, the first frame of an animation.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.errors import ImageError

if TYPE_CHECKING:
    import torch

    from htc_model.config import ModelConfig
    from htc_model.structures import ImageBatch

# Where Pillow itself calls an image a decompression bomb: twice its MAX_IMAGE_PIXELS of 89,478,485.
DEFAULT_MAX_PIXELS = 178_956_970

# The file's first bytes decide, not its name. The readers are called by name, not through `Image.open`,
# so that no other plugin of the process is ever tried on foreign bytes.
_READERS: tuple[tuple[re.Pattern[bytes], str, type[ImageFile.ImageFile]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), name, reader)
    for pattern, name, reader in (
        (rb"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
        (rb"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
        (rb"RIFF....WEBP", "WebP", WebPImagePlugin.WebPImageFile),
        (rb"II[*+]\0|MM\0[*+]", "TIFF", TiffImagePlugin.TiffImageFile),
        (rb"GIF8[79]a", "GIF", GifImagePlugin.GifImageFile),
        (rb"BM", "BMP", BmpImagePlugin.BmpImageFile),
    )
)
# Formats that people do have, and that deserve their name in the reason.
_UNSUPPORTED: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"....ftyp(?:avif|avis)", "AVIF"),
        (rb"....ftyp(?:heic|heix|hevc|mif1|msf1)", "HEIC"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
        (rb"8BPS", "Photoshop"),
        (rb"%PDF", "PDF"),
        (rb"\s*(?:<\?xml[^>]*>\s*)?<svg", "SVG"),
    )
)
_SUPPORTED_NAMES = "JPEG, PNG, WebP, TIFF, BMP and GIF"
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, section 4.6.4
_BITS_PER_SAMPLE_TAG = 258  # TIFF 6.0, section 8
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers raise on damaged files, found by fuzzing. MemoryError is left out: it is about this
# machine, not about the file.
_DECODE_ERRORS = (
    OSError,  # most damage, PIL.UnidentifiedImageError among it
    SyntaxError,  # headers
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
_MAX_REASON_CHARS = 200


def decode_image(payload: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one image file.

    Safe to call from several threads. At most about 12 bytes per pixel are held at once.

    Args:
        payload: the whole file.
        max_pixels: width x height beyond which the file is refused; read from the header, before decoding.

    Returns:
        [H, W, 3] uint8 RGB, upright, contiguous and writable.

    Raises:
        ImageError: `unreadable` or `too_large`, with one line for the row.
    """
    name, reader = _find_reader(payload)
    _silence_pillow()
    try:
        with reader(io.BytesIO(payload)) as image:
            _check_size(image.size, max_pixels)
            image.load()
            upright = _transpose(_convert_to_rgb(image), image)
            return np.array(upright, dtype=np.uint8)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", _one_line(f"{name}: {error}")) from error
    except _DECODE_ERRORS as error:
        raise ImageError("unreadable", _reason(name, error)) from error


def looks_like_image(payload: bytes) -> bool:
    """Return whether a file begins as an image does, also one of a format that cannot be decoded here."""
    patterns = [each[0] for each in _READERS] + [each[0] for each in _UNSUPPORTED]
    return any(pattern.match(payload[:512]) for pattern in patterns)


@dataclass(frozen=True)
class ImageHeader:
    """What decoding an image will take, in bytes.

    pixel_bytes: of the array that comes out. decoding_bytes: held beside it while the image is decoded, at most.
    """

    pixel_bytes: int
    decoding_bytes: int


# Bytes per pixel held beside the array that comes out: Pillow's own image (4, whatever the mode), its copies by
# `convert` and `transpose` (4 each), and the bytes from which the array is made (3). Measured as the rise of the
# resident memory on images of 24 megapixels: JPEG 11, progressive and turned 12, PNG and TIFF 11, GIF 8, CMYK 17,
# WebP 20.
_DECODING_BYTES_PER_PIXEL = 12
_CMYK_BYTES_PER_PIXEL = 18
_WEBP_BYTES_PER_PIXEL = 20


def read_header(payload: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Read from the header of an image what `decode_image` will need; no pixel is decoded.

    Returns:
        Zeros for a file that `decode_image` refuses by its header.
    """
    try:
        _, reader = _find_reader(payload)
        _silence_pillow()
        with reader(io.BytesIO(payload)) as image:
            _check_size(image.size, max_pixels)
            pixels = image.size[0] * image.size[1]
            beside = _CMYK_BYTES_PER_PIXEL if image.mode == "CMYK" else _DECODING_BYTES_PER_PIXEL
            beside = _WEBP_BYTES_PER_PIXEL if image.format == "WEBP" else beside
            return ImageHeader(3 * pixels, beside * pixels)
    except (ImageError, Image.DecompressionBombError, *_DECODE_ERRORS):
        # The same file is refused again where it is decoded, with its reason.
        return ImageHeader(0, 0)


def batch_from_bytes(
    payloads: Sequence[bytes],
    config: "ModelConfig",
    device: "torch.device | str" = "cpu",
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> "ImageBatch":
    """Decode, resize, normalise and stack: everything between the bytes of files and the network.

    Raises:
        ImageError: a file is bad.
        ValueError: no files, or their padded shapes differ (see `htc_model.preprocess.padded_size`).
    """
    # Here, so that `htc show` decodes photos where torch is not installed.
    from htc_model.preprocess import build_batch

    return build_batch([decode_image(payload, max_pixels=max_pixels) for payload in payloads], config, device)


def _find_reader(payload: bytes) -> tuple[str, type[ImageFile.ImageFile]]:
    if not payload:
        raise ImageError("unreadable", "the file is empty (0 bytes)")
    for pattern, name, reader in _READERS:
        if pattern.match(payload):
            return name, reader
    for pattern, name in _UNSUPPORTED:
        if pattern.match(payload[:512]):
            raise ImageError("unreadable", f"{name} files are not supported ({_SUPPORTED_NAMES} are)")
    raise ImageError("unreadable", f"not an image: starts with {ascii(payload[:16])[1:]}")


def _silence_pillow() -> None:
    """Keep Pillow's remarks on odd metadata out of the log: what matters becomes a row's reason.

    `warnings.catch_warnings` swaps state of the whole process and is unsafe between threads; a filter that
    stays is safe. It is looked for each time because others (pytest) may have reset the list.
    """
    silence = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if silence not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} is {width * height} pixels; the limit is {max_pixels}")


def _convert_to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Bring any mode to 8-bit RGB the way OpenCV does, transparency dropped."""
    image.info.pop("transparency", None)  # else Pillow would carry it along, or warn
    if image.mode == "CMYK" and isinstance(image, JpegImagePlugin.JpegImageFile):
        return _convert_cmyk_jpeg(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        upper_bits = np.asarray(image) >> (_gray_bits(image) - 8)
        return Image.fromarray(upper_bits.astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit samples have no defined brightness; store 8 or 16 bits per sample")
    return image.convert("RGB")


def _gray_bits(image: ImageFile.ImageFile) -> int:
    """Read how many bits a deep gray sample uses: 16, or what a TIFF says (12 is common in microscopy)."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(8, int(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (16,))[0]))
    return 16


def _convert_cmyk_jpeg(image: Image.Image) -> Image.Image:
    """Mix ink to light in OpenCV's integer arithmetic (imgcodecs, CMYK2BGR): k - ((255 - c) * k >> 8).

    The formula is about the file's samples, which are inverted by Adobe's convention; Pillow has turned
    them back to ink. Channel by channel, to hold one wide copy at a time.
    """
    cyan, magenta, yellow, black = (np.asarray(channel) for channel in image.split())
    light = np.uint16(255) - black
    mixed = [(light - (ink * light >> 8)).astype(np.uint8) for ink in (cyan, magenta, yellow)]
    return Image.fromarray(np.stack(mixed, axis=-1))


def _transpose(rgb: Image.Image, source: ImageFile.ImageFile) -> Image.Image:
    """Turn the picture upright after its EXIF orientation; Pillow has done so for TIFF by itself."""
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        return rgb
    how = _UPRIGHT.get(_read_orientation(source.info.get("exif", b"")))
    return rgb if how is None else rgb.transpose(how)


def _read_orientation(exif_block: object) -> int:
    """Read the orientation 1 to 8 from an EXIF block, 1 when there is none or the block is damaged.

    The pixels are sound whatever the metadata says. XMP's orientation is not looked at: OpenCV does not.
    """
    if not isinstance(exif_block, bytes) or not exif_block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(exif_block)
        orientation = exif.get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return f"truncated {name}: the file ends before the picture does"
    text = str(error)
    if isinstance(error, SyntaxError) and "not identified" in text:  # Pillow's word for any odd header
        text = "the header is cut off or makes no sense"
    return _one_line(f"damaged {name}: {text or type(error).__name__}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_REASON_CHARS]
