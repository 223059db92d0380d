"""Region proposal network with guided anchoring (GA-RPN, arXiv:1901.03278): where anchors are, and their shapes.

P_l -> shared convolution -> location map: cells below a threshold have no anchor
                          -> shape map: one anchor per cell, a square of eight strides with predicted width and height
                          -> deformable convolution whose offsets follow from the shape -> objectness, deltas
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from htc_model.config import ModelConfig
from htc_model.network.box_ops import apply_deltas, clip_boxes, has_area
from htc_model.network.fpn import STRIDES
from htc_model.network.resnet import sample_deformable
from htc_model.network.rpn import ANCHOR_SCALE

# The published configs of guided anchoring: `anchor_coder`, `bbox_coder`, `loc_filter_thr`, `deform_groups`.
SHAPE_STDS = (0.14, 0.14)
BOX_STDS = (0.07, 0.07, 0.11, 0.11)
LOCATION_THRESHOLD = 0.01
_OFFSET_GROUPS = 4
# A shape may be a million times the square, where a box may only be 62 times its anchor.
_MAX_LOG_SHAPE = -math.log(1e-6)


class FeatureAdaption(nn.Module):
    """A 3x3 deformable convolution that reads each cell at the scale of its anchor, then a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(2, _OFFSET_GROUPS * 18, 1, bias=False)
        self.conv_adaption = Kernel(channels)
        nn.init.normal_(self.conv_offset.weight, std=0.1)

    def forward(self, x: Tensor, shapes: Tensor) -> Tensor:
        """Map [B, C, H, W] and the shape map [B, 2, H, W] to [B, C, H, W], in float32: offsets are sub-pixel."""
        with torch.autocast(x.device.type, enabled=False):
            x, shapes = x.float(), shapes.float()
            adapted = sample_deformable(x, self.conv_offset(shapes), self.conv_adaption.weight, stride=1)
        return F.relu(adapted, inplace=True)


class Kernel(nn.Module):
    """The deformable convolution's weight, under the published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)


class GuidedRPNHead(nn.Module):
    """Scores and boxes of at most one guided anchor at every cell of P2..P6, and the best proposals.

    Args:
        config: reads fpn_channels and the three rpn_ fields.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.fpn_channels
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_loc = nn.Conv2d(channels, 1, 1)
        self.conv_shape = nn.Conv2d(channels, 2, 1)
        self.feature_adaption = FeatureAdaption(channels)
        self.conv_cls = nn.Conv2d(channels, 1, 1)
        self.conv_reg = nn.Conv2d(channels, 4, 1)
        self.candidates_per_level = config.rpn_candidates_per_level
        self.proposals = config.rpn_proposals
        self.nms_iou = config.rpn_nms_iou

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict on every level.

        Args:
            pyramid: P2..P6, [B, C, H_l, W_l].

        Returns:
            Per level two logits [B, 2, H_l, W_l], of objectness and of location, and six deltas [B, 6, H_l, W_l]: the
            box's four, and the anchor's (width, height).
        """
        logits, deltas = [], []
        for level in pyramid:
            x = F.relu(self.rpn_conv(level), inplace=True)
            location, shapes = self.conv_loc(x), self.conv_shape(x)
            # The published network computes these two where an anchor is; elsewhere nothing reads them.
            adapted = self.feature_adaption(x, shapes).to(x.dtype)
            logits.append(torch.cat([self.conv_cls(adapted), location], dim=1))
            deltas.append(torch.cat([self.conv_reg(adapted), shapes], dim=1))
        return logits, deltas

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
        levels = [self.best_of_level(*level) for level in zip(logits, deltas, STRIDES, strict=True)]
        proposals = []
        for image, size in enumerate(image_sizes):
            limit = torch.tensor(size, device=logits[0].device)
            kept = [self._suppress(boxes[image], scores[image], limit) for boxes, scores in levels]
            boxes = torch.cat([level_boxes for level_boxes, _ in kept])
            scores, order = torch.cat([level_scores for _, level_scores in kept]).sort(descending=True, stable=True)
            proposals.append((boxes[order[: self.proposals]], scores[: self.proposals]))
        return proposals

    def best_of_level(self, logits: Tensor, deltas: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Decode one level's best anchors: boxes [B, K, 4], unclipped, and scores [B, K], -inf where no anchor is."""
        height, width = logits.shape[-2:]
        objectness, location = logits.float().sigmoid().flatten(2).unbind(1)
        scores = torch.where(location >= LOCATION_THRESHOLD, objectness, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, : self.candidates_per_level], order[:, : self.candidates_per_level]
        chosen = deltas.float().flatten(2).transpose(1, 2).gather(1, order[..., None].expand(-1, -1, 6))
        squares = build_squares(height, width, stride, logits.device)[order]
        return decode_guided(squares, chosen, chosen.new_tensor(SHAPE_STDS), chosen.new_tensor(BOX_STDS)), scores

    def _suppress(self, boxes: Tensor, scores: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        boxes = clip_boxes(boxes, limit)
        is_real = has_area(boxes) & (scores > -torch.inf)
        boxes, scores = boxes[is_real], scores[is_real]
        kept = nms(boxes, scores, self.nms_iou)
        return boxes[kept], scores[kept]


def decode_guided(squares: Tensor, deltas: Tensor, shape_stds: Tensor, box_stds: Tensor) -> Tensor:
    """Shape the anchors, then move them: squares [..., 4] and deltas [..., 6] -> boxes [..., 4], not clipped.

    Args:
        shape_stds, box_stds: `SHAPE_STDS` and `BOX_STDS` on the device.
    """
    shapes = (deltas[..., 4:] * shape_stds).clamp(-_MAX_LOG_SHAPE, _MAX_LOG_SHAPE).exp()
    centre = (squares[..., :2] + squares[..., 2:]) * 0.5
    half = (squares[..., 2:] - squares[..., :2]) * shapes * 0.5
    anchors = torch.cat([centre - half, centre + half], dim=-1)
    return apply_deltas(anchors, deltas[..., :4] * box_stds)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def build_squares(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Build one square of eight strides per cell of a level, centred on the cell's upper left corner.

    Returns:
        [height * width, 4] float32 xyxy in network pixels, ordered row, column.
    """
    half = 0.5 * stride * ANCHOR_SCALE
    ys = torch.arange(height, device=device) * stride
    xs = torch.arange(width, device=device) * stride
    centres = torch.stack([xs.repeat(height), ys.repeat_interleave(width)], dim=1).float()
    return torch.cat([centres - half, centres + half], dim=1)
