"""Which images are cut into tiles, and how they are opened for reading tile by tile."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.inputs.decode import DEFAULT_MAX_PIXELS, decode_image, read_header
from pipeline.inputs.large_images import MOST_DECODED_PIXELS, can_open_large, open_large
from pipeline.inputs.windows import ArrayWindows, WindowedImage
from pipeline.job_spec.job import ImagesSection
from pipeline.job_spec.tiles import TilesSection
from pipeline.worker.tiling import TileGrid
