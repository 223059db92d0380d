"""Test-time augmentation: mirrored photos give mirrored detections, one plain view gives the plain ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from htc_model.config import ModelConfig, ResizeConfig, ViewConfig, config_from_dict, config_sha256, config_to_dict
from htc_model.inference import views
from htc_model.inference.augmented import AugmentedModel
from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC
from htc_model.preprocess import build_batch
from htc_model.structures import RawDetections
from tests.support.builders.networks import lite_config, reference_image, untrained_model

PLAIN = ViewConfig(160, 128)
FLIP = (PLAIN, ViewConfig(160, 128, is_mirrored=True))
THREE_SCALES = tuple(
    ViewConfig(*sides, is_mirrored) for sides in ((128, 96), (160, 128), (224, 160)) for is_mirrored in (False, True)
)


def small(**changes: Any) -> ModelConfig:
    resize = ResizeConfig(long_side=160, short_side=128, mean_rgb=(127.0,) * 3, std_rgb=(128.0,) * 3)
    return replace(lite_config(max_detections=20), resize=resize, score_threshold=0.001, rpn_proposals=80, **changes)


SYSTEMS = {
    "htc": small(),
    "cascade": small(semantic=False, mask_info_flow=False),
    "mask_rcnn": small(
        semantic=False, mask_info_flow=False, box_stds=lite_config().box_stds[:1], has_class_specific_boxes=True
    ),
    "boxes_only": small(semantic=False, mask_info_flow=False, has_masks=False),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def network(request: pytest.FixtureRequest) -> HTC:
    return untrained_model(SYSTEMS[str(request.param)])


def photo(top: int = 0) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(reference_image()[top : top + 170, :210]))


def assert_equal(found: RawDetections, wanted: RawDetections) -> None:
    assert len(wanted.scores) > 0
    assert found.original_size == wanted.original_size
    for one, other in (
        (found.scores, wanted.scores),
        (found.labels, wanted.labels),
        (found.boxes_xyxy, wanted.boxes_xyxy),
        (found.mask_probs, wanted.mask_probs),
    ):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def assert_same_but_for_last_bits(found: RawDetections, wanted: RawDetections) -> None:
    """Sums of convolutions depend on the size of the batch in their last bits."""
    assert len(wanted.scores) > 0
    assert found.original_size == wanted.original_size
    torch.testing.assert_close(found.scores, wanted.scores, atol=2e-3, rtol=0)
    is_same = (box_iou(found.boxes_xyxy, wanted.boxes_xyxy) > 0.98) & (found.labels[:, None] == wanted.labels)
    assert is_same.any(dim=1).float().mean() >= 0.9


def mirrored(raw: RawDetections) -> RawDetections:
    left, top, right, bottom = raw.boxes_xyxy.unbind(1)
    width = raw.original_size[1]
    boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
    masks = None if raw.mask_probs is None else raw.mask_probs.flip(-1)
    return replace(raw, boxes_xyxy=boxes, mask_probs=masks)


def test_one_plain_view_is_the_plain_result(network: HTC) -> None:
    (found,) = AugmentedModel(network, [PLAIN]).infer_images([photo()])
    with torch.inference_mode():
        (wanted,) = network.infer(build_batch([photo().numpy()], network.config))
    assert_equal(found, wanted)


@pytest.mark.parametrize("views", [FLIP, THREE_SCALES], ids=["flip", "three scales and flip"])
def test_a_mirrored_photo_gives_the_mirrored_detections(network: HTC, views: tuple[ViewConfig, ...]) -> None:
    model = AugmentedModel(network, views)
    (found,) = model.infer_images([photo()])
    (of_mirrored,) = model.infer_images([photo().flip(1)])
    assert_equal(mirrored(of_mirrored), found)
    if found.mask_probs is not None:
        assert encode_detections(found).masks


def test_masks_are_means_of_probabilities_at_one_box() -> None:
    network = untrained_model(SYSTEMS["htc"])
    (found,) = AugmentedModel(network, FLIP).infer_images([photo()])
    height, width = found.original_size
    of_views = []
    for is_mirrored in (False, True):
        pixels = photo().flip(1) if is_mirrored else photo()
        with torch.inference_mode():
            batch = build_batch([pixels.numpy()], network.config)
            pyramid = network.features(batch.pixels)
            semantic_feat = network.roi_head.semantic_forward(pyramid)
            left, top, right, bottom = found.boxes_xyxy.unbind(1)
            if is_mirrored:
                left, right = width - right, width - left
            scale_y, scale_x = batch.image_sizes[0][0] / height, batch.image_sizes[0][1] / width
            rois = torch.stack([0 * left, left * scale_x, top * scale_y, right * scale_x, bottom * scale_y], dim=1)
            probs = network.roi_head.detect_masks(pyramid, semantic_feat, rois, found.labels)
        of_views.append(probs.flip(-1) if is_mirrored else probs)
    assert not torch.allclose(of_views[0], of_views[1], atol=0.01)
    assert found.mask_probs is not None
    torch.testing.assert_close(found.mask_probs, (of_views[0] + of_views[1]) / 2, atol=1e-4, rtol=0)


def test_an_images_detections_do_not_depend_on_the_others() -> None:
    network = untrained_model(SYSTEMS["htc"])
    model = AugmentedModel(network, THREE_SCALES)
    images = [photo(), photo(top=60)[:110], photo(top=10)]
    together = model.infer_images(images)
    for image, found in zip(images, together, strict=True):
        assert_same_but_for_last_bits(found, model.infer_images([image])[0])


def test_no_more_views_are_computed_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = untrained_model(SYSTEMS["htc"])
    batches = []
    compute = network.features

    def counted(pixels: Tensor) -> list[Tensor]:
        batches.append(len(pixels))
        return compute(pixels)

    monkeypatch.setattr(network, "features", counted)
    model = AugmentedModel(network, FLIP)
    wanted = model.infer_images([photo(), photo(top=10)])
    # As many as there are images: both images plain, then both mirrored.
    assert batches == [2, 2]
    batches.clear()
    found = model.infer_images([photo(), photo(top=10)], at_once=1)
    assert batches == [1, 1, 1, 1]
    batches.clear()
    model.infer_images([photo(), photo(top=10)], at_once=3)
    assert batches == [3, 1]
    for one, other in zip(found, wanted, strict=True):
        assert_same_but_for_last_bits(one, other)


def test_where_the_features_of_all_views_do_not_fit_those_of_one_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    network = untrained_model(SYSTEMS["htc"])
    model = AugmentedModel(network, THREE_SCALES)
    (wanted,) = model.infer_images([photo()])
    held: list[int] = []
    iterate = views._Kept.__iter__

    def full(self: views._Kept) -> object:
        for pair in iterate(self):
            held.append(len(self._features))
            if len(self._features) > 2:
                raise torch.OutOfMemoryError
            yield pair

    monkeypatch.setattr(views._Kept, "__iter__", full)
    (found,) = model.infer_images([photo()])
    assert max(held) == 3
    assert_equal(found, wanted)


def test_a_config_with_views_travels_as_json_and_has_a_hash_of_its_own() -> None:
    config = small()
    seen = replace(config, views=FLIP)
    assert config_from_dict(config_to_dict(seen)) == seen
    assert config_sha256(seen) != config_sha256(config)


def test_a_model_needs_a_view() -> None:
    with pytest.raises(ValueError, match="at least one view"):
        AugmentedModel(untrained_model(SYSTEMS["htc"]))
