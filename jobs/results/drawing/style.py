"""Style: how overlays look."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Shares of the square root of the picture's area, so that portraits and panoramas look alike: a photo of 640 x 480
# has lines of 1.6 and text of 13 pixels, one of 4000 x 3000 of 10 and 83.
_LINE_SHARE = 0.0029
_TEXT_SHARE = 0.024
_MIN_LINE_PX, _MAX_LINE_PX = 1.25, 24.0
# Text below this size cannot be read; above it, it would hide a panorama.
_MIN_TEXT_PX, _MAX_TEXT_PX = 10.0, 160.0


@dataclass(frozen=True)
class Style:
    """How overlays look; every size is in pixels of the drawn picture.

    colour_by: "category": constant colours by category; "instance": another one for each instance of an image.
    opacity: of the fill inside a mask, 0 to 1; 0 draws the outline only. stuff_opacity: of regions of stuff, which
        have no outline.
    has_labels, has_scores: whether each instance is named, and with its score.
    has_boxes: draw boxes too; without masks they are always drawn.
    long_side: the picture's longer side, for thumbnails; None keeps the image's size.
    min_long_side: enlarge smaller images up to this, so that labels do not cover them; 0 keeps their size.
    line_px, text_px: None for sizes that fit the picture.
    font: a TrueType or OpenType file for the labels; None takes the one that Pillow ships, and one of the system's
        for characters that it lacks.
    """

    colour_by: Literal["category", "instance"] = "category"
    opacity: float = 0.38
    stuff_opacity: float = 0.6
    has_labels: bool = True
    has_scores: bool = True
    has_boxes: bool = False
    long_side: int | None = None
    min_long_side: int = 0
    line_px: float | None = None
    text_px: float | None = None
    font: Path | None = None

    def drawn_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) of the picture of an image of this size."""
        longer = max(width, height)
        wanted = longer if self.long_side is None else self.long_side
        wanted = max(wanted, self.min_long_side)
        if wanted == longer:
            return width, height
        scale = wanted / longer
        return max(1, round(width * scale)), max(1, round(height * scale))

    def line_width(self, width: int, height: int) -> float:
        """Return the width of outlines for a picture of this size."""
        if self.line_px is not None:
            return self.line_px
        return min(max(_LINE_SHARE * math.sqrt(width * height), _MIN_LINE_PX), _MAX_LINE_PX)

    def text_size(self, width: int, height: int) -> float:
        """Return the size of labels for a picture of this size."""
        if self.text_px is not None:
            return self.text_px
        return min(max(_TEXT_SHARE * math.sqrt(width * height), _MIN_TEXT_PX), _MAX_TEXT_PX)
