"""Builds what a training run starts from: model config, train config, network with initial weights, optimiser."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from htc_model.config import ModelConfig, ModelConfigError, config_from_dict, load_preset
from htc_model.network.detector import HTC, build_model
from htc_model.semantic_classes import OTHER
from htc_model.training.freezing import freeze_backbone
from htc_model.training.pretrained import InitialReport, initialise_heads, load_imagenet_lite0, load_initial
from htc_model.training.spec import ModelSection, OptimiserSection, SamplingSection, TrainingSpec
from htc_model.training.synchronised_norm import synchronise_batch_norms
from htc_model.training.train_config import TrainConfig, train_config_for
from htc_model.weights.load import LoadedWeights

# From the name in `model.initial` to weights, or a bare state dict; the caller knows where weights are stored.
LoadState = Callable[[str], LoadedWeights | Mapping[str, Tensor]]


# Parts of a network for which there are no losses.
_UNTRAINABLE = {"scnet": "SCNet's global context and feature relay", "guided": "guided anchoring"}


def build_model_config(
    section: ModelSection, classes: Sequence[str], category_ids: Sequence[int], *, has_stuff: bool = False
) -> ModelConfig:
    """Adapt a preset to the data's classes and to the spec's model section.

    The semantic branch learns the labels of the data's own maps if the data has_stuff; else its maps are made from the
    masks, with one class per object class and one for the rest.

    Raises:
        ModelConfigError: the preset is not known, cannot be trained, or has fewer stages than requested.
    """
    config = load_preset(section.preset)
    for part, what in _UNTRAINABLE.items():
        if part in {config.roi_head, config.rpn}:
            raise ModelConfigError(
                f"{config.name} cannot be trained here: the losses of {what} are not implemented; it only "
                "runs. Presets of HTC, Cascade and Mask R-CNN, PANet and DetectoRS can be trained."
            )
    if section.stages is not None:
        config = _with_stages(config, section.stages)
    resize = replace(
        config.resize,
        short_side=section.short_side or config.resize.short_side,
        long_side=section.long_side or config.resize.long_side,
    )
    switches = {
        name: value
        for name in ("interleaved", "mask_info_flow", "semantic", "neck", "roi_head")
        if (value := getattr(section, name)) is not None
    }
    names = section.semantic_names or () if has_stuff else (*classes, OTHER)
    return replace(
        config,
        classes=tuple(classes),
        category_ids=tuple(category_ids),
        semantic_classes=len(names) or section.semantic_classes or config.semantic_classes,
        semantic_names=tuple(names) if switches.get("semantic", config.semantic) else (),
        backbone=replace(config.backbone, norm=section.norm if section.norm != "batch" else config.backbone.norm),
        resize=resize,
        **switches,
    )


def _with_stages(config: ModelConfig, stages: int) -> ModelConfig:
    """Keep the first stages only; a single one regresses a box per class, as the published Mask R-CNN does."""
    if stages > config.num_stages:
        raise ModelConfigError(f"{config.name} has {config.num_stages} stages; model.stages cannot be {stages}.")
    return replace(config, box_stds=config.box_stds[:stages], has_class_specific_boxes=stages == 1)


def build_train_config(config: ModelConfig, section: SamplingSection) -> TrainConfig:
    """Take the published train config of the network's kind, with the counts that the spec sets."""
    train_config = train_config_for(config)
    proposals = section.proposals or train_config.proposals
    rois = section.rois or train_config.roi_sample.count
    return replace(train_config, proposals=proposals, roi_sample=replace(train_config.roi_sample, count=rois))


def build_training_model(
    spec: TrainingSpec, config: ModelConfig, load_state: LoadState
) -> tuple[HTC, InitialReport | None]:
    """Build the network with its initial weights and its frozen parts.

    Args:
        spec: its seed and model section are read.
        config: from `build_model_config`.
        load_state: called with `model.initial` if that names a file.

    Returns:
        the network, and the report on its initial weights; None if all layers start at random.

    Raises:
        ModelConfigError: ImageNet weights are requested but not available, or the initial weights are another
            network's.
    """
    torch.manual_seed(spec.seed)
    model = build_model(config)
    initialise_heads(model, spec.seed)
    report = None
    if spec.model.initial == "imagenet":
        if config.backbone.kind != "efficientnet_lite0":
            raise ModelConfigError(
                f"ImageNet weights are available for EfficientNet-Lite0 only; for {config.name} name a weights file as "
                "model.initial, such as torchvision's ResNet."
            )
        report = load_initial(model, load_imagenet_lite0())
    elif spec.model.initial != "none":
        loaded = load_state(spec.model.initial)
        if isinstance(loaded, LoadedWeights):
            _check_backbone(spec.model.initial, loaded, config)
            report = load_initial(model, loaded.state, loaded.metadata.get("classes"))
        else:
            report = load_initial(model, loaded)
    freeze_backbone(model, spec.model.frozen_stages)
    if spec.model.batch_norm == "synchronised":
        synchronise_batch_norms(model)
    return model, report


def _check_backbone(initial: str, loaded: LoadedWeights, config: ModelConfig) -> None:
    """Refuse weights of a network with another backbone, of which few tensors would fit by chance."""
    described = loaded.metadata.get("config")
    if not isinstance(described, dict):
        return
    theirs = config_from_dict(described)
    if replace(theirs.backbone, norm=config.backbone.norm) != config.backbone:
        raise ModelConfigError(
            f"{initial} holds weights of {theirs.name}, whose backbone is not that of {config.name}; set model.preset "
            f"(--model) to {theirs.name}, or begin with other weights."
        )


def build_optimiser(model: HTC, section: OptimiserSection) -> torch.optim.Optimizer:
    """Build AdamW or SGD; norms and biases do not decay, the backbone may have a lower learning rate."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = name.startswith("backbone."), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": section.learning_rate * (section.trunk_factor if is_backbone else 1.0),
            "weight_decay": section.weight_decay if decays else 0.0,
        }
        for (is_backbone, decays), parameters in groups.items()
    ]
    for group in settings:
        group["base_lr"] = group["lr"]
    if section.kind == "adamw":
        return torch.optim.AdamW(settings)
    return torch.optim.SGD(settings, lr=section.learning_rate, momentum=section.momentum)
