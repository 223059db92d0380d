"""A network's inference copy: batch norms folded into convolutions, weights cast once, channels-last.

What is computed where, for a compute dtype of bfloat16 or float16 (with float32 everything is float32):

| part | compute dtype | float32 |
|---|---|---|
| backbone, FPN, semantic branch | convolutions, activations | deformable sampling and offsets, class logits |
| RPN | the shared convolution | objectness logits and deltas (a 1x1 convolution), sigmoid, decoding, NMS |
| guided RPN | the shared convolution | its four 1x1 convolutions, feature adaption, decoding, NMS |
| box heads | the two shared layers | class logits and deltas (one layer), mean of logits, softmax, decoding, NMS |
| mask heads | every convolution | sigmoid and mean of the stages' masks |
| PANet's heads | | everything |

The layers that give logits and deltas are small, and decisions depend on their last digits: bfloat16 has eight bits,
so that many proposals would have equal scores. Deformable convolutions stay in float32 because their offsets are
sub-pixel, and torchvision's operator has no bfloat16.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.network.detector import HTC
from htc_model.network.detectors import StandardisedConv2d, SwitchableConv2d
from htc_model.network.guided_rpn import FeatureAdaption, GuidedRPNHead, Kernel
from htc_model.network.panet import PANetBoxHead, PANetMaskHead
from htc_model.network.resnet import DeformConv2d, ModulatedDeformConv2d, sample_deformable, split_modulated
from htc_model.network.roi_heads import BOX_POOL, BoxHead, MaskHead
from htc_model.network.rpn import RPNHead

__all__ = ["FoldedHTC", "fold"]


class FoldedHTC(HTC):
    """The network of `model` for inference only, with the same methods and the same detections up to rounding.

    Its state dict has other keys and shapes than the model's.

    Args:
        model: in evaluation mode, float32; it is copied and stays as it is.
        dtype: of the convolutions and linear layers: float32, bfloat16 or float16.

    Raises:
        ValueError: the model is in training mode, or a batch norm does not follow a convolution.
    """

    def __init__(self, model: HTC, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)  # HTC's would build and initialise all layers, only to replace them
        if model.training:
            raise ValueError("a model in training mode cannot be folded: its batch norms use the batch's statistics")
        self.config = model.config
        self.dtype = dtype
        self.backbone = copy.deepcopy(model.backbone)
        self.neck = copy.deepcopy(model.neck)
        self.rpn_head = _fold_rpn(model.rpn_head)
        self.roi_head = copy.deepcopy(model.roi_head)
        for part in (self.backbone, self.neck):
            _settle_kernels(part)
            _fold_batch_norms(part)
        _replace_heads(self.roi_head)
        if self.roi_head.semantic_head is not None:
            # Computed for semantic maps only; its argmax depends on the last digits.
            self.roi_head.semantic_head.conv_logits = InFloat32(self.roi_head.semantic_head.conv_logits)
        _cast(self, dtype)
        self.eval().requires_grad_(requires_grad=False)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Compute P2..P6 in the compute dtype, channels-last, of normalised pixels [B, 3, H, W] of any dtype."""
        pixels = pixels.to(self.dtype, memory_format=torch.channels_last)
        pyramid: list[Tensor] = self.neck(self.backbone(pixels))
        return pyramid


def fold(model: HTC, dtype: torch.dtype = torch.float32) -> FoldedHTC:
    """Return the inference copy of a model on the model's device; see `FoldedHTC`."""
    return FoldedHTC(model, dtype)


class InFloat32(nn.Module):
    """A layer that computes in float32 whatever its input's dtype; its weights are not cast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result for x in float32."""
        result: Tensor = self.layer(x.float())
        return result


class FoldedDeformConv2d(nn.Module):
    """A deformable convolution with bias, sampled in float32; weights are contiguous, as torchvision's operator reads.

    Args:
        convolution: the one that a batch norm follows.
    """

    def __init__(self, convolution: DeformConv2d | ModulatedDeformConv2d) -> None:
        super().__init__()
        self.is_modulated = isinstance(convolution, ModulatedDeformConv2d)
        self.stride = convolution.stride
        self.weight = convolution.weight
        self.bias = nn.Parameter(torch.zeros_like(convolution.weight[:, 0, 0, 0]))
        self.conv_offset = convolution.conv_offset

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride] of the input's dtype, channels-last."""
        pixels = x.float()
        offsets, weights = self.conv_offset(pixels), None
        if self.is_modulated:
            offsets, weights = split_modulated(offsets)
        sampled = sample_deformable(pixels, offsets, self.weight, self.bias, stride=self.stride, tap_weights=weights)
        return sampled.to(x.dtype, memory_format=torch.channels_last)


