"""Removes metadata from JPEG files, so that damaged metadata does not make an image unreadable.

Markers and segments: ITU-T T.81, annex B; JFIF 1.02; libjpeg's reading of APP0 and APP14 (jdmarker.c).
"""

from pipeline.errors import ImageError

_START_OF_SCAN = 0xDA
_APP0, _APP1, _APP14, _LAST_APP, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JFIF_BYTES, _ADOBE_BYTES = 14, 12
_DEPTH = 8


def without_metadata(payload: bytes) -> bytes:
    """Return the JPEG without its comments and application segments, except for those that the pixels depend on.

    JFIF's and Adobe's segments are kept, as they name the colour space, and EXIF for the orientation. From the first
    invalid segment on, the file is kept as it is, and the decoder reports the problem.

    Raises:
        ImageError: `unreadable`: more than 8 bits per sample.
    """
    kept = [payload[:2]]
    position, is_changed = 2, False
    while position + 4 <= len(payload) and payload[position] == 0xFF:
        marker = payload[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            kept.append(payload[position : position + (1 if marker == 0xFF else 2)])
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(payload[position + 2 : position + 4], "big")
        end = position + 2 + length
        if marker == _START_OF_SCAN or length < 2 or end > len(payload):
            break
        _check_depth(marker, payload[position + 4 : end])
        if _is_needed(marker, payload[position + 4 : position + 18], length - 2):
            kept.append(payload[position:end])
        else:
            is_changed = True
        position = end
    return b"".join([*kept, payload[position:]]) if is_changed else payload


def _is_needed(marker: int, head: bytes, size: int) -> bool:
    if marker == _APP0:
        return head.startswith(b"JFIF\0") and size >= _JFIF_BYTES
    if marker == _APP1:
        return head.startswith(b"Exif\0\0")
    if marker == _APP14:
        return head.startswith(b"Adobe") and size >= _ADOBE_BYTES
    return not (_APP0 <= marker <= _LAST_APP or marker == _COMMENT)


def _check_depth(marker: int, segment: bytes) -> None:
    if marker in _FRAMES and segment and segment[0] > _DEPTH:
        raise ImageError(
            "unreadable", f"JPEG with {segment[0]} bits per sample is not supported; save it with {_DEPTH}"
        )
