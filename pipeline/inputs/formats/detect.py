"""Detects image formats: by a file's first bytes when it is read, by its name when a folder is listed."""

import re
import struct

from pipeline.errors import ImageError

SUPPORTED_NAMES = "JPEG, PNG, WebP, TIFF, HEIC, AVIF, BMP, GIF and PNM"

_NAMED_LIKE_SUPPORTED = (
    # JPEG, also as browsers and cameras name it; .mpo holds several JPEGs, of which the first is read
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".jps"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".gtiff", ".btf", ".tf8", ".lsm", ".svs", ".ndpi", ".scn"),
    *(".heic", ".heif", ".heics", ".heifs", ".hif", ".avif", ".avifs"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_NAMED_LIKE_UNSUPPORTED = (
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jph", ".jxl", ".jxr", ".wdp", ".hdp"),
    # Camera raw
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".ori", ".rw2", ".raf", ".pef"),
    *(".srw", ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mrw", ".mos", ".mef", ".rwl", ".gpr"),
    *(".psd", ".psb", ".xcf", ".exr", ".svg", ".svgz", ".ico", ".cur", ".icns", ".tga", ".pcx", ".dds", ".qoi", ".pam"),
    *(".dcm", ".fits", ".fit"),
)
IMAGE_SUFFIXES = frozenset((*_NAMED_LIKE_SUPPORTED, *_NAMED_LIKE_UNSUPPORTED))
"""Extensions of images in a folder or a tar. Each such file gets a row; an unsupported format is the row's reason.

Not among them, because other kinds of files use these names too: .raw, .hdr, .img, .bin, .ai, .eps, .pdf.
"""

_SUPPORTED: tuple[tuple[str, bytes], ...] = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("GIF", rb"GIF8[79]a"),
    ("BMP", rb"BM"),
    ("PNM", rb"P[1-6](?=[\s#])"),
)
_RAW: tuple[tuple[str, bytes], ...] = (
    ("Fujifilm RAF", rb"FUJIFILMCCD-RAW"),
    ("Panasonic RW2", rb"IIU\0"),
    ("Olympus ORF", rb"II(?:RO|RS)|MMOR"),
    ("Sigma X3F", rb"FOVb"),
    ("Minolta MRW", rb"\0MRM"),
    ("Canon CRW", rb"II\x1a\0\0\0HEAPCCDR"),
)
_UNSUPPORTED: tuple[tuple[str, bytes], ...] = (
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG XR", rb"II\xbc"),
    ("Photoshop", rb"8BPS"),
    ("OpenEXR", rb"\x76\x2f\x31\x01"),
    ("PDF", rb"%PDF"),
    ("PostScript", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("icon (ICO)", rb"\0\0[\x01\x02]\0[\x01-\xff]\0"),
    ("icon (ICNS)", rb"icns"),
    ("DirectDraw (DDS)", rb"DDS "),
    ("QOI", rb"qoif"),
    ("GIMP (XCF)", rb"gimp xcf"),
    ("Radiance HDR", rb"#\?(?:RADIANCE|RGBE)"),
    ("FITS", rb"SIMPLE  ="),
    ("DICOM", rb".{128}DICM"),
    ("PAM", rb"P7\n"),
    ("floating-point PFM", rb"P[Ff]\n"),
    ("PCX", rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08].{61}[\x01-\x04]"),
    # An identifier's length, a colour map or none, a known type, and a known depth: Truevision TGA 2.0 has no signature
    # at its start.
    ("TGA", rb".[\0\x01][\x01-\x03\x09-\x0b].{13}[\x08\x0f\x10\x18\x20][\0-\x3f]"),
    ("gzip-compressed", rb"\x1f\x8b"),
)
_STRONG = frozenset(
    {"JPEG 2000", "JPEG XL", "JPEG XR", "Photoshop", "OpenEXR", "DirectDraw (DDS)", "QOI", "GIMP (XCF)"}
)
# ISO base media brands: MPEG-A part 12 (HEIF), AVIF 1.1.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    (
        *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
        *(b"mif1", b"mif2", b"msf1", b"avci", b"avcs"),
    )
)
_MOST_BRANDS = 64
_LONGEST_HEADER = 512
_SVG_SEARCHED = 4096


