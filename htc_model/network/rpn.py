"""Region proposal network (Faster R-CNN, arXiv:1506.01497, on FPN): anchors, head, proposals."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import ModelConfig
from htc_model.network.box_ops import clip_boxes, decode_deltas, grouped_nms, has_area
from htc_model.network.fpn import STRIDES

ANCHOR_SCALE = 8.0  # an anchor's side is 8 strides: 32 px on P2 (FPN, sec. 4.1)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width (Faster R-CNN, sec. 3.1.1)
RPN_STDS = (1.0, 1.0, 1.0, 1.0)  # RPN deltas are not normalised in the published configs


class RPNHead(nn.Module):
    """Scores and box deltas of three anchors at every cell of P2..P6, and the best proposals.

    Args:
        config: reads fpn_channels and the three rpn_ fields.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.fpn_channels
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(ANCHOR_RATIOS), 1)
        self.rpn_reg = nn.Conv2d(channels, len(ANCHOR_RATIOS) * 4, 1)
        self.candidates_per_level = config.rpn_candidates_per_level
        self.proposals = config.rpn_proposals
        self.nms_iou = config.rpn_nms_iou

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict on every level.

        Args:
            pyramid: P2..P6, [B, C, H_l, W_l].

        Returns:
            Objectness logits [B, 3, H_l, W_l] and deltas [B, 12, H_l, W_l], one of each per level.
        """
        shared = [F.relu(self.rpn_conv(x), inplace=True) for x in pyramid]
        return [self.rpn_cls(x) for x in shared], [self.rpn_reg(x) for x in shared]

    def select_proposals(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Filter predictions into proposals.

        Args:
            logits, deltas: what `forward` gave.
            image_sizes: B x (height, width) after resizing, before padding; boxes are clipped to it.

        Returns:
            B pairs of boxes_xyxy [N, 4] float32 in network pixels and scores [N] in [0, 1], best first.
        """
        candidates = [self._best_of_level(*level) for level in zip(logits, deltas, STRIDES, strict=True)]
        boxes = torch.cat([level_boxes for level_boxes, _ in candidates], dim=1)
        scores = torch.cat([level_scores for _, level_scores in candidates], dim=1)
        levels = torch.cat(
            [
                torch.full((level_scores.shape[1],), index, device=scores.device)
                for index, (_, level_scores) in enumerate(candidates)
            ]
        )
        boxes = clip_boxes(boxes, torch.tensor(image_sizes, device=boxes.device)[:, None])
        is_real = has_area(boxes)
        proposals = []
        for image_boxes, image_scores, image_is_real in zip(boxes, scores, is_real, strict=True):
            kept_boxes, kept_scores = image_boxes[image_is_real], image_scores[image_is_real]
            kept = grouped_nms(kept_boxes, kept_scores, levels[image_is_real], self.nms_iou, self.proposals)
            proposals.append((kept_boxes[kept], kept_scores[kept]))
        return proposals

    def _best_of_level(self, logits: Tensor, deltas: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Decode one level's best candidates: [B, K, 4] boxes, unclipped, and [B, K] scores."""
        height, width = logits.shape[-2:]
        scores = logits.permute(0, 2, 3, 1).flatten(1).float().sigmoid()
        # A stable sort: saturated scores are equal, and their order must not depend on the batch.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, : self.candidates_per_level], order[:, : self.candidates_per_level]
        chosen = deltas.permute(0, 2, 3, 1).reshape(len(deltas), -1, 4).float()
        chosen = chosen.gather(1, order[..., None].expand(-1, -1, 4))
        anchors = build_anchors(height, width, stride, logits.device)[order]
        return decode_deltas(anchors, chosen, RPN_STDS), scores


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the cache outlives inference, and training may not use inference tensors
def build_anchors(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Build three anchors per cell of a level, centred on the cell's upper left corner.

    Returns:
        [height * width * 3, 4] float32 xyxy in network pixels, ordered row, column, ratio.
    """
    # Sizes in float32 and in this order, as in the published pipeline: equal bits need equal rounding.
    height_ratios = torch.tensor(ANCHOR_RATIOS).sqrt()
    half_widths = 0.5 * (stride * (1 / height_ratios) * ANCHOR_SCALE)
    half_heights = 0.5 * (stride * height_ratios * ANCHOR_SCALE)
    base = torch.stack([-half_widths, -half_heights, half_widths, half_heights], dim=1).to(device)
    ys = torch.arange(height, device=device) * stride
    xs = torch.arange(width, device=device) * stride
    shifts = torch.stack([xs.repeat(height), ys.repeat_interleave(width)], dim=1).to(base.dtype)
    return (shifts.repeat(1, 2)[:, None] + base).reshape(-1, 4)
