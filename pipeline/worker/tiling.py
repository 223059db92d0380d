"""The layout of an image's tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

from htc_model.masks.tile_box import TileBox
from pipeline.job_spec.tiles import TilesSection

# Of a mask's run lengths: pycocotools keeps them, and positions, in 32 bits (cocoapi, maskApi.h).
MOST_PIXELS = 2**32 - 1


@dataclass(frozen=True)
class TileGrid:
    """The tiles of an image, numbered row by row from the upper left one.

    All have the same size, so that they share batches: where the last row or column would be narrower, it is moved
    inwards and overlaps the one before by more. Neighbours overlap by the spec's overlap at least. Tiles are found by
    arithmetic, as there may be very many.

    size: (height, width) of the image, tile_size of each tile, in pixels.
    tops, lefts: the upper edge of each row, the left edge of each column.
    """

    size: tuple[int, int]
    tile_size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def plan(cls, height: int, width: int, tiles: TilesSection) -> "TileGrid":
        """Lay tiles over an image of this size in pixels, at least 1 x 1."""
        tile_size = min(tiles.side, height), min(tiles.side, width)
        step = tiles.side - tiles.overlap
        tops, lefts = (_begins(extent, side, step) for extent, side in zip((height, width), tile_size, strict=True))
        return cls((height, width), tile_size, tops, lefts)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __getitem__(self, number: int) -> TileBox:
        if not 0 <= number < len(self):
            raise IndexError(number)
        row, column = divmod(number, len(self.lefts))
        return TileBox(self.tops[row], self.lefts[column], *self.tile_size)

    def __iter__(self) -> Iterator[TileBox]:
        return (self[number] for number in range(len(self)))

    @property
    def tile_bytes(self) -> int:
        """Of a tile's pixels, three bytes each."""
        return 3 * self.tile_size[0] * self.tile_size[1]

    def describe(self, number: int) -> str:
        """Return a tile's name for messages."""
        box = self[number]
        return f"tile {number + 1} of {len(self)} ({box.width} x {box.height} at column {box.left}, row {box.top})"


def _begins(extent: int, side: int, step: int) -> tuple[int, ...]:
    count = 1 + -(-(extent - side) // step)
    return tuple(min(number * step, extent - side) for number in range(count))