def find_format(payload: bytes) -> str:
    """Detect a file's format by its first bytes, whatever its name.

    Returns:
        "JPEG", "PNG", "WebP", "TIFF", "GIF", "BMP", "PNM", "HEIC" or "AVIF".

    Raises:
        ImageError: `unreadable`: it is empty, not an image, or of an unsupported format, which the message names.
    """
    if not payload:
        raise ImageError("unreadable", "the file is empty (0 bytes)")
    name = _match(_SUPPORTED, payload)
    if name is not None:
        return name
    if payload[4:8] == b"ftyp":
        return _media_format(payload)
    raw = _match(_RAW, payload)
    if raw is not None:
        raise ImageError("unreadable", raw_reason(raw))
    unsupported = "SVG" if _is_svg(payload) else _match(_UNSUPPORTED, payload)
    if unsupported is not None:
        raise ImageError("unreadable", unsupported_reason(unsupported))
    raise ImageError("unreadable", f"not an image: starts with {ascii(payload[:16])[1:]}")


def looks_like_image(payload: bytes) -> bool:
    """Return whether a file begins like an image, of a supported format or not.

    Formats that begin with a few common bytes (TGA, PCX, icons) do not count: a hash may begin with them.
    """
    if payload[4:8] == b"ftyp":
        try:
            return bool(_media_format(payload))
        except ImageError as error:
            return "camera raw" in error.reason
    strong = tuple(each for each in _UNSUPPORTED if each[0] in _STRONG)
    return _match(_SUPPORTED + _RAW + strong, payload) is not None


def raw_reason(kind: str) -> str:
    """Return the reason of the row of a camera raw file, with the way out."""
    return f"camera raw ({kind}) files are not supported; develop them to JPEG or TIFF first"


def unsupported_reason(name: str) -> str:
    """Return the reason of the row of an unsupported format, with the supported ones."""
    return f"{name} files are not supported ({SUPPORTED_NAMES} are)"


def _match(patterns: tuple[tuple[str, bytes], ...], payload: bytes) -> str | None:
    head = payload[:_LONGEST_HEADER]
    return next((name for name, pattern in patterns if re.match(pattern, head, re.DOTALL)), None)


def _media_format(payload: bytes) -> str:
    """Distinguish HEIC, AVIF, camera raw and video by the brands of the first box."""
    (size,) = struct.unpack(">I", payload[:4])
    major, *others = (payload[at : at + 4] for at in (8, *range(16, min(size, len(payload), 4 * _MOST_BRANDS), 4)))
    if major == b"crx ":
        raise ImageError("unreadable", raw_reason("Canon CR3"))
    # The neutral brand mif1 may be first in both; the other brands then decide.
    if major in _AVIF_BRANDS or (major not in _HEIF_BRANDS - {b"mif1", b"msf1"} and _AVIF_BRANDS.intersection(others)):
        return "AVIF"
    if major in _HEIF_BRANDS or _HEIF_BRANDS.intersection(others):
        return "HEIC"
    brand = ascii(major)[2:-1].strip()
    raise ImageError("unreadable", f"not an image: an MP4 or QuickTime file (brand {brand})")


def _is_svg(payload: bytes) -> bool:
    """Return whether there is an <svg> element after the XML declaration, comments and the document type."""
    head = payload[:_SVG_SEARCHED].removeprefix(b"\xef\xbb\xbf").lstrip()
    return re.match(rb"<(?:svg|\?xml|!--|!DOCTYPE svg)", head) is not None and b"<svg" in head
