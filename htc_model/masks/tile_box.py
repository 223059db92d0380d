"""Where a tile lies in its image; without torch, for those that only count tiles."""

from typing import NamedTuple


class TileBox(NamedTuple):
    """Where a tile lies in its image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """One past its last row."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """One past its last column."""
        return self.left + self.width

    def overlap(self, other: "TileBox") -> "TileBox | None":
        """Return what two tiles share; None if that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        height, width = min(self.bottom, other.bottom) - top, min(self.right, other.right) - left
        return TileBox(top, left, height, width) if height > 0 and width > 0 else None
