"""Opens an image for reading by windows: TIFFs from where they are stored, other formats decoded whole.

| the image | how it is read |
|---|---|
| TIFF, BigTIFF, GeoTIFF, with rasterio (extra `geo`) | by windows: range requests for the tiles that a window needs |
| a TIFF of a layout that GDAL decodes otherwise | whole, within the limits |
| a TIFF without rasterio | whole, within the limits |
| JPEG, PNG, WebP and the other formats | whole, within the limits |
"""

from dataclasses import replace

from pipeline.errors import ImageError
from pipeline.inputs.byte_ranges import ByteRanges, PayloadRanges, StoredRanges
from pipeline.inputs.decode import DEFAULT_MAX_PIXELS, decode_image
from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.formats.jpeg_decoders import JpegDecoder
from pipeline.inputs.georeference import Georeference
from pipeline.inputs.geotiff import is_tiff, read_georeference
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.raster import INSTALL, has_rasterio
from pipeline.inputs.read import fetch_image
from pipeline.inputs.tiff_windows import FILL_COLOR, NotByWindowsError, TiffWindows
from pipeline.inputs.transparency import visible_pixels
from pipeline.inputs.windowed_image import ArrayWindows, WindowedImage, check_window
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, suffix_of

__all__ = [
    "FILL_COLOR",
    "ArrayWindows",
    "BandRule",
    "Georeference",
    "WindowedImage",
    "check_window",
    "open_stored",
    "open_windows",
]

_TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".gtiff", ".btf", ".tf8", ".svs", ".lsm", ".scn", ".ndpi"})


def open_windows(
    ref: ImageRef,
    storage: Storage,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_bytes: int | None = None,
    jpeg: JpegDecoder | None = None,
    rule: BandRule = AS_STORED,
) -> tuple[WindowedImage, ReadVersion]:
    """Open an image for reading by windows; it is closed by the caller.

    A TIFF is read of one version: if it is replaced while it is open, reading a window raises IncompleteReadError.
    Its whole-image limits do not apply to it, only `max_pixels` to each of its strips or tiles.

    Args:
        max_pixels: the limit on width x height of what is decoded whole.
        max_bytes: the limit on the file's size of what is read whole.
        jpeg: decodes the ordinary JPEG files that it can; Pillow all others.
        rule: how the bands become colours.

    Returns:
        The image, and the version that is read, with where it lies on the ground.

    Raises:
        NotFoundError: the file does not exist any more.
        ImageError: `unreadable` or `too_large`.
        StorageError: storage failed.
    """
    if (opened := open_stored(ref, storage, max_pixels=max_pixels, max_bytes=max_bytes, rule=rule)) is not None:
        return opened
    is_installed = has_rasterio()
    try:
        payload, read = fetch_image(ref, storage, max_bytes=max_bytes)
    except ImageError as error:
        raise error if is_installed or not _is_named_tiff(ref) else _needs_package(error) from error
    if is_installed and (found := _open_tiff(PayloadRanges(payload), rule, max_pixels, max_bytes)) is not None:
        return found, replace(read, georeference=found.georeference)
    try:
        pixels = decode_image(payload, max_pixels=max_pixels, jpeg=jpeg, rule=rule)
    except ImageError as error:
        raise error if is_installed or not is_tiff(payload) else _needs_package(error) from error
    georeference, valid = read_georeference(payload), visible_pixels(payload)
    if valid is not None:
        pixels[~valid] = FILL_COLOR
    whole = ArrayWindows(pixels, valid=valid, georeference=georeference)
    return whole, replace(read, georeference=georeference)


def open_stored(
    ref: ImageRef, storage: Storage, *, max_pixels: int, max_bytes: int | None, rule: BandRule = AS_STORED
) -> tuple[TiffWindows, ReadVersion] | None:
    """Open a TIFF from where it is stored; None for what has to be read whole first. See `open_windows`."""
    if not has_rasterio() or (stored := _find_stored(ref, storage)) is None:
        return None
    ranges, read = stored
    if (found := _open_tiff(ranges, rule, max_pixels, max_bytes)) is None:
        return None
    return found, replace(read, georeference=found.georeference)


def _is_named_tiff(ref: ImageRef) -> bool:
    """Return whether an image's name is that of a TIFF."""
    return suffix_of(ref.uri.partition("::")[0] if ref.container else ref.uri) in _TIFF_SUFFIXES


def _open_tiff(ranges: ByteRanges, rule: BandRule, max_pixels: int, max_bytes: int | None) -> TiffWindows | None:
    """Open a TIFF by windows; None for another format, and for a TIFF that has to be decoded whole."""
    if not is_tiff(ranges.read_at(0, 4)):
        return None
    try:
        return TiffWindows(ranges, rule=rule, max_pixels=max_pixels, max_bytes=max_bytes)
    except NotByWindowsError:
        return None


def _find_stored(ref: ImageRef, storage: Storage) -> tuple[StoredRanges, ReadVersion] | None:
    """Find where the bytes of an image are stored as they are; None where that is not known, or it is no TIFF.

    Of a remote file the name decides, as asking for its first bytes would cost every JPEG a request. A member of a tar
    that has changed since it was listed is left to `fetch_image`, which finds it anew.
    """
    is_looked_for = _is_named_tiff(ref) or is_local(ref.container or ref.uri)
    if ref.problem is not None or ref.row is not None or not is_looked_for:
        return None
    info = storage.stat(ref.container or ref.uri)
    if info.bytes is None:
        return None
    if ref.container is None:
        is_changed = info.etag != ref.etag if None not in (info.etag, ref.etag) else None
        return StoredRanges(storage, info), ReadVersion(info.bytes, info.etag, is_changed)
    if ref.offset is None or ref.bytes is None or info.etag is None or info.etag != ref.etag:
        return None
    return StoredRanges(storage, info, start=ref.offset, size=ref.bytes), ReadVersion(ref.bytes, info.etag, False)


def _needs_package(error: ImageError) -> ImageError:
    """Add to a limit that a whole TIFF exceeds how it is read by windows."""
    if error.status != "too_large":
        return error
    return ImageError("too_large", f"{error.reason}; with `{INSTALL}` TIFFs are read by windows, of any size")
