"""HTC's three switches: each alone, all combinations, and their effects."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from htc_model.config import CASCADE_STDS
from htc_model.structures import RawDetections
from tests.support.builders.networks import assert_wellformed, image_batch, lite_config, untrained_model

OFF = {"interleaved": False, "mask_info_flow": False, "semantic": False}


def detect(**changes: object) -> RawDetections:
    config = lite_config(**changes)
    return untrained_model(config).infer(image_batch(config))[0]


def test_the_switches_of_one_network() -> None:
    for values in product([False, True], repeat=3):
        switches = dict(zip(OFF, values, strict=True))
        config = lite_config(**switches)
        model = untrained_model(config)
        keys = model.state_dict().keys()
        assert any("conv_res" in key for key in keys) == config.mask_info_flow
        assert any("semantic_head" in key for key in keys) == config.semantic
        (raw,) = model.infer(image_batch(config))
        assert len(raw.scores) == config.max_detections
        assert_wellformed(raw, config)


def test_interleaving_is_a_property_of_training() -> None:
    plain, interleaved = detect(**OFF), detect(**OFF | {"interleaved": True})
    assert torch.equal(plain.boxes_xyxy, interleaved.boxes_xyxy)
    assert plain.mask_probs is not None
    assert interleaved.mask_probs is not None
    assert torch.equal(plain.mask_probs, interleaved.mask_probs)


def test_information_flow_changes_masks_and_nothing_else() -> None:
    plain, flowing = detect(**OFF), detect(**OFF | {"mask_info_flow": True})
    assert torch.equal(plain.boxes_xyxy, flowing.boxes_xyxy)
    assert torch.equal(plain.scores, flowing.scores)
    assert plain.mask_probs is not None
    assert flowing.mask_probs is not None
    assert not torch.allclose(plain.mask_probs, flowing.mask_probs, atol=1e-3)


def test_semantic_branch_reaches_boxes_and_masks() -> None:
    config = lite_config()
    model = untrained_model(config)
    with torch.inference_mode():
        pyramid = model.neck(model.backbone(image_batch(config).pixels))
        rois = torch.tensor([[0.0, 20, 20, 120, 150]])
        semantic_feat = model.roi_head.semantic_forward(pyramid)
        for pool in (model.roi_head.box_features, model.roi_head.mask_features):
            assert not torch.allclose(pool(pyramid, semantic_feat, rois), pool(pyramid, None, rois))


def test_without_information_flow_a_mask_head_ignores_the_one_before() -> None:
    head = untrained_model(lite_config(mask_info_flow=False)).roi_head
    features = torch.rand(2, 64, 14, 14)
    first, second, _ = head.mask_forward(features)
    torch.testing.assert_close(second, head.mask_heads[1](features, None))
    assert not torch.allclose(first, second)


def test_masks_are_the_mean_of_the_stages_probabilities() -> None:
    """The paper's rule; MMDetection 3.3.0 takes the last stage alone by mistake."""
    config = lite_config()
    model = untrained_model(config)
    with torch.inference_mode():
        pyramid = model.neck(model.backbone(image_batch(config).pixels))
        rois, labels = torch.tensor([[0.0, 20, 20, 120, 150], [0.0, 5, 60, 70, 90]]), torch.tensor([3, 79])
        features = model.roi_head.mask_features(pyramid, None, rois)
        per_stage = [
            head.predict(feat).sigmoid()[torch.arange(2), labels]
            for head, feat in zip(model.roi_head.mask_heads, model.roi_head.mask_forward(features), strict=True)
        ]
        found = model.roi_head.detect_masks(pyramid, None, rois, labels)
    torch.testing.assert_close(found, torch.stack(per_stage).mean(0))
    assert not torch.allclose(found, per_stage[-1], atol=1e-3)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_any_number_of_stages(stages: int) -> None:
    config = lite_config(box_stds=CASCADE_STDS[:stages])
    (raw,) = untrained_model(config).infer(image_batch(config))
    assert len(raw.scores) == config.max_detections
    assert_wellformed(raw, config)


def test_one_box_per_class_as_in_mask_rcnn() -> None:
    config = lite_config(**OFF, box_stds=CASCADE_STDS[:1], has_class_specific_boxes=True)
    (raw,) = untrained_model(config).infer(image_batch(config))
    assert_wellformed(raw, config)
    assert len(raw.boxes_xyxy.unique(dim=0)) > 1


def test_boxes_only() -> None:
    config = lite_config(**OFF, has_masks=False)
    model = untrained_model(config)
    (raw,) = model.infer(image_batch(config))
    assert_wellformed(raw, config)
    assert model(image_batch(config))[0].masks is None


@pytest.mark.parametrize("kind", ["soft_linear", "soft_gaussian"])
def test_soft_nms_lowers_scores_and_keeps_boxes_that_nms_drops(kind: str) -> None:
    config = lite_config(suppression=kind)
    hard, (soft,) = detect(), untrained_model(config).infer(image_batch(config))
    assert_wellformed(soft, config)
    assert torch.equal(soft.boxes_xyxy[0], hard.boxes_xyxy[0])
    assert torch.equal(soft.scores[0], hard.scores[0])
    assert not torch.equal(soft.boxes_xyxy, hard.boxes_xyxy)


def test_threshold_and_limit_are_the_configs() -> None:
    scores = detect().scores
    threshold = float(scores[10])
    assert torch.equal(detect(score_threshold=threshold).scores, scores[scores > threshold])
    assert torch.equal(detect(max_detections=7).scores, scores[:7])
    assert lite_config() == replace(lite_config(score_threshold=threshold), score_threshold=0.0)
