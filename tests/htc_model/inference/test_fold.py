"""The folded copy computes what the network computes, from weights in the compute dtype and channels-last."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from htc_model.config import BackboneConfig, ModelConfig
from htc_model.inference.fold import FoldedDeformConv2d, FoldedHTC, InFloat32, fold
from htc_model.network.detector import HTC, build_model
from tests.support.builders.networks import lite_config
from tests.support.goldens.network import DATA, build_golden_model, golden_batch, load_golden, measure

BACKBONES = {
    "lite0": BackboneConfig(kind="efficientnet_lite0"),
    "resnet": BackboneConfig(),
    "resnext": BackboneConfig(groups=32, base_width=4),
    "deformable": BackboneConfig(has_deformable_stages=True),
    "modulated": BackboneConfig(has_deformable_stages=True, is_modulated=True),
    "group norm": BackboneConfig(norm="group"),
    "published group norm": BackboneConfig(norm="group_published"),
    "seresnext": BackboneConfig(kind="seresnext101_32x4d", has_deformable_stages=True, first_deformable=5),
}


def model_of(backbone: BackboneConfig, **changes: object) -> HTC:
    """Build a network whose batch norms have statistics, scales and shifts that folding must not confuse."""
    torch.manual_seed(0)
    model = build_model(replace(lite_config(), backbone=backbone, **changes)).eval()  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for name, parameter in model.named_parameters():
        if "conv_offset.weight" in name:
            nn.init.normal_(parameter, std=0.01)
    return model


def assert_close(found: Tensor, wanted: Tensor, share: float = 1e-4) -> None:
    """Check that two tensors differ by less than a share of the largest value."""
    assert found.shape == wanted.shape
    assert float((found.float() - wanted).abs().max()) <= share * float(wanted.abs().max())


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
@torch.inference_mode()
def test_the_same_features_and_the_model_untouched(backbone: BackboneConfig) -> None:
    model = model_of(backbone)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    folded = fold(model)
    for found, wanted in zip(folded.features(pixels), model.features(pixels), strict=True):
        assert_close(found, wanted)
        assert found.is_contiguous(memory_format=torch.channels_last)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, FoldedDeformConv2d) for module in folded.modules()) == (
        (13 if backbone.first_deformable == 3 else 3) if backbone.has_deformable_stages else 0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_layout_of_every_weight(dtype: torch.dtype) -> None:
    folded = fold(model_of(BACKBONES["deformable"]), dtype)
    kept = {
        id(parameter)
        for module in folded.modules()
        if isinstance(module, InFloat32 | FoldedDeformConv2d)
        for parameter in module.parameters()
    }
    what = "RPN, three box heads, semantic logits; deformable convolutions with their offsets"
    assert len(kept) == 2 * 5 + 13 * 4, what
    convolutions = 0
    for name, parameter in folded.named_parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in kept else dtype), name
        assert not parameter.requires_grad
        if parameter.dim() == 4 and id(parameter) not in kept:
            convolutions += 1
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
    assert convolutions > 50
    assert not list(folded.buffers())


def heads(model: HTC) -> dict[str, Callable[[Tensor], list[Tensor]]]:
    roi_head = model.roi_head
    labels = torch.tensor([3, 0, 79])

    def masks(x: Tensor) -> list[Tensor]:
        features = roi_head.mask_forward(x.repeat(1, 1, 2, 2))
        return [head.predict_class(each, labels) for head, each in zip(roi_head.mask_heads, features, strict=True)]

    return {
        "rpn": lambda x: [each for group in model.rpn_head([x] * 5) for each in group],
        "box": lambda x: [each for head in roi_head.box_heads for each in head(x)],
        "mask": masks,
    }


@pytest.mark.parametrize("changes", [{}, {"has_class_specific_boxes": True, "box_stds": ((0.1, 0.1, 0.2, 0.2),)}])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@torch.inference_mode()
def test_heads_give_the_same_predictions_in_float32(
    changes: dict[str, object], dtype: torch.dtype, share: float
) -> None:
    model = model_of(BACKBONES["lite0"], **changes)
    x = torch.randn(3, 64, 7, 7, generator=torch.Generator().manual_seed(2))
    folded = heads(fold(model, dtype))
    for name, head in heads(model).items():
        given = x.to(dtype) if name == "rpn" else x.to(memory_format=torch.channels_last)
        for found, wanted in zip(folded[name](given), head(x), strict=True):
            assert found.dtype == torch.float32
            assert_close(found, wanted, share)


def test_what_cannot_be_folded_is_refused() -> None:
    model = model_of(BACKBONES["resnet"])
    with pytest.raises(ValueError, match="training mode"):
        fold(model.train())
    model.eval().backbone.conv1 = nn.Identity()
    with pytest.raises(ValueError, match="bn1 does not follow"):
        fold(model)


def test_a_config_without_masks_and_semantic_branch() -> None:
    config: ModelConfig = replace(lite_config(), has_masks=False, semantic=False, mask_info_flow=False)
    folded = fold(build_model(config).eval(), torch.bfloat16)
    assert isinstance(folded, FoldedHTC)
    assert folded.roi_head.mask_heads == []


@pytest.mark.slow
def test_a_golden() -> None:
    golden = load_golden(DATA / "goldens" / "mask_rcnn_r50__p0_397133.npz")
    model = build_golden_model(golden["meta"]["model"])
    batch = golden_batch(golden, model)
    rows = list(measure(golden, fold(model), batch))
    assert {"C5", "P2", "score", "box", "mask IoU, mean"} <= {row.quantity for row in rows}
    assert [row for row in rows if not row.is_ok] == []
