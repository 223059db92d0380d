"""Decodes an image file to RGB pixels; a bad file raises an `ImageError` with a reason, never crashes.

The published pipeline reads images with OpenCV's `IMREAD_COLOR`. This module returns the same pixels, bit for bit for
JPEG (also CMYK), PNG, BMP and lossless WebP: EXIF orientation applied, alpha and transparency dropped (not blended),
ICC profiles ignored, 16 bits cut to the upper 8, the first frame of an animation. docs/formats.md has the details of
each format.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from pipeline.errors import ImageError
from pipeline.inputs.formats import jpeg as jpeg_files
from pipeline.inputs.formats import png as png_files
from pipeline.inputs.formats.bands import AS_STORED, BandRule, permute
from pipeline.inputs.formats.detect import find_format
from pipeline.inputs.formats.heif import decode_heif, open_heif
from pipeline.inputs.formats.jpeg_decoders import JpegDecoder, make_upright
from pipeline.inputs.formats.size_limit import check_size
from pipeline.inputs.formats.tiff import decode_tiff_page, open_tiff
from pipeline.inputs.formats.tiff_layout import has_levels
from pipeline.inputs.formats.webp import canvas_size
from pipeline.text import message_of

# Above this, Pillow itself raises DecompressionBombError: twice its MAX_IMAGE_PIXELS of 89,478,485.
DEFAULT_MAX_PIXELS = 178_956_970

# The readers are called by name, not through `Image.open`, which would try every registered plugin on untrusted bytes.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
}
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, section 4.6.4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations from 5 on swap width and height.
_FIRST_ON_ITS_SIDE = 5
# Exceptions of Pillow's readers on damaged files, found by fuzzing. MemoryError is not among them: its cause is this
# machine, not the file.
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


def decode_image(
    payload: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    jpeg: JpegDecoder | None = None,
    rule: BandRule = AS_STORED,
) -> NDArray[np.uint8]:
    """Decode one image file.

    Safe to call from several threads. At most about 12 bytes per pixel are held at once.

    Args:
        payload: the whole file.
        max_pixels: the limit on width x height, checked against the header before decoding.
        jpeg: decodes the ordinary JPEG files that it can; Pillow all others.
        rule: which bands become red, green and blue.

    Returns:
        [H, W, 3] uint8 RGB, upright, contiguous and writable.

    Raises:
        ImageError: `unreadable` or `too_large`, with the reason for the row on one line.
    """
    name = find_format(payload)
    _silence_pillow()
    try:
        if name == "TIFF":
            found = open_tiff(payload, max_pixels, rule)
            if found.is_for_pillow:
                return permute(_decode(payload, name, max_pixels, page=found.index or 0), rule)
            pixels = decode_tiff_page(found, rule)
            return pixels if has_levels(found.page) else permute(pixels, rule)
        return permute(_decode_other(payload, name, max_pixels, jpeg), rule)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", message_of(f"{name}: {error}", max_chars=_MAX_REASON_CHARS)) from error
    except _DECODE_ERRORS as error:
        raise ImageError("unreadable", _reason(name, error)) from error


def _decode_other(payload: bytes, name: str, max_pixels: int, jpeg: JpegDecoder | None) -> NDArray[np.uint8]:
    """Decode a file that is no TIFF."""
    if name == "HEIC":
        heif = open_heif(payload)
        check_size(heif.size, max_pixels)
        return decode_heif(heif)
    _check_canvas(payload, name, max_pixels)
    prepared = _prepare(payload, name)
    if name == "JPEG" and jpeg is not None and (pixels := _decode_plain_jpeg(prepared, jpeg, max_pixels)) is not None:
        return pixels
    return _decode(prepared, name, max_pixels)


@dataclass(frozen=True)
class ImageHeader:
    """The memory that decoding an image takes, in bytes.

    pixel_bytes: of the resulting array. decoding_bytes: the most that is held beside it during decoding.
    size: (width, height) in pixels as stored, which the orientation may turn.
    """

    pixel_bytes: int
    decoding_bytes: int
    size: tuple[int, int] = (0, 0)


# Bytes per pixel held beside the resulting array: Pillow's own image (4, whatever the mode), its copies by `convert`
# and `transpose` (4 each), and the bytes from which the array is made (3). Measured as the increase of resident memory
# on images of 24 megapixels: JPEG 11, progressive and rotated 12, PNG and TIFF 11, GIF 8, CMYK 17, WebP 20. AVIF is
# read like WebP. HEIC (the planes and their RGB copy) and TIFFs that tifffile assembles (a strip of eight bytes per
# pixel, its samples, their rotated copy) are derived from their code.
_DECODING_BYTES_PER_PIXEL = 12
_CMYK_BYTES_PER_PIXEL = 18
_MOST_BYTES_PER_PIXEL = 20


def read_header(payload: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, rule: BandRule = AS_STORED) -> ImageHeader:
    """Read from an image's header how much memory `decode_image` will take; no pixel is decoded.

    Returns:
        Zeros for a file that `decode_image` refuses by its header.
    """
    try:
        name = find_format(payload)
        _silence_pillow()
        if name == "HEIC":
            return _header(open_heif(payload).size, max_pixels, _MOST_BYTES_PER_PIXEL)
        if name == "TIFF":
            found = open_tiff(payload, max_pixels, rule)
            each = _DECODING_BYTES_PER_PIXEL if found.is_for_pillow else _MOST_BYTES_PER_PIXEL
            return _header((found.page.imagewidth, found.page.imagelength), max_pixels, each)
        _check_canvas(payload, name, max_pixels)
        prepared = _prepare(payload, name)
        if name == "JPEG" and (frame := jpeg_files.read_frame(prepared)) is not None:
            return _header(frame.size, max_pixels, _DECODING_BYTES_PER_PIXEL)
        with _READERS[name](io.BytesIO(prepared)) as image:
            each = _CMYK_BYTES_PER_PIXEL if image.mode == "CMYK" else _DECODING_BYTES_PER_PIXEL
            return _header(image.size, max_pixels, _MOST_BYTES_PER_PIXEL if name in ("WebP", "AVIF") else each)
    except (ImageError, Image.DecompressionBombError, *_DECODE_ERRORS):
        # `decode_image` will refuse the same file, with its reason.
        return ImageHeader(0, 0)


def load_whole(
    payload: bytes, *, max_pixels: int, other_max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[ImageFile.ImageFile, int]:
    """Decode a JPEG or PNG as Pillow holds it: four bytes per pixel at most, and no copies beside them.

    For images far beyond DEFAULT_MAX_PIXELS, of which `decode_image` would hold several copies.

    Args:
        other_max_pixels: the limit of all other formats, which the image is known to exceed; for the message.

    Returns:
        The image, with its transparency, and the EXIF orientation (1 to 8) that turns it upright.

    Raises:
        ImageError: `unreadable`, or `too_large`: also all other formats.
    """
    name = find_format(payload)
    if name not in ("JPEG", "PNG"):
        raise ImageError("too_large", f"a {name} of more than {other_max_pixels} pixels is not decoded")
    _silence_pillow()
    try:
        is_png = name == "PNG"
        prepared = png_files.without_metadata(payload, keeps_transparency=True) if is_png else _prepare(payload, name)
        image = _READERS[name](io.BytesIO(prepared))
        check_size(image.size, max_pixels)
        if image.mode == "CMYK":
            raise ImageError("too_large", f"a CMYK {name} of more than {other_max_pixels} pixels is not decoded")
        orientation = _read_orientation(image.info.get("exif", b""))
        image.load()
    except _DECODE_ERRORS as error:
        raise ImageError("unreadable", _reason(name, error)) from error
    return image, orientation if orientation in _UPRIGHT else 1


@dataclass(frozen=True)
class StoredSize:
    """An image's size in pixels as the file stores it, and the EXIF orientation (1 to 8) that `decode_image` applies.

    The formats that are read upright (TIFF, HEIC) have orientation 1.
    """

    width: int
    height: int
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of what `decode_image` returns."""
        return (self.height, self.width) if self.orientation >= _FIRST_ON_ITS_SIDE else (self.width, self.height)


