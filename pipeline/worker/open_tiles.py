"""Which images are cut into tiles, and how they are opened for reading tile by tile.

| the image | how its tiles are read | its limit |
|---|---|---|
| TIFF, BigTIFF, GeoTIFF, with the extra `geo` | by windows, from where it is stored | 2^32 - 1 pixels |
| any format up to `images.max_pixels` | decoded whole | `images.max_pixels` |
| JPEG and PNG beyond that | decoded whole, at four bytes per pixel | 2^29 pixels |
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import ImageError, IncompleteReadError
from pipeline.inputs.decode import decode_image, read_header
from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.formats.jpeg_decoders import JpegDecoder
from pipeline.inputs.geotiff import read_georeference
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.large_images import BYTES_PER_PIXEL, MOST_DECODED_PIXELS, LargeImage
from pipeline.inputs.transparency import visible_pixels
from pipeline.inputs.windows import FILL_COLOR, ArrayWindows, WindowedImage, open_stored
from pipeline.job_spec.job import ImagesSection
from pipeline.job_spec.tiles import TilesSection
from pipeline.storage.storage import Storage
from pipeline.worker.tiling import MOST_PIXELS, TileGrid

# Of an image that is read by windows: blocks of its file, and what GDAL keeps of them.
OPEN_BYTES = 32 * 2**20


@dataclass(frozen=True)
class TileSource:
    """An image to be cut.

    grid: its tiles, before EXIF's orientation.
    is_decoded: whether opening it decodes it; else only the thread that opens it may read it.
    whole_bytes: held while it is open, beside the tiles. decoding_bytes: held beside that while it is opened.
    open: opens it; also returns the version that is read, where that is not known before.
    """

    grid: TileGrid
    is_decoded: bool
    whole_bytes: int
    decoding_bytes: int
    open: Callable[[], tuple[WindowedImage, ReadVersion | None]]


class TileReader:
    """Finds the images that the spec's `tiles` cuts."""

    def __init__(
        self,
        tiles: TilesSection,
        limits: ImagesSection,
        storage: Storage,
        *,
        jpeg: JpegDecoder | None = None,
        rule: BandRule = AS_STORED,
    ) -> None:
        """`jpeg`, `rule`: as for images that are not cut, see `decode_image`."""
        self._tiles = tiles
        self._limits = limits
        self._storage = storage
        self._jpeg = jpeg
        self._rule = rule

    def plan(self, size: tuple[int, int]) -> TileGrid:
        """Lay tiles over an image of this upright (height, width)."""
        return TileGrid.plan(*size, self._tiles)

    def find_stored(self, ref: ImageRef) -> TileSource | None:
        """Return a TIFF that is read by windows from where it is stored; None for all other images.

        Raises:
            ImageError: its header is damaged, or it is too large.
            NotFoundError: it does not exist any more.
            StorageError: it cannot be read.
        """

        def open_again() -> tuple[WindowedImage, ReadVersion]:
            found = self._open_stored(ref)
            if found is None or found[0].size != size:
                raise IncompleteReadError(f"{ref.uri} was replaced while it was read.")
            return found

        opened = self._open_stored(ref)
        if opened is None:
            return None
        # Closed until there is room for its tiles: many images are looked at ahead.
        size = opened[0].size
        opened[0].close()
        if not self._tiles.cuts(*size):
            return None
        _check_most(size, MOST_PIXELS)
        return TileSource(self.plan(size), False, OPEN_BYTES, 0, open_again)

    def find_decoded(self, payload: bytes) -> TileSource | None:
        """Return an image that is decoded whole and then cut; None if it is not cut, or refused as without tiles.

        Args:
            payload: the file.
        """
        header = read_header(payload, max_pixels=MOST_DECODED_PIXELS, rule=self._rule)
        width, height = header.size
        if not self._tiles.cuts(height, width):
            return None
        limit = self._limits.max_pixels
        grid = self.plan((height, width))
        if width * height <= limit:
            return TileSource(grid, True, header.pixel_bytes, header.decoding_bytes, lambda: self._open_array(payload))
        return TileSource(
            grid,
            True,
            BYTES_PER_PIXEL * width * height,
            0,
            lambda: (LargeImage(payload, other_max_pixels=limit), None),
        )

    def _open_stored(self, ref: ImageRef) -> tuple[WindowedImage, ReadVersion] | None:
        limits = self._limits
        return open_stored(
            ref, self._storage, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes, rule=self._rule
        )

    def _open_array(self, payload: bytes) -> tuple[WindowedImage, None]:
        pixels = decode_image(payload, max_pixels=self._limits.max_pixels, jpeg=self._jpeg, rule=self._rule)
        valid = visible_pixels(payload)
        if valid is not None:
            pixels[~valid] = FILL_COLOR
        return ArrayWindows(pixels, valid=valid, georeference=read_georeference(payload)), None


def _check_most(size: tuple[int, int], most: int) -> None:
    height, width = size
    if height * width > most:
        raise ImageError("too_large", f"{width} x {height} is {width * height} pixels; tiles take at most {most}")
