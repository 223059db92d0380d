"""The network as workers run it on a CPU: batch norms folded, layers of `cpu_conv`."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from htc_model.inference.cpu_conv import FusedConv2d, FusedLinear, WinogradConv2d, is_supported, multiply
from htc_model.inference.fold import FoldedMaskHead, FoldedRPNHead, fold
from htc_model.network.detector import HTC
from htc_model.network.fpn import ConvModule
from htc_model.network.resnet import Bottleneck
from htc_model.network.roi_heads import MASK_POOL, MASK_SIDE

__all__ = ["optimise_for_cpu"]


def optimise_for_cpu(model: HTC) -> HTC:
    """Return a copy of the network that gives the same detections (docs/numerics.md) in less time on a CPU.

    Where oneDNN or its operators are missing (`is_supported`), the model itself.

    Args:
        model: float32, on the CPU, in evaluation mode; it stays as it is.
    """
    if not is_supported():
        return model
    folded = fold(model)
    _fuse_layers(folded)
    return folded.requires_grad_(requires_grad=False)


class FusedBottleneck(nn.Module):
    """A folded `Bottleneck` whose ReLUs and sum are part of its convolutions.

    Args:
        block: its batch norms folded; its convolutions are shared.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = _fuse_convolution(block.conv1, has_relu=True)
        # A deformable one stays.
        self.conv2 = (
            _fuse_convolution(block.conv2, has_relu=True)
            if isinstance(block.conv2, nn.Conv2d)
            else nn.Sequential(block.conv2, nn.ReLU(inplace=True))
        )
        self.conv3 = FusedConv2d(block.conv3)
        # Its second module is what was the batch norm.
        self.downsample = None if block.downsample is None else FusedConv2d(next(_convolutions(block.downsample)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, 4 * planes, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.conv3(self.conv2(self.conv1(x)), shortcut)
        return result


class FusedRPNHead(FoldedRPNHead):
    """`FoldedRPNHead` with the ReLU inside the shared convolution.

    Args:
        head: its layers are shared.
    """

    def __init__(self, head: FoldedRPNHead) -> None:
        nn.Module.__init__(self)
        self.candidates_per_level = head.candidates_per_level
        self.proposals = head.proposals
        self.nms_iou = head.nms_iou
        self.anchors = head.anchors
        self.shared_conv = _fuse_convolution(head.rpn_conv, has_relu=True)
        self.both_conv = FusedConv2d(next(_convolutions(head.rpn_out)))

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict on every level, like `RPNHead.forward`."""
        both = [self.both_conv(self.shared_conv(x)) for x in pyramid]
        return [x[:, : self.anchors] for x in both], [x[:, self.anchors :] for x in both]


class FusedMaskHead(FoldedMaskHead):
    """`FoldedMaskHead` whose upsampling is one matrix product, without a copy before the class's mask.

    Args:
        head: its layers are shared.
    """

    def __init__(self, head: FoldedMaskHead) -> None:
        nn.Module.__init__(self)
        self.convs = nn.ModuleList(
            _fuse_convolution(each, has_relu=True, is_on_rois=True) for each in _convolutions(head.convs)
        )
        self.upsample = head.upsample
        self.conv_logits = head.conv_logits
        self.conv_res = None
        if head.conv_res is not None:
            self.conv_res = _fuse_convolution(  # type: ignore[assignment]
                head.conv_res.conv, has_relu=True, is_on_rois=True
            )
        # Stride and kernel are 2: every input pixel gives its own 2 x 2 outputs, here rows (y, x, channel).
        self._upsample_weight = head.upsample.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        bias = head.upsample.bias
        self._upsample_bias = None if bias is None else bias.repeat(4)

    def predict_class(self, mask_feat: Tensor, labels: Tensor) -> Tensor:
        """Compute the mask logits of each RoI's own class: labels [K] int64 -> [K, 28, 28]."""
        rois, channels = len(labels), self.conv_logits.in_channels
        pixels = mask_feat.permute(0, 2, 3, 1).reshape(-1, mask_feat.shape[1])
        upsampled = multiply(pixels, self._upsample_weight, self._upsample_bias, has_relu=True)
        weight = self.conv_logits.weight.flatten(1)[labels][:, :, None]
        logits = torch.bmm(upsampled.view(rois, MASK_SIDE**2, channels), weight)
        logits = logits.view(rois, MASK_POOL, MASK_POOL, 2, 2)
        if self.conv_logits.bias is not None:
            logits = logits + self.conv_logits.bias[labels][:, None, None, None, None]
        return logits.permute(0, 1, 3, 2, 4).reshape(rois, MASK_SIDE, MASK_SIDE)


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield a module's convolutions, in the order of computation."""
    return (each for each in module.modules() if isinstance(each, nn.Conv2d))


def _fuse_convolution(convolution: nn.Conv2d, *, has_relu: bool, is_on_rois: bool = False) -> nn.Module:
    if not WinogradConv2d.fits(convolution):
        return FusedConv2d(convolution, activation="relu" if has_relu else "none")
    if is_on_rois:  # many small maps share a chunk of tiles
        return WinogradConv2d(convolution, has_relu=has_relu, min_tiles=0)
    return WinogradConv2d(convolution, has_relu=has_relu)


def _fuse_layers(module: nn.Module) -> None:
    children = list(module.named_children())
    for index, (name, child) in enumerate(children):
        if isinstance(child, Bottleneck) and isinstance(child.norm(1), nn.Identity):
            setattr(module, name, FusedBottleneck(child))
        elif isinstance(child, ConvModule) and child.gn is None:
            setattr(module, name, _fuse_convolution(child.conv, has_relu=child.has_relu))
        elif isinstance(child, FoldedRPNHead):
            setattr(module, name, FusedRPNHead(child))
        elif isinstance(child, FoldedMaskHead) and all(isinstance(c, ConvModule) and c.gn is None for c in child.convs):
            setattr(module, name, FusedMaskHead(child))
        elif type(child) is nn.Linear:
            setattr(module, name, FusedLinear(child))
        elif type(child) is nn.Conv2d:  # a subclass may pad by itself (timm's Conv2dSame)
            # What follows a convolution in a folded backbone is what its batch norm's place was given.
            after_name, after = children[index + 1] if index + 1 < len(children) else ("", None)
            if isinstance(after, nn.ReLU6):
                setattr(module, name, FusedConv2d(child, activation="relu6"))
                setattr(module, after_name, nn.Identity())
            else:
                setattr(module, name, _fuse_convolution(child, has_relu=False))
        else:
            _fuse_layers(child)
