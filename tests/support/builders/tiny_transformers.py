"""Tiny random checkpoints of every family of transformers that the adapter knows, from a config, without a hub."""

from pathlib import Path
from typing import Any

import torch

CLASSES = {0: "person", 1: "hat", 2: "dog"}
FAMILIES = ("mask2former", "maskformer", "eomt", "detr", "conditional_detr", "rf_detr")
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_QUERIES = 12


def save_checkpoint(
    family: str, folder: Path, *, seed: int = 0, labels: dict[int, str] | None = None, **processor: Any
) -> Path:
    """Save a checkpoint with config, weights and image processor.

    Args:
        family: of FAMILIES.
        labels: id2label. processor: settings of the image processor, instead of the tiny ones.

    Returns:
        The folder.
    """
    id2label = labels or CLASSES
    label2id = {name: label for label, name in id2label.items()}
    torch.manual_seed(seed)
    network, settings = _BUILDERS[family]({"id2label": id2label, "label2id": label2id})
    _spread(network)
    network.eval().save_pretrained(folder)
    _processor_class(family)(**{**settings, **processor}).save_pretrained(folder)
    return folder


def _spread(network: Any) -> None:
    """Make scores and masks of a random network differ from query to query and from pixel to pixel."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_head = any(part in name for part in ("class_predictor", "class_labels_classifier", "class_embed"))
            if is_head and parameter.ndim > 1:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
            elif is_head:
                parameter.zero_()
            elif any(
                part in name for part in ("queries_embedder", "queries_features", "query_position", "query.weight")
            ):
                parameter.normal_(0, 2.0)
            elif (
                any(part in name for part in ("bbox_predictor", "bbox_embed", "mask_embedder")) and parameter.ndim == 2
            ):
                parameter.mul_(6.0)
            elif "decoder" in name and parameter.ndim == 2:
                parameter.mul_(4.0)


def _mask2former(labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=_STAGES
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=_QUERIES,
        **labels,
    )
    return Mask2FormerForUniversalSegmentation(config), {"size": {"height": 64, "width": 64}, "size_divisor": 0}


def _maskformer(labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

    decoder = DetrConfig(
        d_model=16,
        decoder_layers=1,
        encoder_layers=1,
        decoder_attention_heads=2,
        encoder_attention_heads=2,
        decoder_ffn_dim=32,
        encoder_ffn_dim=32,
        num_queries=_QUERIES,
        backbone_config=ResNetConfig(**_RESNET, out_features=_STAGES),
    )
    config = MaskFormerConfig(
        backbone_config=ResNetConfig(**_RESNET, out_features=_STAGES),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        **labels,
    )
    settings = {"size": {"shortest_edge": 64, "longest_edge": 96}, "size_divisor": 32}
    return MaskFormerForInstanceSegmentation(config), settings


def _eomt(labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_ratio=2,
        num_blocks=2,
        num_upscale_blocks=1,
        num_queries=_QUERIES,
        num_register_tokens=1,
        **labels,
    )
    settings = {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True}
    return EomtForUniversalSegmentation(config), settings


def _detr_parts() -> dict[str, Any]:
    from transformers import ResNetConfig

    return {
        "use_timm_backbone": False,
        "backbone_config": ResNetConfig(**_RESNET, out_features=_STAGES),
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": _QUERIES,
    }


_DETR_SIZE = {"size": {"shortest_edge": 64, "longest_edge": 107}}


def _detr(labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import DetrConfig, DetrForSegmentation

    return DetrForSegmentation(DetrConfig(**_detr_parts(), **labels)), _DETR_SIZE


def _conditional_detr(labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import ConditionalDetrConfig, ConditionalDetrForSegmentation

    return ConditionalDetrForSegmentation(ConditionalDetrConfig(**_detr_parts(), **labels)), _DETR_SIZE


def _rf_detr(labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import RfDetrConfig, RfDetrForInstanceSegmentation

    config = RfDetrConfig(
        backbone_config={
            "model_type": "rf_detr_dinov2",
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "image_size": 64,
            "patch_size": 8,
            "num_windows": 2,
            "out_features": ["stage2", "stage3"],
        },
        d_model=16,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=_QUERIES,
        group_detr=1,
        intermediate_size=32,
        **labels,
    )
    return RfDetrForInstanceSegmentation(config), {"size": {"height": 64, "width": 64}}


def _processor_class(family: str) -> Any:
    import transformers

    names = {
        "mask2former": "Mask2FormerImageProcessor",
        "maskformer": "MaskFormerImageProcessor",
        "eomt": "EomtImageProcessor",
        "detr": "DetrImageProcessor",
        "conditional_detr": "ConditionalDetrImageProcessor",
        "rf_detr": "RfDetrImageProcessor",
    }
    return getattr(transformers, names[family])


_BUILDERS = {
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "eomt": _eomt,
    "detr": _detr,
    "conditional_detr": _conditional_detr,
    "rf_detr": _rf_detr,
}
