"""The size in a WebP file's header, read without libwebp: its decoder reserves the whole canvas twice when it opens."""

_HEADER_BYTES = 30
_VP8_START_CODE = b"\x9d\x01\x2a"
_VP8L_SIGNATURE = 0x2F
# 14 bits for each side (RFC 6386, 9.1, and RFC 9649, 3.4).
_SIDE_BITS, _SIDE_MASK = 14, 0x3FFF


def canvas_size(payload: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels by the first chunk (RFC 9649, 2); None where it is no image's."""
    if len(payload) < _HEADER_BYTES:
        return None
    kind = payload[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(payload[24:27], "little"), 1 + int.from_bytes(payload[27:30], "little")
    if kind == b"VP8 " and payload[23:26] == _VP8_START_CODE:
        width, height = (int.from_bytes(payload[at : at + 2], "little") & _SIDE_MASK for at in (26, 28))
        return width, height
    if kind == b"VP8L" and payload[20] == _VP8L_SIGNATURE:
        bits = int.from_bytes(payload[21:25], "little")
        return 1 + (bits & _SIDE_MASK), 1 + (bits >> _SIDE_BITS & _SIDE_MASK)
    return None
