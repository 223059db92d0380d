"""Tiles in the spec: huge images are segmented tile by tile, and what seams cut is joined again."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.settings import Section

# A tile of a photo's size: the presets resize it to 800 x 800, so objects are seen nearly as large as they are.
DEFAULT_SIDE = 1024
# An eighth of the side: objects up to this size are seen whole by one tile at least.
OVERLAP_OF_SIDE = 8
# The longer side up to which `auto` leaves an image whole. The presets shrink one of this size to a third, as they do a
# camera's photo; beyond, things of a few dozen pixels vanish.
AUTO_ABOVE = 4096
LEAST_SIDE, LARGEST_SIDE = 16, 16_384
_DIGITS = re.compile(r"(\d{1,6})(?::(\d{1,6}))?")


class TilesSection(Section):
    """How huge images are cut; see docs/huge_images.md.

    side: of a square tile; a lower or narrower image has tiles of its own height or width.
    overlap: what neighbouring tiles share at least; by default an eighth of the side.
    above: only images whose longer side is more than this are cut; by default the tile's side, and 4096 for "auto".
    """

    side: int = Field(
        default=DEFAULT_SIDE,
        ge=LEAST_SIDE,
        le=LARGEST_SIDE,
        description=f"a whole number of pixels from {LEAST_SIDE} to {LARGEST_SIDE}",
    )
    overlap: int = Field(
        default=DEFAULT_SIDE // OVERLAP_OF_SIDE,
        ge=0,
        description="a whole number of pixels, 0 or more, and less than tiles.side",
    )
    above: int = Field(default=DEFAULT_SIDE, ge=0, description="a whole number of pixels, at least tiles.side")

    @model_validator(mode="before")
    @classmethod
    def _settle_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        side = values.get("side", DEFAULT_SIDE)
        if type(side) is not int:
            return values
        return {"overlap": side // OVERLAP_OF_SIDE, "above": side, **values}

    @model_validator(mode="after")
    def _refuse_what_does_not_fit(self) -> Self:
        if self.overlap >= self.side:
            raise ValueError(
                f"overlap must be less than side, or no tile would show anything new; it is {self.overlap}, and side "
                f"is {self.side}"
            )
        if self.above < self.side:
            raise ValueError(
                f"above must be at least side: an image that fits into one tile is not cut; it is {self.above}, and "
                f"side is {self.side}"
            )
        return self

    def cuts(self, height: int, width: int) -> bool:
        """Return whether an image of this size in pixels is cut into tiles."""
        return max(height, width) > self.above


def _read_word(value: object) -> object:
    words: Mapping[object, object] = {"none": None, "auto": {"above": AUTO_ABOVE}}
    if type(value) is int:
        return {"side": value}
    if not isinstance(value, str):
        return value
    if (match := _DIGITS.fullmatch(value)) is None:
        return words.get(value, value)
    side, overlap = match.groups()
    return {"side": int(side)} if overlap is None else {"side": int(side), "overlap": int(overlap)}


Tiles = Annotated[TilesSection | None, BeforeValidator(_read_word)]
"""What the spec's `tiles` takes: a section, null, the words none and auto, or SIDE and SIDE:OVERLAP."""


def plain_tiles(section: TilesSection | None) -> dict[str, Any] | None:
    """Return the section as a run's identity holds it; None without tiles."""
    return None if section is None else section.model_dump(mode="json")
