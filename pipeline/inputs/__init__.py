"""From an input URI to images: list, read, decode."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.inputs.coco_files import read_coco
    from pipeline.inputs.decode import StoredSize, decode_image, read_size
    from pipeline.inputs.image_ref import ImageRef
    from pipeline.inputs.listing import list_images, locate_image
    from pipeline.inputs.read import fetch_image, read_image
    from pipeline.inputs.resume import ListedBefore
    from pipeline.inputs.shard import Shard
    from pipeline.inputs.source_notes import SourceNotes
    from pipeline.inputs.windows import ArrayWindows, BandRule, Georeference, WindowedImage, open_windows

__all__ = [
    "ArrayWindows",
    "BandRule",
    "Georeference",
    "ImageRef",
    "ListedBefore",
    "Shard",
    "SourceNotes",
    "StoredSize",
    "WindowedImage",
    "decode_image",
    "fetch_image",
    "list_images",
    "locate_image",
    "open_windows",
    "read_coco",
    "read_image",
    "read_size",
]

__getattr__ = attach(
    __name__,
    {
        "coco_files": ["read_coco"],
        "decode": ["StoredSize", "decode_image", "read_size"],
        "image_ref": ["ImageRef"],
        "listing": ["list_images", "locate_image"],
        "read": ["fetch_image", "read_image"],
        "resume": ["ListedBefore"],
        "shard": ["Shard"],
        "source_notes": ["SourceNotes"],
        "windows": ["ArrayWindows", "BandRule", "Georeference", "WindowedImage", "open_windows"],
    },
)
