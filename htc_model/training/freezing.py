"""Freezing: which parameters train, and whether batch norms update their statistics."""

from torch import nn

from htc_model.config import ModelConfigError
from htc_model.network.detector import HTC

# A ResNet's stem is stage 0. Stages 0 and 1 keep their ImageNet weights (MMDetection, frozen_stages=1).
RESNET_FROZEN_STAGES = 1
_EFFICIENTNET_STEM = ("conv_stem", "bn1")


def freeze_backbone(model: HTC, stages: int) -> list[str]:
    """Stop the gradients of the backbone's stem and first stages.

    Args:
        model: any network.
        stages: 0 freezes the stem alone, 1 the stem and C2's stage, up to 4; -1 freezes nothing.

    Returns:
        the names of the frozen parameters, with their `backbone.` prefix.

    Raises:
        ModelConfigError: `stages` is not in [-1, 4].
    """
    if not -1 <= stages <= 4:
        raise ModelConfigError(f"frozen stages run from -1 (none) to 4 (the whole backbone), not {stages}.")
    frozen = []
    prefixes = tuple(f"{part}." for part in _parts(model, stages))
    for name, parameter in model.backbone.named_parameters():
        is_frozen = name.startswith(prefixes) if prefixes else False
        parameter.requires_grad_(not is_frozen)
        if is_frozen:
            frozen.append(f"backbone.{name}")
    return frozen


def set_training_mode(model: HTC, *, has_frozen_batch_norm: bool) -> None:
    """Switch to training mode; with frozen batch norm, every batch norm keeps its stored statistics.

    Detection batches are too small for batch statistics. The norms' scale and shift are still trained (MMDetection's
    `norm_eval`), except where `freeze_backbone` stopped them. Call it after every `model.train()`, which switches the
    norms back.
    """
    model.train()
    if has_frozen_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _parts(model: HTC, stages: int) -> list[str]:
    if stages < 0:
        return []
    if model.config.backbone.kind == "efficientnet_lite0":
        # The seven groups of blocks end C2..C5 after groups 1, 2, 4 and 6.
        groups = (0, 2, 3, 5, 7)[stages]
        return [*_EFFICIENTNET_STEM, *(f"blocks.{index}" for index in range(groups))]
    if model.config.backbone.kind == "senet154":
        return [f"layer{index}" for index in range(stages + 1)]
    stem = "gn1" if model.config.backbone.norm == "group_published" else "bn1"
    return ["conv1", stem, *(f"layer{index}" for index in range(1, stages + 1))]
