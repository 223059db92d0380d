"""Semantic maps on request: from the features of the same pass, with the same detections."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from htc_model.config import BackboneConfig, ModelConfig, ResizeConfig, ViewConfig
from htc_model.inference.augmented import AugmentedModel
from htc_model.inference.cpu_network import optimise_for_cpu
from htc_model.inference.fast_model import FastModel
from htc_model.inference.fold import fold
from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch, RawDetections, SemanticMap
from tests.support.builders.networks import image_batch, lite_config, reference_image, untrained_model

SMALL = lite_config(
    resize=ResizeConfig(long_side=160, short_side=128), rpn_proposals=30, max_detections=5, semantic_classes=20
)
SYSTEMS = {
    "htc": SMALL,
    "scnet": replace(SMALL, roi_head="scnet", mask_info_flow=False, interleaved=False),
    "detectors": replace(SMALL, backbone=BackboneConfig(kind="detectors_resnet"), neck="recursive"),
}


def batch_of(config: ModelConfig, *, wants_semantic: bool = True) -> ImageBatch:
    photo = reference_image()
    # 160 x 127 and 160 x 122 pixels: neither is a multiple of eight, and both are padded.
    return replace(image_batch(config, photo[:400, :500], photo[:385, :500]), wants_semantic=wants_semantic)


def only_map(raw: RawDetections) -> SemanticMap:
    assert raw.semantic is not None
    (seen,) = raw.semantic
    return seen


def assert_same_detections(one: RawDetections, other: RawDetections) -> None:
    assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.labels, other.labels)
    assert one.mask_probs is not None
    assert other.mask_probs is not None
    assert torch.equal(one.mask_probs, other.mask_probs)


def assert_close(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= 1e-3 * float(other.abs().max())


@pytest.mark.parametrize("config", SYSTEMS.values(), ids=SYSTEMS)
def test_detections_are_the_same_with_and_without(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained_model(config)
    passes = []
    features = HTC.features
    monkeypatch.setattr(HTC, "features", lambda model, pixels: passes.append(1) or features(model, pixels))
    found = model.infer(batch_of(config))
    assert len(passes) == 1
    for raw, plain, height in zip(found, model.infer(batch_of(config, wants_semantic=False)), (128, 123), strict=True):
        assert_same_detections(raw, plain)
        assert plain.semantic is None
        seen = only_map(raw)
        assert seen.image_size == (height, 160)
        assert (seen.stride, seen.is_mirrored, seen.logits.dtype) == (8, False, torch.float32)
        # A cell for each eighth pixel that is inside the image.
        assert seen.logits.shape == (20, -(-height // 8), 20)


def test_nothing_is_computed_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained_model(SMALL)

    def refuse(*_: object) -> None:
        raise AssertionError("class logits were computed")

    monkeypatch.setattr(type(model.roi_head.semantic_head), "classify", refuse)
    model.infer(batch_of(SMALL, wants_semantic=False))
    with pytest.raises(AssertionError, match="class logits"):
        model.infer(batch_of(SMALL))


def test_a_network_without_the_branch_gives_no_map() -> None:
    config = replace(SMALL, semantic=False)
    assert [raw.semantic for raw in untrained_model(config).infer(batch_of(config))] == [None, None]


@pytest.mark.parametrize("config", [SYSTEMS["htc"], SYSTEMS["scnet"]], ids=["htc", "scnet"])
def test_every_way_to_compute_gives_the_same_map(config: ModelConfig) -> None:
    """The CPU's network, the folded one, and the plans of fixed shapes."""
    model, batch = untrained_model(config), batch_of(config)
    wanted = [only_map(raw).logits for raw in model.infer(batch)]
    static = FastModel(model, "cpu", is_static=True)
    for other in (optimise_for_cpu(model), fold(model), static):
        for raw, logits in zip(other.infer(batch), wanted, strict=True):
            assert_close(only_map(raw).logits, logits)
    # The same model without maps, whose plans are others.
    plain = static.infer(replace(batch, wants_semantic=False))
    for one, other_raw in zip(plain, static.infer(batch), strict=True):
        assert one.semantic is None
        assert_same_detections(one, other_raw)


def test_class_logits_of_bfloat16_weights_stay_float32() -> None:
    folded = fold(untrained_model(SMALL), torch.bfloat16)
    seen = only_map(folded.infer(batch_of(SMALL))[0])
    assert len(seen.logits.unique()) > seen.logits.numel() / 4


def test_an_encoded_image_is_covered() -> None:
    model = untrained_model(SMALL)
    found = model(batch_of(SMALL))[0]
    assert found.semantic is not None
    assert sum(region.area for region in found.semantic) == 400 * 500
    assert {tuple(region.mask["size"]) for region in found.semantic} == {(400, 500)}


def test_views_of_augmentation_have_a_map_each(monkeypatch: pytest.MonkeyPatch) -> None:
    views = (ViewConfig(160, 128), ViewConfig(160, 128, is_mirrored=True), ViewConfig(192, 144))
    model = AugmentedModel(untrained_model(SMALL), views, wants_semantic=True)
    photo = torch.from_numpy(np.ascontiguousarray(reference_image()[:400, :500]))
    raw, mirrored = model.infer_images([photo, photo.flip(1).contiguous()])
    assert raw.semantic is not None
    assert mirrored.semantic is not None
    assert [(seen.image_size, seen.is_mirrored) for seen in raw.semantic] == [
        *(((128, 160), False), ((128, 160), True), ((144, 180), False))
    ]
    assert_close(raw.semantic[0].logits, mirrored.semantic[1].logits)
    encoded = encode_detections(raw).semantic
    assert encoded is not None
    assert sum(region.area for region in encoded) == 400 * 500
    (plain,) = AugmentedModel(untrained_model(SMALL), views).infer_images([photo])
    assert plain.semantic is None
    assert_same_detections(plain, model.infer_images([photo])[0])
    (one,) = AugmentedModel(untrained_model(SMALL), views[:1], wants_semantic=True).infer_images([photo])
    assert one.semantic is not None
    assert len(one.semantic) == 1
