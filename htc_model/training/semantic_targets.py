"""Targets of the semantic branch: a class per cell, from instance masks or from the data set's own maps."""

from collections.abc import Sequence

import torch
from torch import Tensor

# The label of pixels that the semantic loss ignores, in COCO's stuffthingmaps too.
IGNORED_PIXEL = 255


def rasterise_semantic(masks: Tensor, labels: Tensor, crowd_mask: Tensor | None, *, other_label: int) -> Tensor:
    """Make a semantic map from instance masks, for data sets that have no stuff maps.

    Each pixel takes the class of the smallest instance that covers it (a cup on a table is a cup); crowd regions
    without an instance are ignored; the rest is one class, "other".

    Args:
        masks: [G, H, W] bool or uint8.
        labels: [G] int64 in [0, other_label).
        crowd_mask: [H, W] bool or uint8, or None.
        other_label: the number of thing classes; below 255.

    Returns:
        [H, W] uint8 in [0, other_label], or `IGNORED_PIXEL`.

    Raises:
        ValueError: more classes than a uint8 map can hold beside `IGNORED_PIXEL`.
    """
    if not 0 <= other_label < IGNORED_PIXEL:
        raise ValueError(f"a semantic map holds at most {IGNORED_PIXEL - 1} thing classes, not {other_label}")
    semantic_map = torch.full(masks.shape[1:], other_label, dtype=torch.uint8, device=masks.device)
    if crowd_mask is not None:
        semantic_map[crowd_mask > 0] = IGNORED_PIXEL
    areas = masks.flatten(1).count_nonzero(dim=1)
    for index in torch.argsort(areas, descending=True, stable=True).tolist():
        semantic_map[masks[index] > 0] = labels[index].to(torch.uint8)
    return semantic_map


def build_semantic_targets(semantic_maps: Sequence[Tensor], padded_size: tuple[int, int], *, stride: int = 8) -> Tensor:
    """Pad the maps of a batch with `IGNORED_PIXEL` and take every `stride`-th pixel.

    Args:
        semantic_maps: per image [H, W] uint8 at network scale, H and W before padding.
        padded_size: (height, width) of the batch, a multiple of `stride`.
        stride: of the semantic branch's output (HTC, arXiv:1901.07518, sec. 3.2: 8).

    Returns:
        [B, height / stride, width / stride] uint8.
    """
    batch = torch.full(
        (len(semantic_maps), *padded_size), IGNORED_PIXEL, dtype=torch.uint8, device=semantic_maps[0].device
    )
    for target, semantic_map in zip(batch, semantic_maps, strict=True):
        target[: semantic_map.shape[0], : semantic_map.shape[1]] = semantic_map
    return batch[:, ::stride, ::stride].contiguous()
