"""Removes metadata from PNG files, so that damaged or huge metadata does not make an image unreadable.

Chunks, their order and their checksums: PNG specification (third edition), sections 5 and 11.
"""

import struct
import zlib
from collections.abc import Iterator

from pipeline.errors import ImageError

_SIGNATURE_BYTES = 8
_FRAME_BYTES = 12
"""The bytes of a chunk's length, name and checksum, without its contents."""
_PALETTE_TYPE = 3
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


def without_metadata(payload: bytes, *, keeps_transparency: bool = False) -> bytes:
    """Return the PNG without its metadata, except for the orientation (`eXIf`, if its checksum is right).

    Transparency and animation are removed too, as neither is used. Where the file ends early or a chunk is invalid, the
    rest is kept as it is, and the decoder reports the problem.

    Args:
        keeps_transparency: whether the colours that are transparent (`tRNS`) are kept.

    Raises:
        ImageError: `unreadable`: Apple's private variant, a critical chunk that is not in the standard, or pixel data
            that do not match their checksum.
    """
    kept = [payload[:_SIGNATURE_BYTES]]
    position, color_type, is_changed = _SIGNATURE_BYTES, None, False
    for name, start, end in _chunks(payload):
        _refuse_foreign(name)
        if name == b"IHDR" and end - start - _FRAME_BYTES >= 10:
            color_type = payload[start + 8 + 9]
        if _is_needed(payload, name, start, end, color_type) or (keeps_transparency and name == b"tRNS"):
            kept.append(payload[start:end])
        else:
            is_changed = True
        position = end
    return b"".join([*kept, payload[position:]]) if is_changed else payload


def _chunks(payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, beginning and end, up to IEND or to the first chunk that is invalid."""
    position = _SIGNATURE_BYTES
    while position + _FRAME_BYTES <= len(payload):
        length, name = struct.unpack_from(">I4s", payload, position)
        end = position + _FRAME_BYTES + length
        if end > len(payload) or not name.isalpha():
            return
        yield name, position, end
        if name == b"IEND":
            return
        position = end


def _is_needed(payload: bytes, name: bytes, start: int, end: int, color_type: int | None) -> bool:
    if name not in (b"IDAT", b"eXIf"):
        return name in _CRITICAL and (name != b"PLTE" or color_type == _PALETTE_TYPE)
    checksum = zlib.crc32(memoryview(payload)[start + 4 : end - 4])
    is_valid: bool = checksum == struct.unpack_from(">I", payload, end - 4)[0]
    if name == b"IDAT" and not is_valid:
        raise ImageError("unreadable", "damaged PNG: the pixel data do not match their checksum (IDAT)")
    return is_valid


def _refuse_foreign(name: bytes) -> None:
    if name == b"CgBI":
        raise ImageError(
            "unreadable",
            "Apple's private PNG (CgBI) is not supported; convert it with `pngcrush -revert-iphone-optimizations`",
        )
    # An upper-case first letter means that a decoder must not skip the chunk (section 5.4).
    if name not in _CRITICAL and name[:1].isupper():
        raise ImageError("unreadable", f"PNG with the critical chunk {name.decode()}, which is not in the standard")
