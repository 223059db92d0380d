"""PANet's heads: all levels reach every RoI, the whole RoI reaches every pixel, and it works in a batch and folded."""

from dataclasses import replace

import pytest
import torch

from htc_model.config import CASCADE_STDS, ModelConfig, ModelConfigError, load_preset
from htc_model.inference.cpu_network import optimise_for_cpu
from htc_model.inference.fast_model import FastModel
from htc_model.inference.plan import InferencePlan
from htc_model.network.detector import HTC
from htc_model.network.roi_heads import MASK_SIDE
from tests.support.builders.networks import assert_wellformed, image_batch, lite_config, untrained_model


def panet_config() -> ModelConfig:
    return lite_config(
        interleaved=False,
        mask_info_flow=False,
        semantic=False,
        neck="pafpn",
        roi_head="panet",
        box_stds=CASCADE_STDS[:1],
        has_class_specific_boxes=True,
    )


ROIS = torch.tensor([[0.0, 20, 20, 120, 150], [0.0, 5, 60, 35, 90]])


def pyramid_of(model: HTC) -> list[torch.Tensor]:
    return model.features(image_batch(model.config).pixels)


def predictions(model: HTC, pyramid: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Class logits, deltas and mask logits of fixed RoIs."""
    head = model.roi_head
    logits, deltas = head.box_forward(0, pyramid, None, ROIS)
    (mask_feat,) = head.mask_forward(head.mask_features(pyramid, None, ROIS))
    return logits, deltas, head.mask_heads[0].predict_class(mask_feat, torch.tensor([3, 70]))


def test_the_preset_has_pafpn_and_panets_heads() -> None:
    config = load_preset("panet_r50_fpn")
    assert (config.neck, config.roi_head, config.num_stages) == ("pafpn", "panet", 1)
    with pytest.raises(ModelConfigError, match="panet needs one stage"):
        replace(config, semantic=True)


@torch.inference_mode()
def test_every_level_reaches_every_roi_and_the_largest_wins() -> None:
    model = untrained_model(panet_config())
    pyramid, head = pyramid_of(model), model.roi_head
    plain = head.box_features(pyramid, None, ROIS)
    assert plain.shape == (2, 4, 64, 7, 7)
    shared = head.box_heads[0].share(plain)
    for level in range(4):
        changed = [3 * x if index == level else x for index, x in enumerate(pyramid)]
        assert not torch.allclose(head.box_heads[0].share(head.box_features(changed, None, ROIS)), shared)
    # Of one level thrice, the maximum is that level.
    same = plain[:, :1].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(head.box_heads[0].share(same), head.box_heads[0].share(plain[:, :1]))


@torch.inference_mode()
def test_the_fully_connected_branch_adds_one_map_to_all_classes() -> None:
    model = untrained_model(panet_config())
    head, pyramid = model.roi_head, pyramid_of(model)
    mask_head = head.mask_heads[0]
    mask_feat = mask_head(head.mask_features(pyramid, None, ROIS))
    logits = mask_head.predict(mask_feat)
    assert logits.shape == (2, 80, MASK_SIDE, MASK_SIDE)
    labels = torch.tensor([3, 70])
    torch.testing.assert_close(
        mask_head.predict_class(mask_feat, labels), logits[torch.arange(2), labels], atol=1e-4, rtol=1e-4
    )
    # A change at one corner reaches the opposite one through the linear layer alone.
    without = mask_feat.clone()
    without[:, 64:, 0, 0] += 1.0
    difference = mask_head.predict(without) - logits
    assert (difference[:, :, -1, -1] != 0).all()
    torch.testing.assert_close(difference[:, 0], difference[:, 79], atol=1e-4, rtol=1e-3)


@torch.inference_mode()
def test_detections_and_the_folded_network() -> None:
    model = untrained_model(panet_config())
    batch = image_batch(model.config)
    (raw,) = model.infer(batch)
    assert len(raw.scores) > 3
    assert_wellformed(raw, model.config)
    pyramid = pyramid_of(model)
    wanted = predictions(model, pyramid)
    for other in (optimise_for_cpu(model), FastModel(model, "cpu", is_static=False).network):
        for found, expected in zip(predictions(other, pyramid), wanted, strict=True):
            assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    (low,) = FastModel(model, "cpu", is_static=False, precision="bf16").infer(batch)
    assert_wellformed(low, model.config)


def test_there_is_no_plan_of_fixed_shapes_and_it_says_why() -> None:
    model = untrained_model(panet_config())
    with pytest.raises(ValueError, match="from all levels"):
        InferencePlan(model, (192, 256), 1)
