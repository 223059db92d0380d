"""Deterministic untrained weights: every value depends only on its key's name and shape.

`weights: untrained` means these: real network structure, real cost, reproducible on every machine, and meaningless
output. The numbers are chosen so that activations neither vanish nor explode and some proposals and detections remain,
not to resemble training. Nothing depends on the order of keys, so two implementations with the same key names get the
same weights; this is how the network is compared with MMDetection's.

Two rules need a neighbour: the scale of a weight-standardised convolution follows its kernel's fan-in, and the gains of
some networks that would saturate otherwise (`_FAMILY_FACTORS`) are known by the keys that only they have.

For key K of shape S, one generator `PCG64(crc32(K))` gives one float32 sample of shape S in C order, standard normal or
uniform; the first matching entry of `_RULES` scales it.
"""

import re
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Gains over He's sqrt(2 / fan_in), tuned by the spread of each layer's output on real images: class logits must spread
# far enough to cross the score threshold, box deltas must stay within a fraction of the box.
_GAINS: tuple[tuple[re.Pattern[str], float], ...] = tuple(
    (re.compile(pattern), gain)
    for pattern, gain in (
        (r"^backbone\.conv1\.weight$", 3.0),
        (r"^neck\.lateral_convs\.\d+\.conv\.weight$", 0.45),
        (r"^neck\.fpn_convs\.0\.conv\.weight$", 0.2),
        (r"^neck\.fpn_convs\.1\.conv\.weight$", 0.4),
        (r"^neck\.fpn_convs\.2\.conv\.weight$", 1.0),
        (r"^neck\.fpn_convs\.3\.conv\.weight$", 1.6),
        (r"^rpn_head\.rpn_cls\.weight$", 1.2),
        (r"^rpn_head\.rpn_reg\.weight$", 0.2),
        (r"\.fc_cls\.weight$", 4.0),
        (r"\.fc_reg\.weight$", 0.7),
        (r"^roi_head\.mask_head\..*conv_logits\.weight$", 4.0),
        (r"^roi_head\.semantic_head\.conv_logits\.weight$", 1.5),
    )
)
# Networks with more layers between the same thresholds need other gains, else features explode and scores are 0 or 1.
# A family is known by a key; the first matching factor multiplies what the rules give.
_FAMILY_FACTORS: tuple[tuple[str, tuple[tuple[re.Pattern[str], float], ...]], ...] = tuple(
    (known_by, tuple((re.compile(pattern), factor) for pattern, factor in factors))
    for known_by, factors in (
        (
            "neck.downsample_convs.0.conv.weight",  # PAFPN
            ((r"^neck\.downsample_convs\..*weight$", 0.3), (r"^neck\.pafpn_convs\..*weight$", 0.5)),
        ),
        (
            "roi_head.feat_relay_head.fc.weight",  # SCNet
            (
                (r"\.fc_cls\.weight$", 0.3),
                (r"glbctx_head\.convs\..*conv\d\.weight$", 0.7),
                (r"feat_relay_head\.fc\.weight$", 0.3),
            ),
        ),
        (
            "neck.rfp_weight.weight",  # DetectoRS
            (
                (r"\.offset_[sl]\.weight$", 0.02),
                (r"(pre|post)_context\.weight$", 0.1),
                (r"\.rfp_conv\.weight$", 0.3),
                (r"\.weight_diff$", 0.1),
                (r"\.fc_cls\.weight$", 2.5),
            ),
        ),
        # SENet-154's three layers before the first stage weaken the signal tenfold against ResNet's one.
        ("backbone.layer0.conv1.weight", ((r"^backbone\.layer0\.bn3\.weight$", 10.0),)),
        ("rpn_head.conv_shape.weight", ((r"^rpn_head\.conv_(loc|shape)\.weight$", 0.3),)),  # guided anchoring
    )
)
# Most anchors and RoIs are background: without these biases every box would pass the thresholds.
_RPN_OBJECTNESS_BIAS = -4.0
_BACKGROUND_BIAS = 10.5

_Values = NDArray[np.float32] | NDArray[np.int64]


