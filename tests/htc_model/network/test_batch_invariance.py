"""An image's detections do not depend on the other images of the batch; images without detections work."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from htc_model.config import ModelConfig, ResizeConfig, load_preset
from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch, RawDetections
from tests.support.builders.networks import (
    assert_wellformed,
    image_batch,
    lite_config,
    reference_image,
    untrained_model,
)
from tests.support.goldens.decisions import Candidates, FilterSettings, collect_candidates
from tests.support.goldens.network import Golden, compare_detections

R50 = replace(load_preset("htc_r50_fpn"), resize=ResizeConfig(long_side=320, short_side=240), rpn_proposals=300)


def crops(count: int) -> list[np.ndarray]:
    """Different images of different sizes with the same padded shape."""
    source = reference_image()
    return [np.ascontiguousarray(source[10 * i : 10 * i + 240, 20 * i : 20 * i + 320 - 3 * i]) for i in range(count)]


def as_golden(raw: RawDetections) -> Golden:
    return {
        "det_boxes": raw.boxes_xyxy.numpy(),
        "det_scores": raw.scores.numpy(),
        "det_labels": raw.labels.numpy(),
        "det_rle": encode_detections(raw).masks,
    }


@pytest.mark.slow
@pytest.mark.parametrize("config", [lite_config(), R50], ids=["lite", "r50"])
@torch.inference_mode()
def test_alone_as_in_a_batch_of_eight(config: ModelConfig) -> None:
    """Only the order of summation in convolutions may differ in a batch."""
    model, images = untrained_model(config), crops(8)
    together = image_batch(config, *images)
    assert len(set(together.image_sizes)) > 1
    raws = model.infer(together)
    proposals = model.propose(model.features(together.pixels), together)
    for index in (0, 3, 7):
        batch = image_batch(config, images[index])
        alone = model.infer(batch)[0]
        assert len(alone.scores) == config.max_detections

        def collect(index: int = index, batch: ImageBatch = batch) -> tuple[Candidates, Candidates]:
            pyramid = model.features(batch.pixels)
            return collect_candidates(model, pyramid, batch, (model.propose(pyramid, batch)[0], proposals[index]))

        settings = FilterSettings.of(config, score_margin=1e-3)
        rows = list(compare_detections(as_golden(alone), raws[index], batch.image_sizes[0], settings, collect))
        assert len(rows) == 6
        assert [row for row in rows if not row.is_ok] == []


def test_order_in_the_batch_does_not_matter() -> None:
    config = lite_config()
    model, images = untrained_model(config), crops(3)
    forwards = model.infer(image_batch(config, *images))
    backwards = model.infer(image_batch(config, *images[::-1]))[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["htc_r50_fpn_ga", "scnet_r50_fpn", "detectors_htc_r50_fpn", "panet_r50_fpn"])
@torch.inference_mode()
def test_later_networks_see_one_image_at_a_time(name: str) -> None:
    """They have means over maps, location masks and pooling of their own."""
    config = replace(
        load_preset(name), resize=ResizeConfig(long_side=128, short_side=96), rpn_proposals=30, max_detections=20
    )
    model, images = untrained_model(config), crops(2)
    together = model.features(image_batch(config, *images).pixels)
    batch = image_batch(config, images[1])
    alone = model.features(batch.pixels)
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, atol=1e-4 * float(one.abs().max()), rtol=1e-3)
    # From the same features, bit by bit: with those of another image beside them.
    joint = [torch.cat([both[:1], one]) for both, one in zip(together, alone, strict=True)]
    (raw,), (_, other) = model.infer_from(alone, batch), model.infer_from(joint, image_batch(config, *images))
    assert len(raw.scores) == len(other.scores) > 0
    torch.testing.assert_close(other.scores, raw.scores, atol=1e-3, rtol=1e-2)


def test_a_score_threshold_above_all_scores() -> None:
    config = lite_config(score_threshold=1.0)
    batch = image_batch(config, *crops(2))
    model = untrained_model(config)
    for raw in model.infer(batch):
        assert len(raw.scores) == 0
        assert_wellformed(raw, config)
    assert [detections.masks for detections in model(batch)] == [[], []]


class FewProposals(HTC):
    """A network that finds proposals only in the images of the given indices."""

    def __init__(self, config: ModelConfig, indices: set[int]) -> None:
        super().__init__(config)
        self.indices = indices

    def propose(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Tensor]:
        proposals = super().propose(pyramid, batch)
        return [boxes if index in self.indices else boxes[:0] for index, boxes in enumerate(proposals)]


def test_no_proposals() -> None:
    """One image of the batch, or all of them, may have no proposals."""
    config = lite_config()
    model = untrained_model(config)
    batch = image_batch(config, *crops(2))

    def infer_with_proposals_in(*indices: int) -> list[RawDetections]:
        other = FewProposals(config, set(indices)).eval()
        other.load_state_dict(model.state_dict())
        return other.infer(batch)

    full = model.infer(batch)[1]
    empty, second = infer_with_proposals_in(1)
    assert len(empty.scores) == 0
    torch.testing.assert_close(second.scores, full.scores, atol=1e-5, rtol=1e-4)
    assert [len(raw.scores) for raw in infer_with_proposals_in()] == [0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_extreme_images(size: tuple[int, int]) -> None:
    config = lite_config()
    image = np.full((*size, 3), 200, np.uint8)
    (raw,) = untrained_model(config).infer(image_batch(config, image))
    assert raw.original_size == size
    assert_wellformed(raw, config)


@pytest.mark.parametrize("has_deformable_stages", [False, True])
def test_half_precision_gives_full_precision_boxes(has_deformable_stages: bool) -> None:
    config = replace(
        R50,
        resize=ResizeConfig(long_side=128, short_side=128),
        backbone=replace(R50.backbone, has_deformable_stages=has_deformable_stages),
        rpn_proposals=50,
    )
    batch = image_batch(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (raw,) = untrained_model(config).infer(batch)
    assert len(raw.scores) > 0
    assert_wellformed(raw, config)


def test_results_need_no_gradient_and_are_most_confident_first() -> None:
    config = lite_config()
    raws: list[RawDetections] = untrained_model(config).infer(image_batch(config, *crops(2)))
    assert not any(raw.scores.requires_grad for raw in raws)
    for raw in raws:
        assert_wellformed(raw, config)
