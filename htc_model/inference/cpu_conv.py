"""Convolutions and linear layers as a CPU runs them fastest: all of them in oneDNN, and 3x3 ones by Winograd.

PyTorch's eager mode gives 1x1 convolutions and linear layers to MKL, which on AMD processors with AVX-512 reaches 40 %
of oneDNN's rate. The operators used here are those that `torch.compile` emits for a CPU; they are not documented, so
`is_supported` tries them first.

3x3 convolutions of stride 1 use Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv:1509.09308): a quarter
of the multiplications. Its rounding depends on the interpolation points. For the usual ones, 0, +-1, +-2 and infinity,
the result's error is over four times a direct convolution's; for the points here it is twice (docs/numerics.md). Which
layers use it follows from their shapes alone, never from a measured time: equal machines give equal bits.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Interpolation points, beside infinity. Among pairs whose products float32 holds exactly, +-5/8 and +-3/2 gave the
# smallest error on random data (Barabasz et al., arXiv:1803.10986, say why a point and about its inverse are good).
_POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
_TILE = 4  # outputs per tile and axis
_TAPS = _TILE + 2
# With fewer channels the transforms cost what the saved multiplications are worth.
_MIN_CHANNELS = 256
# Tiles multiplied at a time. Their transformed inputs and products (36 x 256 channels, 6 MiB each) stay in the cache.
# oneDNN's layout of weights depends on this number, so it is the same for every image, and the rest stays empty.
_CHUNK_TILES = 168
# Maps with fewer tiles would leave more than half of a chunk empty; RoIs share chunks.
_MIN_TILES = 84

Activation = Literal["none", "relu", "relu6"]
# Name, scalars and algorithm, as oneDNN's operators take them.
_ACTIVATIONS: Mapping[Activation, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}


@functools.cache
def is_supported() -> bool:
    """Return whether this PyTorch has oneDNN's fused operators, and they compute what the public ones compute."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_mkl and has_onednn and torch.backends.mkldnn.enabled):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 5, 7, generator=generator).contiguous(memory_format=torch.channels_last)
    rows = torch.randn(3, 16, generator=generator)
    convolution = nn.Conv2d(16, 16, 3, padding=1, device="meta").to_empty(device="cpu")
    linear = nn.Linear(16, 8, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in (*convolution.parameters(), *linear.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    try:
        with torch.inference_mode():
            pairs = [
                (FusedConv2d(convolution, activation="relu")(x), F.relu(convolution(x))),
                (FusedConv2d(convolution, activation="relu6")(x), F.relu6(convolution(x))),
                (WinogradConv2d(convolution, min_tiles=0)(x), convolution(x)),
                (FusedConv2d(convolution)(x, x), F.relu(convolution(x) + x)),
                (FusedLinear(linear, has_relu=True)(rows), F.relu(linear(rows))),
            ]
    except (RuntimeError, AttributeError, TypeError):
        return False
    return all(torch.allclose(ours, expected, rtol=1e-4, atol=1e-4) for ours, expected in pairs)


class FusedConv2d(nn.Module):
    """A convolution in oneDNN, with what follows it in the same pass; for inference.

    Weights stay in PyTorch's layout: oneDNN's own depends on the processor and the image's shape, and weights packed
    for one shape cost more in another than bringing them into the layout at every call.

    Args:
        convolution: float32, zero padding; its parameters are shared.
        activation: applied to the result: "none", "relu" or "relu6".
    """

    def __init__(self, convolution: nn.Conv2d, *, activation: Activation = "none") -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self._activation = _ACTIVATIONS[activation]
        self._settings = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Map [B, C, H, W] like the convolution; with a shortcut of the result's shape, add it and apply a ReLU."""
        if shortcut is None:
            return _convolve(x, self.weight, self.bias, *self._settings, *self._activation)
        operator = torch.ops.mkldnn._convolution_pointwise.binary
        result: Tensor = operator(x, shortcut, self.weight, self.bias, *self._settings, "add", 1.0, "relu", [], "")
        return result


class FusedLinear(nn.Module):
    """A linear layer in oneDNN, with its ReLU in the same pass; for inference.

    Args:
        linear: float32; its parameters are shared.
        has_relu: apply a ReLU to the result.
    """

    def __init__(self, linear: nn.Linear, *, has_relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.has_relu = has_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs] to [N, outputs]."""
        return multiply(x, self.weight, self.bias, has_relu=self.has_relu)


def _convolve(*arguments: object) -> Tensor:
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(*arguments)
    return result


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, *, has_relu: bool) -> Tensor:
    """Return rows [N, inputs] times weight [outputs, inputs] transposed plus bias [outputs], with or without ReLU."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "relu" if has_relu else "none", [], "")
    return result


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1 by Winograd's F(4x4, 3x3); for inference.

    Args:
        convolution: float32, one that `fits`; its parameters are shared, and kept transformed as well, four times their
            size, computed in float64 and rounded once.
        has_relu: apply a ReLU to the result.
        min_tiles: maps of fewer 4x4 tiles are convolved directly.
    """

    def __init__(self, convolution: nn.Conv2d, *, has_relu: bool = False, min_tiles: int = _MIN_TILES) -> None:
        super().__init__()
        self.direct = FusedConv2d(convolution, activation="relu" if has_relu else "none")
        self.has_relu = has_relu
        self.min_tiles = min_tiles
        self.channels = convolution.out_channels
        input_side, kernel_side, output_side = _transforms()
        self._input_side, self._output_side = input_side.float()[None], output_side.float()[None]
        weight = convolution.weight.detach().double()
        weights = torch.einsum("ia,ocab,jb->ijoc", kernel_side, weight, kernel_side).float()
        self._groups = ((0, 0), (1, 1), (1, 1), _TAPS * _TAPS)
        size = (1, _TAPS * _TAPS * convolution.in_channels, 1, _CHUNK_TILES)
        self._weights = torch.ops.mkldnn._reorder_convolution_weight(
            weights.flatten(0, 2)[:, :, None, None].contiguous(), *self._groups, size
        )
        self._biases: Tensor | None = None
        if convolution.bias is not None:
            # A bias of the products that the output transform turns into the convolution's.
            ones = torch.linalg.pinv(output_side).sum(dim=1)
            self._biases = torch.einsum("i,j,o->ijo", ones, ones, convolution.bias.detach().double()).flatten().float()

    @staticmethod
    def fits(convolution: nn.Conv2d) -> bool:
        """Return whether a convolution is one that this class computes, and faster."""
        is_plain = convolution.dilation == (1, 1) and convolution.groups == 1
        is_same_size = convolution.stride == convolution.padding == (1, 1)
        channels = min(convolution.in_channels, convolution.out_channels)
        return convolution.kernel_size == (3, 3) and is_plain and is_same_size and channels >= _MIN_CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, outputs, H, W], channels-last."""
        height, width = x.shape[2:]
        down, across = -(-height // _TILE), -(-width // _TILE)
        if down * across < self.min_tiles or across > _CHUNK_TILES:
            direct: Tensor = self.direct(x)
            return direct
        images = x.permute(0, 2, 3, 1).contiguous()
        result = images.new_empty(*images.shape[:3], self.channels)
        # Large maps one by one in strips of rows of tiles, small ones several together.
        together, strip = max(1, _CHUNK_TILES // (down * across)), _CHUNK_TILES // across
        for first in range(0, len(images), together):
            chosen = slice(first, first + together)
            for top in range(0, down, strip):
                self._convolve_rows(images[chosen], result[chosen], top, min(down, top + strip))
        return result.permute(0, 3, 1, 2)

    def _convolve_rows(self, images: Tensor, result: Tensor, top: int, bottom: int) -> None:
        """Convolve the rows of tiles from `top` to `bottom`: images [b, H, W, C] into result [b, H, W, K]."""
        batch, width = images.shape[0], images.shape[2]
        down, across = bottom - top, -(-width // _TILE)
        tiles = self._input_tiles(images, top, bottom)
        groups = tiles.view(1, 1, _CHUNK_TILES, -1).permute(0, 3, 1, 2)
        products = _convolve(groups, self._weights, self._biases, *self._groups, *_ACTIVATIONS["none"])
        count = batch * down * across
        products = products.permute(0, 2, 3, 1).view(_CHUNK_TILES, _TAPS, -1)[:count]
        by_row = torch.bmm(self._output_side.expand(count, -1, -1), products).view(count * _TILE, _TAPS, -1)
        outputs = torch.bmm(self._output_side.expand(count * _TILE, -1, -1), by_row)
        outputs = outputs.view(batch, down, across, _TILE, _TILE, -1).permute(0, 1, 3, 2, 4, 5)
        target = result[:, top * _TILE : bottom * _TILE]
        source = outputs.reshape(batch, down * _TILE, across * _TILE, -1)[:, : target.shape[1], :width]
        if self.has_relu:
            torch.clamp(source, min=0, out=target)
        else:
            target.copy_(source)

    def _input_tiles(self, images: Tensor, top: int, bottom: int) -> Tensor:
        """Transform the inputs of rows of tiles: [b, H, W, C] -> [chunk, 6, 6 * C], zero after the last tile."""
        batch, height, width, channels = images.shape
        down, across = bottom - top, -(-width // _TILE)
        first, last = top * _TILE - 1, bottom * _TILE + 1
        # One tile more across than there is: tiles then follow one another at equal distances, also from row to row.
        padding = (0, 0, 1, (across + 1) * _TILE - 1 - width, max(0, -first), max(0, last - height))
        pixels = F.pad(images[:, max(0, first) : last], padding)
        count = pixels.numel() // (_TILE * channels)
        by_column = images.new_empty(count, _TAPS, channels)
        # The very last one would read beyond the end, and is not used.
        windows = pixels.as_strided((count - 1, _TAPS, channels), (_TILE * channels, channels, 1))
        torch.bmm(self._input_side.expand(count - 1, -1, -1), windows, out=by_column[:-1])
        by_column = by_column.view(batch, -1, across + 1, _TAPS * channels)
        tiles = images.new_empty(_CHUNK_TILES, _TAPS, _TAPS * channels)
        side = self._input_side.expand(across, -1, -1)
        done = 0
        for image in by_column:
            for row in range(down):
                inputs = image[row * _TILE : row * _TILE + _TAPS, :across].transpose(0, 1)
                torch.bmm(side, inputs, out=tiles[done : done + across])
                done += across
        tiles[done:] = 0
        return tiles


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return the transforms of inputs [6, 6], kernels [6, 3] and products [4, 6], float64 (Toom-Cook)."""
    inputs, kernels = torch.zeros(_TAPS, _TAPS, dtype=torch.float64), torch.zeros(_TAPS, 3, dtype=torch.float64)
    outputs = torch.zeros(_TILE, _TAPS, dtype=torch.float64)
    for row, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        inputs[row, :-1] = torch.tensor(_polynomial(others))
        norm = math.prod(point - other for other in others)
        kernels[row] = torch.tensor([point**power / norm for power in range(3)])
        outputs[:, row] = torch.tensor([point**power for power in range(_TILE)])
    inputs[-1] = torch.tensor(_polynomial(_POINTS))
    kernels[-1, -1] = outputs[-1, -1] = 1.0
    return inputs, kernels, outputs


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Return the coefficients of the product of (x - root), lowest power first."""
    coefficients = [1.0]
    for root in roots:
        shifted = [0.0, *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, 0.0], strict=True)]
    return coefficients