def _normal(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return _generator(key).standard_normal(shape, dtype=np.float32)


def _uniform(key: str, shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float32]:
    # high - low is rounded once, from double: 1.2 - 0.8 in float32 arithmetic would be another number.
    sample = _generator(key).random(shape, dtype=np.float32)
    scaled: NDArray[np.float32] = np.float32(low) + np.float32(high - low) * sample
    return scaled


def _generator(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def _bias(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    bias = _normal(key, shape) * np.float32(0.01)
    if key == "rpn_head.rpn_cls.bias":
        bias += np.float32(_RPN_OBJECTNESS_BIAS)
    if key.endswith(".fc_cls.bias"):
        bias[-1] += np.float32(_BACKGROUND_BIAS)
    return bias


def _norm_scale(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    # EfficientNet-Lite's many depthwise convolutions and clipped ReLUs each weaken the signal; with this range its
    # C2..C5 spread as ResNet's do.
    if key.startswith("backbone.blocks."):
        return _uniform(key, shape, 0.75, 1.5)
    # A residual block adds its third norm's output to its shortcut: large scales would make deep backbones explode.
    if key.endswith(".bn3.weight"):
        return _uniform(key, shape, 0.4, 0.8)
    if key.endswith(".downsample.1.weight"):
        return _uniform(key, shape, 1.0, 1.4)
    return _uniform(key, shape, 0.5, 1.0)


def _kernel(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Each filter's mean is removed: after a ReLU all inputs are positive, and their mean would dominate.
    rows = _normal(key, shape).reshape(shape[0], -1)
    rows = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    gain = next((gain for pattern, gain in _GAINS if pattern.search(key)), 1.0)
    scaled: NDArray[np.float32] = rows.reshape(shape) * np.float32(gain * np.sqrt(2.0 / _fan_in(shape)))
    return scaled


def _fan_in(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


def _offset_kernel(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Deformable convolution: 0.1 to 0.2 pixels of offset that depend on the image ...
    return _normal(key, shape) * np.float32(0.2 * np.sqrt(1.0 / _fan_in(shape)))


# The first matching suffix counts; all other keys are a norm's scale (one dimension) or a kernel.
_RULES: tuple[tuple[str, Callable[[str, tuple[int, ...]], NDArray[np.float32]]], ...] = (
    ("running_mean", lambda key, shape: _normal(key, shape) * np.float32(0.05)),
    ("running_var", lambda key, shape: _uniform(key, shape, 0.8, 1.2)),
    # ... added to half a pixel of constant offset per tap.
    ("conv_offset.bias", lambda key, shape: _normal(key, shape) * np.float32(0.5)),
    ("conv_offset.weight", _offset_kernel),
    (".bias", _bias),
)


def untrained_values(key: str, shape: tuple[int, ...]) -> _Values:
    """Generate the values of one key.

    Args:
        key: the full state-dict key, MMDetection's (or timm's, under `backbone.`) spelling.
        shape: of the tensor, outputs first.

    Returns:
        float32 of that shape; int64 zeros for `num_batches_tracked`.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    for suffix, generate in _RULES:
        if key.endswith(suffix):
            return generate(key, shape)
    return _norm_scale(key, shape) if len(shape) == 1 else _kernel(key, shape)


def untrained_state(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Generate deterministic values for every key of a state dict.

    Args:
        state_dict: only names, shapes and dtypes are read, so the model may be on the `meta` device.

    Returns:
        new CPU tensors with the same keys, order, shapes and dtypes.
    """
    factors = [factor for known_by, family in _FAMILY_FACTORS if known_by in state_dict for factor in family]
    filled: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        layer, _, leaf = key.rpartition(".")
        if leaf in {"weight_gamma", "weight_beta"}:
            kernel = state_dict[f"{layer}.weight"]
            values = _standardised(key, tuple(tensor.shape), _fan_in(tuple(kernel.shape)))
        else:
            values = untrained_values(key, tuple(tensor.shape))
        factor = next((factor for pattern, factor in factors if pattern.search(key)), None)
        values = np.ascontiguousarray(values if factor is None else values * np.float32(factor))
        filled[key] = torch.from_numpy(values).reshape(tensor.shape).to(tensor.dtype)
    return filled


def _standardised(key: str, shape: tuple[int, ...], fan_in: int) -> _Values:
    """Generate the scale or the shift of a weight-standardised kernel, so that it spreads as `_kernel`'s do."""
    drawn = _uniform(key, shape, 0.8, 1.2) if key.endswith("gamma") else _normal(key, shape) * np.float32(0.01)
    return drawn * np.float32(np.sqrt(2 / fan_in))
