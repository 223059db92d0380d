"""Instance masks: encoding mask maps as COCO run lengths, and decoding them."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_model.masks.encode import encode_detections, encode_masks
    from htc_model.masks.frames import encode_frames
    from htc_model.masks.rle import decode_rle, encode_bitmap, encode_runs, rle_area

__all__ = [
    "decode_rle",
    "encode_bitmap",
    "encode_detections",
    "encode_frames",
    "encode_masks",
    "encode_runs",
    "rle_area",
]

__getattr__ = attach(
    __name__,
    {
        "encode": ["encode_detections", "encode_masks"],
        "frames": ["encode_frames"],
        "rle": ["decode_rle", "encode_bitmap", "encode_runs", "rle_area"],
    },
)
