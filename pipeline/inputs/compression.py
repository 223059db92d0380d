"""Compression formats, recognised by the first bytes of a file."""

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
"""Names by first bytes: RFC 1952, 2.3.1; bzip2 and xz file formats; RFC 8878, 3.1.1."""

ARCHIVES = {
    b"\x04\x22\x4d\x18": "LZ4",
    b"PK\x03\x04": "ZIP",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
"""Other compression and archive formats."""


def match_format(formats: dict[bytes, str], head: bytes) -> str | None:
    """Return the name of the format that a file's first bytes show; None if they show none of `formats`."""
    return next((name for start, name in formats.items() if head.startswith(start)), None)
