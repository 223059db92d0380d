"""Writes TIFF files in every layout, also in those that no library writes, to test decoding."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np

# TIFF 6.0, section 2: type -> struct's letter.
_LETTERS = {1: "B", 2: "s", 3: "H", 4: "I", 7: "s", 13: "I", 16: "Q"}
COMPRESSIONS: dict[str, int] = {
    "none": 1,
    "lzw": 5,
    "adobe_deflate": 8,
    "deflate": 32946,
    "packbits": 32773,
    "lzma": 34925,
    "zstd": 50000,
    "webp": 50001,
    "jpeg": 7,
    "jpeg2000": 34712,
    "lerc": 34887,
    "jpegxl": 50002,
}


@dataclass
class Layout:
    """The layout of the samples in the file; numbers as in TIFF 6.0.

    bits: of each sample. sample_format: 1 unsigned, 2 signed, 3 float. tile: (height, width), None for strips.
    tags: more tags as number -> (type, values).
    """

    photometric: int = 2
    bits: int | tuple[int, ...] = 8
    sample_format: int = 1
    planar: int = 1
    compression: str = "none"
    byte_order: str = "<"
    is_big: bool = False
    tile: tuple[int, int] | None = None
    rows_per_strip: int | None = None
    predictor: int = 1
    fill_order: int = 1
    orientation: int | None = None
    extra_samples: tuple[int, ...] = ()
    tags: dict[int, tuple[int, Sequence[int] | bytes]] = field(default_factory=dict)


def write_tiff(samples: np.ndarray, layout: Layout, **more: Any) -> bytes:
    """Write [H, W, S] samples (integers in their bits, or floats) as one page."""
    pages = [(samples, layout)]
    return write_pages(pages, **more)


def write_pages(pages: Sequence[tuple[np.ndarray, Layout]]) -> bytes:
    first = pages[0][1]
    order, is_big = first.byte_order, first.is_big
    magic = b"II" if order == "<" else b"MM"
    body = bytearray(
        magic + struct.pack(order + "HHHQ", 43, 8, 0, 0) if is_big else magic + struct.pack(order + "HI", 42, 0)
    )
    pointer = 8 if is_big else 4
    for samples, layout in pages:
        pointer = _append_page(body, pointer, np.atleast_3d(samples), layout)
    return bytes(body)


def _append_page(body: bytearray, pointer: int, samples: np.ndarray, layout: Layout) -> int:
    order, is_big = layout.byte_order, layout.is_big
    height, width, count = samples.shape
    offsets, sizes = [], []
    for segment in _segments(samples, layout):
        offsets.append(len(body))
        sizes.append(len(segment))
        body += segment + b"\0" * (len(segment) % 2)
    bits = layout.bits if isinstance(layout.bits, tuple) else (layout.bits,) * count
    tags: dict[int, tuple[int, Any]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, list(bits)),
        259: (3, [COMPRESSIONS[layout.compression]]),
        262: (3, [layout.photometric]),
        277: (3, [count]),
        284: (3, [layout.planar]),
    }
    if layout.tile:
        tags |= {322: (4, [layout.tile[1]]), 323: (4, [layout.tile[0]]), 324: (4, offsets), 325: (4, sizes)}
    else:
        tags |= {273: (4, offsets), 278: (4, [layout.rows_per_strip or height]), 279: (4, sizes)}
    if layout.sample_format != 1:
        tags[339] = (3, [layout.sample_format] * count)
    if layout.predictor != 1:
        tags[317] = (3, [layout.predictor])
    if layout.fill_order != 1:
        tags[266] = (3, [layout.fill_order])
    if layout.orientation is not None:
        tags[274] = (3, [layout.orientation])
    if layout.extra_samples:
        tags[338] = (3, list(layout.extra_samples))
    tags |= layout.tags
    _append_directory(body, pointer, tags, order, is_big=is_big)
    return len(body) - (8 if is_big else 4)


def _append_directory(
    body: bytearray, pointer: int, tags: dict[int, tuple[int, Any]], order: str, *, is_big: bool
) -> None:
    inline = 8 if is_big else 4
    entries = b""
    for number, (kind, values) in sorted(tags.items()):
        letter = _LETTERS[kind]
        payload = bytes(values) if letter == "s" else struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(payload) > inline:
            body += b"\0" * (len(body) % 2)
            place, here = len(body), payload
            body += here
            payload = struct.pack(order + ("Q" if is_big else "I"), place)
        entries += struct.pack(order + ("HHQ" if is_big else "HHI"), number, kind, len(values))
        entries += payload.ljust(inline, b"\0")
    body += b"\0" * (len(body) % 2)
    struct.pack_into(order + ("Q" if is_big else "I"), body, pointer, len(body))
    body += struct.pack(order + ("Q" if is_big else "H"), len(tags)) + entries + b"\0" * inline


def _segments(samples: np.ndarray, layout: Layout) -> list[bytes]:
    height, width, _ = samples.shape
    rows, columns = layout.tile or (layout.rows_per_strip or height, width)
    planes = [samples] if layout.planar == 1 else [samples[..., index : index + 1] for index in range(samples.shape[2])]
    segments = []
    for plane in planes:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                block = plane[top : top + rows, left : left + columns]
                if layout.tile:
                    missing = (rows - block.shape[0], columns - block.shape[1])
                    block = np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
                segments.append(_encode(np.ascontiguousarray(block), layout))
    return segments


def _encode(block: np.ndarray, layout: Layout) -> bytes:
    if layout.compression in ("jpeg", "webp", "jpeg2000", "jpegxl", "lerc"):
        return _encode_image(block, layout.compression)
    encoded = _compress(_pack(block, layout), layout, rows=block.shape[0])
    # The order of bits is that in the file's bytes, compressed or not.
    return bytes(imagecodecs.bitorder_encode(encoded)) if layout.fill_order == 2 else encoded


def _compress(raw: bytes, layout: Layout, *, rows: int) -> bytes:
    encoders = {
        "none": bytes,
        "lzw": imagecodecs.lzw_encode,
        "adobe_deflate": imagecodecs.zlib_encode,
        "deflate": imagecodecs.zlib_encode,
        "lzma": imagecodecs.lzma_encode,
        "zstd": imagecodecs.zstd_encode,
    }
    if layout.compression == "packbits":
        row = len(raw) // rows
        return b"".join(imagecodecs.packbits_encode(raw[at : at + row]) for at in range(0, len(raw), row))
    return bytes(encoders[layout.compression](raw))


def _encode_image(block: np.ndarray, compression: str) -> bytes:
    pixels = block[..., 0] if block.shape[2] == 1 else block
    if compression == "jpeg":
        return bytes(
            imagecodecs.jpeg_encode(pixels, level=95, colorspace="RGB", outcolorspace="YCbCr", subsampling="444")
            if pixels.ndim == 3
            else imagecodecs.jpeg_encode(pixels, level=95)
        )
    if compression == "webp":
        return bytes(imagecodecs.webp_encode(pixels, lossless=True))
    if compression == "jpeg2000":
        return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0))
    if compression == "jpegxl":
        return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    return bytes(imagecodecs.lerc_encode(pixels, level=0))


def _pack(block: np.ndarray, layout: Layout) -> bytes:
    order = layout.byte_order
    bits = layout.bits
    if isinstance(bits, tuple) or bits % 8:
        return _pack_bits(block, bits if isinstance(bits, tuple) else (bits,) * block.shape[2])
    letter = {1: "u", 2: "i", 3: "f"}[layout.sample_format]
    if bits in (24,):
        return _pack_bits(block, (bits,) * block.shape[2])
    values = block.astype(np.dtype(f"{letter}{bits // 8}"))
    if layout.predictor == 2:
        unsigned = values.view(f"u{bits // 8}")
        values = np.concatenate([unsigned[:, :1], np.diff(unsigned, axis=1)], axis=1)
    if layout.predictor == 3:
        return b"".join(_float_predicted(row) for row in values)
    return values.astype(values.dtype.newbyteorder(order)).tobytes()


def _float_predicted(row: np.ndarray) -> bytes:
    """Apply the floating-point predictor (TIFF Technical Note 3): bytes of equal weight together, then differences."""
    count = row.shape[-1]
    weighted = row.astype(row.dtype.newbyteorder(">")).tobytes()
    ordered = np.frombuffer(weighted, np.uint8).reshape(-1, row.dtype.itemsize).T.reshape(-1)
    differences = ordered.copy()
    differences[count:] = ordered[count:] - ordered[:-count]
    return differences.tobytes()


def _pack_bits(block: np.ndarray, bits: tuple[int, ...]) -> bytes:
    """Pack samples, the most significant bit first; every row begins at a byte."""
    rows = []
    for row in block:
        text = "".join(
            format(int(value), f"0{width}b") for pixel in row for value, width in zip(pixel, bits, strict=True)
        )
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)
