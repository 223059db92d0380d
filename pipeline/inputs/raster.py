"""A TIFF opened by GDAL through rasterio (extra `geo`), reading no more of the file than is asked for.

GDAL sees the file only through `ByteRanges`: it opens no other file, address or format, whatever the TIFF says.
"""

import contextlib
import contextvars
import itertools
import logging
import os
import re
import warnings
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.inputs.byte_ranges import ByteRanges, RangeFile
from pipeline.text import message_of

Place = tuple[int, int, int, int]
"""Top, left, height and width of a window."""

INSTALL = "pip install 'htc-batch[geo]'"
# Decoded tiles that GDAL keeps, of all images of a process: a row of tiles of 1152 x 20,000 pixels with three bands of
# 16 bits is 138 MB, and a file in strips decodes such a row for every tile that is not kept.
GDAL_CACHE_BYTES = 192 * 2**20
_OPTIONS = {
    # No search for files beside this one (.ovr, .msk, .aux.xml), of which each would be a request.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": False,
    # One image is one thread of the worker.
    "GDAL_NUM_THREADS": "1",
}
_MAX_REASON_CHARS = 200
_numbers = itertools.count()


def has_rasterio() -> bool:
    """Return whether rasterio is installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


class Raster:
    """An open raster; used as a context manager, or closed. From one thread at a time.

    dtype: numpy's name of the samples' type, the same for all bands. bands: how many. size: (height, width) as stored.
    """

    def __init__(self, ranges: ByteRanges) -> None:
        """Open.

        Raises:
            ImportError: rasterio is not installed.
            ImageError: `unreadable`: GDAL cannot open the file.
            StorageError: it cannot be read.
        """
        # GDAL reads it once, for the whole process: rasterio's `Env` would set it back while other threads read.
        os.environ.setdefault("GDAL_CACHEMAX", str(GDAL_CACHE_BYTES))
        import rasterio
        import rasterio.enums
        import rasterio.windows
        from rasterio._err import CPLE_BaseError

        self._ranges = ranges
        self._failed: list[Exception] = []
        # Rasterio keeps open files in variables of the context, which else would be that of the thread that opens.
        self._context = contextvars.copy_context()
        self._rasterio = rasterio
        # Some of GDAL's errors are raised as they are, without a public name; some quote bytes of the file.
        self._errors = (rasterio.errors.RasterioError, rasterio.errors.CRSError, CPLE_BaseError, UnicodeDecodeError)
        _silence_rasterio()
        with self._reading():
            # A name of its own for each, as rasterio knows openers by their names.
            name = f"htc-{next(_numbers)}.tif"
            self._dataset: Any = self._context.run(
                rasterio.open, name, driver="GTiff", sharing=False, opener=self._open
            )
        # Also at the end of the process: GDAL would else ask an interpreter that is gone for the file.
        self.close = weakref.finalize(self, self._context.run, self._dataset.close)
        self.size: tuple[int, int] = self._dataset.shape
        self.bands: int = self._dataset.count
        self.dtype: str = self._dataset.dtypes[0]

    def _open(self, name: str, mode: str = "rb", **_: Any) -> RangeFile:
        return RangeFile(self._ranges, self._failed.append)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Settings of GDAL for this thread; what went wrong in the store is raised instead of what GDAL makes of it."""
        self._failed.clear()
        try:
            with self._rasterio.Env(**_OPTIONS):
                yield
        except self._errors as error:
            if not self._failed:
                reason = str(error.__cause__ or error).split("\n")[0]
                text = re.sub(r"/?[\w/]*htc-\d+\.tif[:,]? ?", "", reason)
                raise ImageError(
                    "unreadable", message_of(f"damaged TIFF: {text}", max_chars=_MAX_REASON_CHARS)
                ) from error
        if self._failed:
            raise self._failed[0]

    def read(self, bands: Sequence[int], place: Place, *, shape: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read a window of bands as [height, width, bands] samples.

        Args:
            bands: counted from 1.
            place: top, left, height and width of the window.
            shape: (height, width) to which the window is reduced, from a reduced copy in the file where there is one.
        """
        distinct = list(dict.fromkeys(bands))
        with self._reading():
            found = self._context.run(self._dataset.read, distinct, **self._options(place, len(distinct), shape))
        if len(distinct) < len(bands):
            found = found[[distinct.index(band) for band in bands]]
        return np.moveaxis(found, 0, -1)

    def mask(self, bands: Sequence[int], place: Place, *, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """Return which pixels hold data, by the no-data value, the alpha band or the mask in the file."""
        per_dataset = self._rasterio.enums.MaskFlags.per_dataset
        # An alpha band or a mask in the file is that of all bands.
        whole = [band for band in bands if per_dataset in self._dataset.mask_flag_enums[band - 1]][:1]
        distinct = whole or list(dict.fromkeys(bands))
        with self._reading():
            found = self._context.run(self._dataset.read_masks, distinct, **self._options(place, len(distinct), shape))
        # With a no-data value a pixel is without data where all its bands have that value.
        return np.asarray(found.any(axis=0))

    def _options(self, place: Place, bands: int, shape: tuple[int, int] | None) -> dict[str, Any]:
        top, left, height, width = place
        options: dict[str, Any] = {"window": self._rasterio.windows.Window(left, top, width, height)}
        return options if shape is None else options | {"out_shape": (bands, *shape)}

    @property
    def has_overviews(self) -> bool:
        """Whether the file has reduced copies of its image."""
        return bool(self._dataset.overviews(1))

    @property
    def has_mask(self) -> bool:
        """Whether some pixels may hold no data."""
        all_valid = self._rasterio.enums.MaskFlags.all_valid
        return any(all_valid not in flags for flags in self._dataset.mask_flag_enums)

    def crs(self) -> str | None:
        """Return the coordinate system, as "AUTHORITY:n" or WKT; None where the file names none."""
        with self._reading():
            found = self._dataset.crs
            return str(found.to_string()) or None if found else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _silence_rasterio() -> None:
    """Ignore its warning about images without a georeference; as for Pillow, a permanent filter is safe in threads."""
    from rasterio.errors import NotGeoreferencedWarning

    silence = ("ignore", None, NotGeoreferencedWarning, None, 0)
    if silence not in warnings.filters:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
    # It repeats each error that is raised anyway.
    logging.getLogger("rasterio").setLevel(logging.CRITICAL + 1)
