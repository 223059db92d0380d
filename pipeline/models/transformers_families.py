"""The families of transformers that find instances, by the architecture that a checkpoint's config.json names."""

from dataclasses import dataclass

from pipeline.models.queries import (
    QueryRule,
    choose_classes_by_softmax,
    choose_pairs_by_sigmoid,
    choose_pairs_by_softmax,
)

# `Mask2FormerImageProcessor.post_process_instance_segmentation` scores masks at this size, whatever the image's.
_MASK2FORMER_SIDE = 384


@dataclass(frozen=True)
class Family:
    """One family.

    rule: from outputs to instances. takes_pixel_mask: which pixels are the image and which are padding.
    pads_black: padding is black pixels, normalised like the image; elsewhere it is zeros after normalising.
    floats_resized: its processor resizes floats without antialiasing; the others resize grey levels with it.
    example: a published checkpoint.
    """

    rule: QueryRule
    example: str
    takes_pixel_mask: bool = True
    pads_black: bool = False
    floats_resized: bool = False


_MASK_CLASSIFICATION = ("class_queries_logits", "masks_queries_logits", "")
_DETR = ("logits", "pred_masks", "pred_boxes")

FAMILIES = {
    # arXiv:2112.01527
    "Mask2FormerForUniversalSegmentation": Family(
        QueryRule(*_MASK_CLASSIFICATION, choose_pairs_by_softmax, _MASK2FORMER_SIDE),
        "facebook/mask2former-swin-small-coco-instance",
    ),
    # arXiv:2107.06278
    "MaskFormerForInstanceSegmentation": Family(
        QueryRule(*_MASK_CLASSIFICATION, choose_pairs_by_softmax, "maps"),
        "facebook/maskformer-swin-base-coco",
    ),
    # arXiv:2503.19108
    "EomtForUniversalSegmentation": Family(
        QueryRule(*_MASK_CLASSIFICATION, choose_classes_by_softmax, "image"),
        "tue-mps/coco_instance_eomt_large_640",
        takes_pixel_mask=False,
        pads_black=True,
    ),
    # arXiv:2005.12872
    "DetrForSegmentation": Family(
        QueryRule(*_DETR, choose_classes_by_softmax, None),
        "facebook/detr-resnet-50-panoptic",
    ),
    # arXiv:2108.06152
    "ConditionalDetrForSegmentation": Family(QueryRule(*_DETR, choose_pairs_by_sigmoid, None), ""),
    # arXiv:2511.09554
    "RfDetrForInstanceSegmentation": Family(
        QueryRule(*_DETR, choose_pairs_by_sigmoid, None),
        "Roboflow/rf-detr-seg-medium",
        floats_resized=True,
    ),
}
