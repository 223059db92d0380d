"""Decodes a listing's bytes, compressed or not and in any encoding, into lines of bounded length."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, cast

from charset_normalizer import from_bytes

from pipeline.errors import InputError
from pipeline.inputs.compression import COMPRESSIONS, match_format

SAMPLE_BYTES = 2**18
"""How much of the beginning is read to detect the encoding and the format."""

LONGEST_LINE = 2**24
"""In characters. A caption has a few hundred; a file without line ends must not fill the memory."""

GUESS = " (a guess)"

_MARKS = (
    # Longer marks first: UTF-32's little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_OPENERS: dict[str, Callable[[IO[bytes]], object]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}

DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""Raised by a compressed listing that is truncated or damaged; bzip2 raises a bare OSError."""


@dataclass(frozen=True)
class Encoding:
    """How a listing's bytes are decoded.

    codec: Python's name of the encoding. shown: its common name. errors: the error handler for invalid bytes.
    """

    codec: str
    shown: str
    errors: str = "surrogateescape"


class _Rewound(io.RawIOBase):
    """A file from its beginning, after its first bytes were read; not all servers support seeking back."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = io.BytesIO(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        found = self._head.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def unpacked(raw: IO[bytes], uri: str) -> tuple[IO[bytes], bytes, str]:
    """Open a file that may be compressed.

    Returns:
        the uncompressed file from its beginning, its first bytes (at most SAMPLE_BYTES), and the compression format
        ("" if it is not compressed).

    Raises:
        InputError: it is compressed with Zstandard, or damaged at its beginning.
    """
    magic = raw.read(6)
    compression = match_format(COMPRESSIONS, magic) or ""
    if compression and compression not in _OPENERS:
        raise InputError(f"{uri} is compressed with {compression}, which listings cannot be; unpack it, or use gzip.")
    packed = cast(IO[bytes], io.BufferedReader(_Rewound(magic, raw)))
    plain = cast(IO[bytes], _OPENERS[compression](packed)) if compression else packed
    head = _first_bytes(plain, compression, uri)
    return cast(IO[bytes], io.BufferedReader(_Rewound(head, plain))), head, compression


def _first_bytes(plain: IO[bytes], compression: str, uri: str) -> bytes:
    head = b""
    try:
        # Piece by piece, to keep what comes before damage.
        while len(head) < SAMPLE_BYTES and (piece := plain.read(2**12)):
            head += piece
    except (*DAMAGE, OSError) as error:
        if not compression or (isinstance(error, OSError) and error.errno is not None):
            raise
        if not head:
            raise InputError(f"{uri} cannot be decompressed ({compression}): {error}.") from error
    return head


def detect_encoding(head: bytes) -> Encoding | None:
    """Detect a Unicode encoding by a file's first bytes; None if they are of one of the many 8-bit encodings."""
    for mark, codec, shown in _MARKS:
        if head.startswith(mark):
            return Encoding(codec, shown, "surrogateescape" if codec == "utf-8-sig" else "replace")
    if b"\0" in head:
        for codec in _UNMARKED:
            if _is_text(head, codec):
                return Encoding(codec, codec[:6].upper(), "replace")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=False)
    except UnicodeDecodeError:
        return None
    return Encoding("utf-8", "UTF-8")


def guess_encoding(head: bytes) -> Encoding:
    """Guess the 8-bit (or East Asian) encoding of a text; its name says that it is a guess."""
    best = from_bytes(head).best()
    codec = best.encoding if best is not None else "cp1252"
    # "latin_1" and "cp1252" differ in control characters only, and files are nearly always in the second.
    return Encoding("cp1252" if codec == "latin_1" else codec, f"{codec.replace('_', '-')}{GUESS}", "replace")


def _is_text(head: bytes, codec: str) -> bool:
    width = int(codec[4:6]) // 8
    try:
        text = head[: len(head) // width * width][: 2**12].decode(codec)
    except UnicodeDecodeError:
        return False
    plain = sum(char.isascii() and (char.isprintable() or char in "\r\n\t") for char in text)
    return bool(text) and "\0" not in text and plain * 2 > len(text)


def lines_of(text: IO[str]) -> Iterator[tuple[int, str | None]]:
    """Yield each line with its number, from 1; None for a line longer than LONGEST_LINE."""
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) < LONGEST_LINE or line.endswith(("\n", "\r")):
            yield number, line
            continue
        while (rest := text.readline(LONGEST_LINE)) and not rest.endswith(("\n", "\r")):
            pass
        yield number, None


def looks_like_text(head: bytes) -> bool:
    """Return whether a file begins like text; images do not, nor do damaged ones with a null byte."""
    encoding = detect_encoding(head)
    if not head.strip() or encoding is None or (b"\0" in head and encoding.shown == "UTF-8"):
        return False
    text = head.decode(encoding.codec, "replace")
    odd = sum(not char.isprintable() and char not in "\r\n\t\ufeff" for char in text)
    return odd * 100 < len(text)
