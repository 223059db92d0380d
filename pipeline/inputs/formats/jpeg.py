"""JPEG files by their segments: their frame, and the file without metadata that may be damaged.

Markers and segments: ITU-T T.81, annex B; JFIF 1.02; libjpeg's reading of APP0 and APP14 (jdmarker.c).
"""

import re
from dataclasses import dataclass

from pipeline.errors import ImageError

_START_OF_SCAN = 0xDA
_APP0, _APP1, _APP14, _LAST_APP, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JFIF_BYTES, _ADOBE_BYTES = 14, 12
_DEPTH = 8
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
# Tables, and the restart interval: DHT, DQT, DRI.
_TABLES = frozenset({0xC4, 0xDB, 0xDD})
_END_OF_IMAGE = 0xD9
# Within a scan: not an escaped 0xFF, a restart marker or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_EXIF_HEAD = b"Exif\0\0"

# Is it progressive? And (horizontal, vertical) sampling factors of each component.
JpegKind = tuple[bool, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class JpegFrame:
    """What the segments of an ordinary JPEG file say.

    size: (width, height) as stored. kind: progressive or not, and the sampling. exif: its EXIF segment, b"" without.
    """

    size: tuple[int, int]
    kind: JpegKind
    exif: bytes


def read_frame(payload: bytes) -> JpegFrame | None:
    """Return the frame of an ordinary JPEG file; None of any other.

    Ordinary is: baseline or progressive, 8 bits, gray or YCbCr with components 1, 2, 3, no Adobe segment, one frame,
    nothing unexpected between the segments, and an end. A file without its end is Pillow's to judge: some of libjpeg's
    callers pretend that it is whole.
    """
    if payload[:2] != b"\xff\xd8":
        return None
    frame: tuple[tuple[int, int], JpegKind] | None = None
    exif, position = b"", 2
    while position + 4 <= len(payload) and payload[position] == 0xFF:
        marker = payload[position + 1]
        end = position + 2 + int.from_bytes(payload[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            return JpegFrame(*frame, exif) if frame is not None and _has_end(payload, position) else None
        if marker in (_BASELINE, _PROGRESSIVE) and frame is None:
            frame = _parse_frame(payload[position + 4 : end], is_progressive=marker == _PROGRESSIVE)
            if frame is None:
                return None
        elif marker == _APP1 and payload.startswith(_EXIF_HEAD, position + 4):
            exif = exif or payload[position + 4 : end]
        elif marker != _APP0 and marker not in _TABLES:
            return None
        position = end
    return None


def _has_end(payload: bytes, position: int) -> bool:
    """Return whether scans, tables and at last the end of the image follow, from the first scan at `position` on."""
    while (found := _MARKER.search(payload, position)) is not None:
        marker = found[0][1]
        if marker == _END_OF_IMAGE:
            return True
        position = found.end() + int.from_bytes(payload[found.end() : found.end() + 2], "big")
        if (marker != _START_OF_SCAN and marker not in _TABLES) or position > len(payload):
            return False
    return False


def _parse_frame(segment: bytes, *, is_progressive: bool) -> tuple[tuple[int, int], JpegKind] | None:
    """Parse SOF (T.81, B.2.2): depth, height, width, number of components; of each: number, sampling, table."""
    if len(segment) < 6 or segment[0] != _DEPTH or len(segment) != 6 + 3 * segment[5]:
        return None
    components = [segment[start : start + 3] for start in range(6, len(segment), 3)]
    if [component[0] for component in components] not in ([1], [1, 2, 3]):
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if not height or not width:
        return None
    sampling = tuple((component[1] >> 4, component[1] & 15) for component in components)
    return (width, height), (is_progressive, sampling)


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
        return head.startswith(_EXIF_HEAD)
    if marker == _APP14:
        return head.startswith(b"Adobe") and size >= _ADOBE_BYTES
    return not (_APP0 <= marker <= _LAST_APP or marker == _COMMENT)


def _check_depth(marker: int, segment: bytes) -> None:
    if marker in _FRAMES and segment and segment[0] > _DEPTH:
        raise ImageError(
            "unreadable", f"JPEG with {segment[0]} bits per sample is not supported; save it with {_DEPTH}"
        )
