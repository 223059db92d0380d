"""Pictures as files: PNG, JPEG or WebP, under names that are safe on every file system."""

import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.terminal.output_file import atomic_output
from pipeline.inputs.formats.detect import IMAGE_SUFFIXES
from pipeline.storage.uris import suffix_of

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""The formats of pictures, and the suffixes of their files."""
# Lines stay sharp, and a photo takes a tenth of its PNG.
DEFAULT_QUALITY = 90
MAX_NAME_CHARS = 100
# Most file systems hold names of 255 bytes; the rest is for numbers and the suffix.
MAX_NAME_BYTES = 200
# Written into every picture, so that a later call replaces its own pictures and no others.
_SOFTWARE_TAG = 0x0131  # EXIF 2.32, section 4.6.4
_SOFTWARE = "htc-batch"
# The largest side that WebP (RFC 9649, section 2.7) and JPEG (ITU-T T.81, B.2.2) can hold.
_MAX_SIDE = {"webp": 16_383, "jpeg": 65_500}


def encode_picture(pixels: NDArray[np.uint8], picture_format: str = "png", *, quality: int = DEFAULT_QUALITY) -> bytes:
    """Encode a picture.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        picture_format: "png", "jpeg" or "webp".
        quality: 1 to 100, of JPEG and WebP.

    Raises:
        ValueError: the format is unknown, or cannot hold so large a picture.
    """
    if picture_format not in SUFFIXES:
        raise ValueError(f"pictures are {', '.join(SUFFIXES)}, not {picture_format}")
    limit = _MAX_SIDE.get(picture_format)
    if limit is not None and max(pixels.shape[:2]) > limit:
        raise ValueError(f"{picture_format} holds at most {limit} pixels a side, this picture has more")
    sink = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = _SOFTWARE
    if picture_format == "png":
        # Level 6 takes three times as long, for 3 % less.
        image.save(sink, "PNG", compress_level=4, exif=exif)
    elif picture_format == "jpeg":
        # Full colour resolution: coloured lines would be smeared otherwise.
        image.save(sink, "JPEG", quality=quality, subsampling=0, exif=exif)
    else:
        image.save(sink, "WEBP", quality=quality, method=2, exif=exif)
    return sink.getvalue()


def write_picture(
    pixels: NDArray[np.uint8], path: Path, picture_format: str = "png", *, quality: int = DEFAULT_QUALITY
) -> None:
    """Write a picture into a file, which appears only when it is complete.

    Raises:
        SpecError: it cannot be written, as on a full disk.
        ValueError: as `encode_picture`.
    """
    payload = encode_picture(pixels, picture_format, quality=quality)
    with atomic_output(path) as sink:
        sink.write(payload)


def is_own_picture(path: Path) -> bool:
    """Return whether a file is a picture of `encode_picture`."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            return image.getexif().get(_SOFTWARE_TAG) == _SOFTWARE
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        # No picture, or a damaged one; not one of ours in any case.
        return False


def picture_names(uris: Sequence[str], suffix: str = ".png") -> list[str]:
    """Return a file name for each URI, made of its last part: safe on every file system, unique in any case.

    A name has only letters and digits (of any script), dot, hyphen and underscore, so none leads out of its folder.
    """
    taken: set[str] = set()
    names = []
    for uri in uris:
        # The member of a tar is before the first "::", its container after it.
        last = uri.removeprefix("tar://").split("::")[0].rstrip("/").rsplit("/", 1)[-1]
        ending = suffix_of(last)
        stem = last[: -len(ending)] if ending in IMAGE_SUFFIXES else last
        # One form of letters with accents, as some file systems take two forms for one name.
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip("._-")[:MAX_NAME_CHARS]
        safe = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "image"
        candidate, repeat = safe, 1
        while candidate.casefold() in taken:
            repeat += 1
            candidate = f"{safe}-{repeat}"
        taken.add(candidate.casefold())
        names.append(candidate + suffix)
    return names