def read_size(payload: bytes) -> StoredSize:
    """Read an image's size from its header; only a TIFF or a HEIC is decoded, as its pixels decide.

    Args:
        payload: the whole file.

    Raises:
        ImageError: `unreadable` or `too_large`, where the header already says so.
    """
    name = find_format(payload)
    _silence_pillow()
    if name in ("HEIC", "TIFF"):
        height, width = decode_image(payload).shape[:2]
        return StoredSize(width, height)
    try:
        _check_canvas(payload, name, DEFAULT_MAX_PIXELS)
        prepared = _prepare(payload, name)
        if name == "JPEG" and (frame := jpeg_files.read_frame(prepared)) is not None:
            size, exif = frame.size, frame.exif
        else:
            with _READERS[name](io.BytesIO(prepared)) as image:
                size, exif = image.size, image.info.get("exif", b"")
        check_size(size, DEFAULT_MAX_PIXELS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", message_of(f"{name}: {error}", max_chars=_MAX_REASON_CHARS)) from error
    except _DECODE_ERRORS as error:
        raise ImageError("unreadable", _reason(name, error)) from error
    orientation = _read_orientation(exif)
    return StoredSize(*size, orientation if orientation in _UPRIGHT else 1)


def _check_canvas(payload: bytes, name: str, max_pixels: int) -> None:
    """Refuse a WebP that is too large before Pillow opens it, which reserves its whole canvas."""
    if name == "WebP" and (canvas := canvas_size(payload)) is not None:
        check_size(canvas, max_pixels)


def _header(size: tuple[int, int], max_pixels: int, decoding_bytes_per_pixel: int) -> ImageHeader:
    check_size(size, max_pixels)
    pixels = size[0] * size[1]
    return ImageHeader(3 * pixels, decoding_bytes_per_pixel * pixels, size)


def _prepare(payload: bytes, name: str) -> bytes:
    """Remove metadata that the pixels do not need and that may make Pillow fail."""
    if name == "PNG":
        return png_files.without_metadata(payload)
    if name == "JPEG":
        return jpeg_files.without_metadata(payload)
    if name == "AVIF" and not features.check("avif"):
        raise ImageError(
            "unreadable", "AVIF needs a Pillow built with AVIF support, such as the wheels of 11.3 and later"
        )
    return payload


def _decode_plain_jpeg(payload: bytes, decoder: JpegDecoder, max_pixels: int) -> NDArray[np.uint8] | None:
    """Decode an ordinary JPEG file, upright; None when Pillow has to decide about it."""
    frame = jpeg_files.read_frame(payload)
    if frame is None or frame.size[0] * frame.size[1] > DEFAULT_MAX_PIXELS:
        return None
    check_size(frame.size, max_pixels)
    pixels = decoder.decode(payload, frame)
    return None if pixels is None else make_upright(pixels, _read_orientation(frame.exif))


def _decode(payload: bytes, name: str, max_pixels: int, *, page: int = 0) -> NDArray[np.uint8]:
    """Decode with Pillow."""
    with _READERS[name](io.BytesIO(payload)) as image:
        if page:
            image.seek(page)
        check_size(image.size, max_pixels)
        if isinstance(image, PpmImagePlugin.PpmImageFile) and image.mode == "RGB" and image.tile[0].codec_name == "ppm":
            return _decode_deep_ppm(payload, image)
        frame = image.tile[0].extents if isinstance(image, GifImagePlugin.GifImageFile) and image.tile else None
        image.load()
        upright = _transpose(_convert_to_rgb(image), image)
        pixels = np.array(upright, dtype=np.uint8)
        if frame is not None and isinstance(image, GifImagePlugin.GifImageFile):
            _fill_around(pixels, frame, image)
        return pixels


def _silence_pillow() -> None:
    """Ignore Pillow's warnings about odd metadata; real problems become a row's reason.

    `warnings.catch_warnings` changes state of the whole process and is not thread-safe; a permanent filter is. It is
    looked up each time, as other code (pytest) may have reset the list.
    """
    silence = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if silence not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def _convert_to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Convert any mode to 8-bit RGB as OpenCV does; transparency is dropped."""
    image.info.pop("transparency", None)  # else Pillow would convert it too, or warn
    if image.mode == "CMYK" and isinstance(image, JpegImagePlugin.JpegImageFile):
        return _convert_cmyk_jpeg(image)
    if image.mode.startswith("I"):  # 16-bit gray of PNG and PNM
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _decode_deep_ppm(payload: bytes, image: PpmImagePlugin.PpmImageFile) -> NDArray[np.uint8]:
    """Cut 16-bit colours to their upper 8 bits, as in all formats; Pillow would round them."""
    tile = image.tile[0]
    most = tile.args[1] if isinstance(tile.args, tuple) else 255
    if payload[:2] != b"P6" or most <= 255:
        image.load()
        return np.array(image, dtype=np.uint8)
    width, height = image.size
    samples = np.frombuffer(payload, ">u2", count=width * height * 3, offset=tile.offset).reshape(height, width, 3)
    if most == 65535:
        return (samples >> 8).astype(np.uint8)
    scaled: NDArray[np.uint32] = np.minimum(samples, most).astype(np.uint32) * 65535 // most
    return (scaled >> 8).astype(np.uint8)


def _fill_around(
    pixels: NDArray[np.uint8], frame: tuple[int, int, int, int], image: GifImagePlugin.GifImageFile
) -> None:
    """Fill the canvas around a GIF's first frame with its background colour, as OpenCV does, unless transparent."""
    left, top, right, bottom = frame
    height, width = pixels.shape[:2]
    background, palette = image.info.get("background"), image.global_palette
    if (left, top, right, bottom) == (0, 0, width, height) or palette is None or "transparency" in image.info:
        return
    color = palette.palette[3 * int(background or 0) :][:3]
    if len(color) == 3:
        inside = pixels[top:bottom, left:right].copy()
        pixels[:] = np.frombuffer(bytes(color), np.uint8)
        pixels[top:bottom, left:right] = inside


def _convert_cmyk_jpeg(image: Image.Image) -> Image.Image:
    """Convert CMYK with OpenCV's integer arithmetic (imgcodecs, CMYK2BGR): k - ((255 - c) * k >> 8).

    The formula is for the file's samples, which Adobe's convention inverts; Pillow has inverted them back to ink. Each
    channel is converted by itself, so that only one 16-bit copy is in memory at a time.
    """
    cyan, magenta, yellow, black = (np.asarray(channel) for channel in image.split())
    light = np.uint16(255) - black
    mixed = [(light - (ink * light >> 8)).astype(np.uint8) for ink in (cyan, magenta, yellow)]
    return Image.fromarray(np.stack(mixed, axis=-1))


def _transpose(rgb: Image.Image, source: ImageFile.ImageFile) -> Image.Image:
    """Apply the EXIF orientation; Pillow has already applied it to a TIFF."""
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        return rgb
    how = _UPRIGHT.get(_read_orientation(source.info.get("exif", b"")))
    return rgb if how is None else rgb.transpose(how)


def _read_orientation(exif_block: object) -> int:
    """Read the orientation 1 to 8 from an EXIF block; 1 if there is none or the block is damaged.

    Damaged metadata does not make the pixels unreadable. XMP's orientation is ignored, as in OpenCV.
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
    text = str(error)
    if isinstance(error, EOFError) or ("truncated" in text.lower() and "chunk" not in text):
        return f"truncated {name}: the file ends before the image does"
    if re.search("unsupported|not supported|cannot handle|not yet supported", text, re.IGNORECASE):
        return message_of(f"unsupported {name}: {text}", max_chars=_MAX_REASON_CHARS)
    if isinstance(error, SyntaxError) and "not identified" in text:  # Pillow's message for any invalid header
        text = "the header is truncated or invalid"
    return message_of(f"damaged {name}: {text or type(error).__name__}", max_chars=_MAX_REASON_CHARS)
