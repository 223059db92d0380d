"""The convolutions of a CPU compute what PyTorch's do, whatever the shape; PyTorch still has the operators they use."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.inference import cpu_conv
from htc_model.inference.cpu_conv import FusedConv2d, FusedLinear, WinogradConv2d, is_supported

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available(),
    reason="this PyTorch is built without oneDNN or MKL, so the network runs PyTorch's own layers",
)
pytestmark = needs_onednn


def image(batch: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width + batch)
    x = torch.randn(batch, channels, height, width, generator=generator).relu()
    return x.contiguous(memory_format=torch.channels_last)


def convolution(inputs: int, outputs: int, kernel: int = 3, **settings: int) -> nn.Conv2d:
    torch.manual_seed(inputs + outputs)
    return nn.Conv2d(inputs, outputs, kernel, **settings).requires_grad_(requires_grad=False)


def exact(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve in float64."""
    bias = None if layer.bias is None else layer.bias.double()
    return F.conv2d(x.double(), layer.weight.double(), bias, padding=1)


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the root mean square of the error, in standard deviations."""
    return float((found.double() - wanted).square().mean().sqrt() / wanted.std())


def test_this_pytorch_has_the_operators() -> None:
    """They are not documented: without them the network falls back to PyTorch's layers, which must not go unnoticed."""
    assert is_supported()


def test_operators_that_are_gone_or_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    for broken in (gone, lambda rows, *_, **__: rows.new_zeros(3, 8)):
        monkeypatch.setattr(cpu_conv, "multiply", broken)
        is_supported.cache_clear()
        assert not is_supported()
    monkeypatch.undo()
    is_supported.cache_clear()
    assert is_supported()


def test_the_probe_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    is_supported.cache_clear()
    is_supported()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [
        pytest.param(1, 8, 8, id="whole tiles"),
        pytest.param(1, 13, 18, id="neither side is a multiple of four"),
        pytest.param(1, 3, 2, id="smaller than a tile"),
        pytest.param(1, 60, 40, id="several strips"),
        pytest.param(24, 14, 14, id="RoIs in several chunks"),
        pytest.param(2, 30, 50, id="images that share no chunk"),
        pytest.param(1, 4, 700, id="a row of tiles that is too long"),
    ],
)
@pytest.mark.parametrize("has_relu", [False, True])
@torch.inference_mode()
def test_winograd_is_the_convolution(batch: int, height: int, width: int, *, has_relu: bool) -> None:
    layer, x = convolution(32, 64, padding=1), image(batch, 32, height, width)
    wanted = exact(layer, x)
    found = WinogradConv2d(layer, has_relu=has_relu, min_tiles=0)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, wanted.relu() if has_relu else wanted) < 3e-6


@torch.inference_mode()
def test_winograd_rounds_little_more_than_a_direct_convolution() -> None:
    """Three times at most; the usual interpolation points 0, +-1, +-2 would have five times the error."""
    layer, x = convolution(256, 256, padding=1, bias=False), image(1, 256, 16, 16)
    wanted = exact(layer, x)
    assert error(WinogradConv2d(layer, min_tiles=0)(x), wanted) < 1.5e-6


@torch.inference_mode()
def test_an_image_is_computed_alike_in_any_batch() -> None:
    layer, x = WinogradConv2d(convolution(32, 32, padding=1)), image(3, 32, 50, 44)
    together = layer(x)
    for index in range(3):
        assert torch.equal(layer(x[index : index + 1]), together[index : index + 1])


@torch.inference_mode()
def test_infinite_pixels_stay_noticeable() -> None:
    """The network raises an error for numbers that are not finite; a transform must not hide them."""
    layer, x = WinogradConv2d(convolution(32, 32, padding=1), min_tiles=0), image(1, 32, 8, 8)
    x[0, 3, 2, 2] = float("inf")
    assert not torch.isfinite(layer(x)).all()


@pytest.mark.parametrize(
    ("layer", "is_fit"),
    [
        (nn.Conv2d(256, 256, 3, padding=1), True),
        (nn.Conv2d(256, 256, 3, padding=1, stride=2), False),
        (nn.Conv2d(256, 256, 3, padding=1, groups=32), False),
        (nn.Conv2d(256, 256, 3, padding=2, dilation=2), False),
        (nn.Conv2d(256, 256, 3), False),
        (nn.Conv2d(256, 256, 1), False),
        (nn.Conv2d(128, 256, 3, padding=1), False),
    ],
)
def test_layers_that_winograd_takes(layer: nn.Conv2d, *, is_fit: bool) -> None:
    assert WinogradConv2d.fits(layer) is is_fit


@pytest.mark.parametrize(
    "layer",
    [
        convolution(3, 16, 7, stride=2, padding=3, bias=False),
        convolution(16, 40, 1),
        convolution(16, 32, 1, stride=2),
        convolution(32, 32, 3, padding=1, groups=32),
        convolution(32, 32, 3, padding=1, groups=4),
    ],
    ids=["stem", "1x1", "shortcut", "depthwise", "grouped"],
)
@torch.inference_mode()
def test_fused_convolutions(layer: nn.Conv2d) -> None:
    x = image(2, layer.in_channels, 11, 14)
    plain = layer(x)
    shortcut = torch.randn(plain.shape).contiguous(memory_format=torch.channels_last)
    before = shortcut.clone()
    torch.testing.assert_close(FusedConv2d(layer)(x), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(FusedConv2d(layer, activation="relu")(x), plain.relu(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        FusedConv2d(layer, activation="relu6")(8 * x), F.relu6(layer(8 * x)), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(FusedConv2d(layer)(x, shortcut), (plain + shortcut).relu(), rtol=1e-4, atol=1e-5)
    assert torch.equal(shortcut, before)


@pytest.mark.parametrize("rows", [0, 1, 37])
@torch.inference_mode()
def test_fused_linear_layers(rows: int) -> None:
    layer, x = nn.Linear(50, 20), torch.randn(rows, 50)
    torch.testing.assert_close(FusedLinear(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(FusedLinear(layer, has_relu=True)(x), layer(x).relu(), rtol=1e-4, atol=1e-5)
