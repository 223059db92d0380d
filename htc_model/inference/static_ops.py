"""Detection operations at fixed shapes: no result's shape depends on values, and nothing is read by the host.

Where the dynamic path (`htc_model.network`) drops elements, they stay here as empty slots: score -inf, box of zeros.
An empty slot never changes another one. The arithmetic is that of the dynamic path, so the results are too.
"""

from collections.abc import Sequence

from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores and their indices, by (score descending, index ascending).

    That is the beginning of a stable descending sort, on every device.

    Args:
        scores: [..., N] float32.
        k: at most N.

    Returns:
        Values [..., k] float32 and indices [..., k] int64.
    """
    raise NotImplementedError


def suppress(boxes_xyxy: Tensor, is_real: Tensor, iou: float, steps: int) -> tuple[Tensor, Tensor]:
    """Run NMS on boxes that are sorted by score, for several independent lists at once.

    Args:
        boxes_xyxy: [G, N, 4] float32, best first; boxes of different groups already lie apart.
        is_real: [G, N] bool; other slots neither stay nor suppress.
        iou: boxes suppress later ones that overlap by more.
        steps: of the fixed-point iteration; a chain of more boxes that each decide about the next may stay undecided.

    Returns:
        Kept [G, N] bool, and whether the list is decided [G] bool: then kept is exactly greedy NMS.
    """
    raise NotImplementedError


def pool_levels(
    pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor, side: int, *, semantic_averaged: int = 1
) -> Tensor:
    """Pool each RoI from its own level by RoIAlign, and add what it pools from the semantic features.

    `triton_roi_align.pool_levels` has the same signature.

    Args:
        pyramid: P2..P5 or P2..P6 (P6 is not read), each [B, C, H_l, W_l] of one dtype, any memory order.
        semantic_feat: [B, C, H_3, W_3] at P3's stride, or None.
        rois: [K, 5] float32, image index and xyxy in network pixels; a box of zeros pools zeros from the pyramid and
            from the semantic features.
        side: bins per side of the result: 7 or 14.
        semantic_averaged: the semantic features are pooled at `semantic_averaged` times as many bins per side, then
            neighbours are averaged: 2 for boxes (14 to 7), 1 for masks.

    Returns:
        [K, C, side, side] of the pyramid's dtype; the sums are float32.
    """
    raise NotImplementedError
