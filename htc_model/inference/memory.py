"""How much memory a network needs at least, estimated from its configuration."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from htc_model.config import ModelConfig
from htc_model.network.detector import HTC
from htc_model.preprocess import padded_size

_FLOAT32_BYTES = 4
# Features that are held at once, in bytes per channel of the pyramid and padded pixel of the input. Measured on a CPU,
# as the rise of the resident set from 416 x 640 to 800 x 1312 pixels: 0.9 to 2.9 for six presets (docs/ensembles.md),
# 5.0 for SENet-154, whose first layers are wide.
ACTIVATION_BYTES = 2.9
_OF_BACKBONES = {"senet154": 5.0}


@dataclass(frozen=True)
class NetworkMemory:
    """What one network needs to see one image.

    parameters: bytes of its weights. activations: bytes of features of its largest view. view: (height, width) of that,
    padded, in pixels.
    """

    parameters: int
    activations: int
    view: tuple[int, int]

    @property
    def total(self) -> int:
        """Both together, in bytes."""
        return self.parameters + self.activations


def estimate_memory(config: ModelConfig) -> NetworkMemory:
    """Estimate the memory of a network in float32 for one image of the largest padded shape, or its largest view."""
    resizes = [replace(config.resize, long_side=view.long_side, short_side=view.short_side) for view in config.views]
    shapes = [padded_size(each.short_side, each.long_side, each) for each in resizes or [config.resize]]
    view = max(shapes, key=lambda shape: shape[0] * shape[1])
    each = _OF_BACKBONES.get(config.backbone.kind, ACTIVATION_BYTES)
    activations = int(each * config.fpn_channels * view[0] * view[1])
    return NetworkMemory(_parameter_bytes(replace(config, views=())), activations, view)


@lru_cache(maxsize=32)
def _parameter_bytes(config: ModelConfig) -> int:
    # On the meta device nothing is allocated.
    with torch.device("meta"):
        network = HTC(config)
    return _FLOAT32_BYTES * sum(int(each.numel()) for each in network.state_dict().values())
