"""Pictures of instances: overlays, crops, pairs side by side, contact sheets; and the images of a run to draw on."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.drawing.captions import short_names
    from jobs.results.drawing.colours import (
        PALETTE,
        STUFF_PALETTE,
        colour_of,
        instance_colour,
        stuff_colour,
        text_colour,
    )
    from jobs.results.drawing.compose import Cell, Side, contact_sheet, crop, side_by_side
    from jobs.results.drawing.image_reader import (
        ImageReader,
        ReadImage,
        draw_run_image,
        grey_tile,
        render_run_image,
    )
    from jobs.results.drawing.instances import DrawnInstance, damaged_masks, instance_of_row
    from jobs.results.drawing.overlay import Overlay, draw_overlay, render_overlay
    from jobs.results.drawing.picture_files import encode_picture, picture_names, write_picture
    from jobs.results.drawing.segments import region_of_row, segment_of_row, stuff_segment
    from jobs.results.drawing.style import Style

__all__ = [
    "PALETTE",
    "STUFF_PALETTE",
    "Cell",
    "DrawnInstance",
    "ImageReader",
    "Overlay",
    "ReadImage",
    "Side",
    "Style",
    "colour_of",
    "contact_sheet",
    "crop",
    "damaged_masks",
    "draw_overlay",
    "draw_run_image",
    "encode_picture",
    "grey_tile",
    "instance_colour",
    "instance_of_row",
    "picture_names",
    "region_of_row",
    "render_overlay",
    "render_run_image",
    "segment_of_row",
    "short_names",
    "side_by_side",
    "stuff_colour",
    "stuff_segment",
    "text_colour",
    "write_picture",
]

__getattr__ = attach(
    __name__,
    {
        "captions": ["short_names"],
        "colours": ["PALETTE", "STUFF_PALETTE", "colour_of", "instance_colour", "stuff_colour", "text_colour"],
        "compose": ["Cell", "Side", "contact_sheet", "crop", "side_by_side"],
        "instances": ["DrawnInstance", "damaged_masks", "instance_of_row"],
        "overlay": ["Overlay", "draw_overlay", "render_overlay"],
        "picture_files": ["encode_picture", "picture_names", "write_picture"],
        "image_reader": ["ReadImage", "ImageReader", "draw_run_image", "grey_tile", "render_run_image"],
        "segments": ["region_of_row", "segment_of_row", "stuff_segment"],
        "style": ["Style"],
    },
)