class FoldedSwitchableConv2d(SwitchableConv2d):
    """A switchable atrous convolution whose kernels are standardised once; in float32, with its batch norm behind.

    Args:
        convolution: the trained one; its layers are shared.
    """

    def __init__(self, convolution: SwitchableConv2d) -> None:
        nn.Module.__init__(self)
        self.rate_stride = convolution.rate_stride
        self.weight = nn.Parameter(convolution.standardised().detach())
        self.weight_diff = convolution.weight_diff
        self.norm: nn.Module = nn.Identity()
        for name in ("switch", "pre_context", "post_context", "offset_s", "offset_l"):
            self.add_module(name, getattr(convolution, name))

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride], channels-last, of the input's dtype."""
        mixed: Tensor = self.norm(self.mix(input.float(), self.weight))
        return mixed.to(input.dtype, memory_format=torch.channels_last)


class FoldedRPNHead(RPNHead):
    """`RPNHead` whose objectness and deltas are one float32 convolution.

    Args:
        head: the trained one; copied.
    """

    def __init__(self, head: RPNHead) -> None:
        nn.Module.__init__(self)
        self.candidates_per_level = head.candidates_per_level
        self.proposals = head.proposals
        self.nms_iou = head.nms_iou
        self.rpn_conv = copy.deepcopy(head.rpn_conv)
        self.anchors = head.rpn_cls.out_channels
        both = nn.Conv2d(
            head.rpn_cls.in_channels, self.anchors + head.rpn_reg.out_channels, 1, device=head.rpn_cls.weight.device
        )
        _stack(both, head.rpn_cls, head.rpn_reg)
        self.rpn_out = InFloat32(both)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict on every level, like `RPNHead.forward`; float32."""
        both = [self.rpn_out(F.relu(self.rpn_conv(x), inplace=True)) for x in pyramid]
        return [x[:, : self.anchors] for x in both], [x[:, self.anchors :] for x in both]


class FoldedGuidedRPNHead(GuidedRPNHead):
    """`GuidedRPNHead` whose predictions are float32.

    Args:
        head: the trained one; copied.
    """

    def __init__(self, head: GuidedRPNHead) -> None:
        nn.Module.__init__(self)
        self.candidates_per_level = head.candidates_per_level
        self.proposals = head.proposals
        self.nms_iou = head.nms_iou
        self.rpn_conv = copy.deepcopy(head.rpn_conv)
        self.feature_adaption = copy.deepcopy(head.feature_adaption)
        for name in ("conv_loc", "conv_shape", "conv_cls", "conv_reg"):
            self.add_module(name, InFloat32(copy.deepcopy(getattr(head, name))))


def _fold_rpn(head: RPNHead | GuidedRPNHead) -> Any:
    return FoldedGuidedRPNHead(head) if isinstance(head, GuidedRPNHead) else FoldedRPNHead(head)


class FoldedBoxHead(nn.Module):
    """`BoxHead` that reads channels-last features without a copy; its logits and deltas are one float32 layer.

    Args:
        head: the trained one; copied.
    """

    def __init__(self, head: BoxHead) -> None:
        super().__init__()
        self.shared_convs = copy.deepcopy(head.shared_convs)
        self.shared_fcs = copy.deepcopy(head.shared_fcs)
        first: Any = self.shared_fcs[0]
        # Columns from (channel, y, x), the published order, to (y, x, channel), the order in memory.
        by_channel = first.weight.detach().unflatten(1, (-1, BOX_POOL, BOX_POOL))
        first.weight = nn.Parameter(by_channel.permute(0, 2, 3, 1).flatten(1).contiguous())
        self.classes = head.fc_cls.out_features
        both = nn.Linear(
            head.fc_cls.in_features, self.classes + head.fc_reg.out_features, device=head.fc_cls.weight.device
        )
        _stack(both, head.fc_cls, head.fc_reg)
        self.fc_out = InFloat32(both)

    def forward(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from pooled features [K, C, 7, 7], like `BoxHead.forward`; channels-last ones are not copied."""
        logits, deltas = self.fc_out(self.share(roi_features)).tensor_split((self.classes,), dim=1)
        return logits, deltas

    def share(self, roi_features: Tensor) -> Tensor:
        """Compute what classes and boxes are predicted from, like `BoxHead.share`."""
        x = roi_features.to(next(self.shared_fcs.parameters()).dtype)
        for conv in self.shared_convs:
            x = conv(x)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x), inplace=True)
        return x


class FoldedMaskHead(MaskHead):
    """`MaskHead` that accepts features of any dtype.

    Args:
        head: the trained one; copied.
    """

    def __init__(self, head: MaskHead) -> None:
        nn.Module.__init__(self)
        self.convs = copy.deepcopy(head.convs)
        self.upsample = copy.deepcopy(head.upsample)
        self.conv_logits = copy.deepcopy(head.conv_logits)
        self.conv_res = copy.deepcopy(head.conv_res)

    def forward(self, roi_features: Tensor, previous: Tensor | None = None) -> Tensor:
        """Compute the mask features [K, M, 14, 14] in the compute dtype, like `MaskHead.forward`."""
        features = roi_features.to(self.upsample.weight.dtype, memory_format=torch.channels_last)
        return super().forward(features, previous)


def _replace_heads(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, PANetBoxHead | PANetMaskHead):
            continue  # their features have one dimension more; they stay in float32
        if isinstance(child, BoxHead):
            setattr(module, name, FoldedBoxHead(child))
        elif isinstance(child, MaskHead):
            setattr(module, name, FoldedMaskHead(child))
        else:
            _replace_heads(child)


def _settle_kernels(module: nn.Module) -> None:
    """Replace weight-standardised convolutions by ones that have the standardised kernels."""
    for name, child in list(module.named_children()):
        if isinstance(child, SwitchableConv2d):
            setattr(module, name, FoldedSwitchableConv2d(child))
        elif isinstance(child, StandardisedConv2d):
            kernels = child.standardised().detach()
            plain = nn.Conv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                stride=child.stride,  # type: ignore[arg-type]
                padding=child.padding,  # type: ignore[arg-type]
                bias=False,
                device="meta",
            )
            plain.weight = nn.Parameter(kernels)
            setattr(module, name, plain)
        else:
            _settle_kernels(child)


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution registered before it in the same module.

    In all backbones here the order of registration is that of computation. The norm's place takes its activation
    (timm's norms include one) or nothing.
    """
    name_before: str = ""
    before: nn.Conv2d | DeformConv2d | ModulatedDeformConv2d | FoldedSwitchableConv2d | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, FoldedSwitchableConv2d):
            name_before, before = name, child
        elif isinstance(child, nn.BatchNorm2d) and isinstance(before, FoldedSwitchableConv2d):
            # A sum of two mixed convolutions and a context: the norm is applied to it, in float32.
            before.norm, before = child, None
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.BatchNorm2d):
            if before is None or len(before.weight) != child.num_features:
                raise ValueError(f"the batch norm {name} does not follow a convolution of its width")
            convolution = before if isinstance(before, nn.Conv2d) else FoldedDeformConv2d(before)
            setattr(module, name_before, convolution)
            _fold_into(convolution, child)
            before = None
            activation = getattr(child, "act", None)
            setattr(module, name, activation if isinstance(activation, nn.Module) else nn.Identity())
        elif isinstance(child, nn.Conv2d | DeformConv2d | ModulatedDeformConv2d):
            name_before, before = name, child
        else:
            _fold_batch_norms(child)


def _fold_into(convolution: nn.Conv2d | FoldedDeformConv2d, norm: nn.BatchNorm2d) -> None:
    """Change a convolution so that it computes its batch norm too; the products are rounded to float32 once."""
    mean, variance = _buffers(norm)
    scale = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
    shift = norm.bias.detach().double() - mean.double() * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias.detach().double() * scale
    weight = convolution.weight.detach()
    convolution.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
    convolution.bias = nn.Parameter(shift.to(weight.dtype))


def _buffers(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    return norm.running_mean, norm.running_var


def _stack(both: nn.Module, first: nn.Module, second: nn.Module) -> None:
    """Give `both` the outputs of two layers, one after the other."""
    one, other = first.state_dict(), second.state_dict()
    both.load_state_dict({key: torch.cat([one[key], other[key]]) for key in ("weight", "bias")})


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights to `dtype` where `InFloat32` and deformable convolutions do not keep them; channels-last."""
    is_deformable = isinstance(module, FoldedDeformConv2d | FoldedSwitchableConv2d | FeatureAdaption | Kernel)
    if isinstance(module, InFloat32 | PANetBoxHead | PANetMaskHead) or is_deformable:
        dtype = torch.float32
    for name, parameter in list(module.named_parameters(recurse=False)):
        is_kernel = parameter.dim() == 4 and not is_deformable
        layout = torch.channels_last if is_kernel else torch.contiguous_format
        setattr(module, name, nn.Parameter(parameter.detach().to(dtype, memory_format=layout)))
    for child in module.children():
        _cast(child, dtype)
