"""Small networks and images that tests of the network share."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from htc_model.config import ModelConfig, ResizeConfig, load_preset
from htc_model.network.detector import HTC, build_model
from htc_model.preprocess import build_batch
from htc_model.structures import ImageBatch, RawDetections
from htc_model.weights.untrained import untrained_state
from tests.support.goldens.network import DATA


def lite_config(**changes: Any) -> ModelConfig:
    """Return the small preset on 256 x 192 pixels with a hundred proposals and no score threshold."""
    config = replace(
        load_preset("htc_lite0_fpn"),
        resize=ResizeConfig(long_side=256, short_side=192),
        rpn_proposals=100,
        score_threshold=0.0,
    )
    return replace(config, **changes)


@lru_cache(maxsize=16)
def untrained_model(config: ModelConfig) -> HTC:
    """Build the network of a config with the deterministic weights, for inference."""
    model = build_model(config)
    model.load_state_dict(untrained_state(model.state_dict()))
    return model.eval()


def reference_image(name: str = "p0_397133.jpg") -> np.ndarray:
    """Read one of the reference images, [H, W, 3] uint8 RGB."""
    with Image.open(DATA / "images" / name) as image:
        return np.asarray(image.convert("RGB"))


def image_batch(config: ModelConfig, *images: np.ndarray) -> ImageBatch:
    """Build a batch of the given images, or of one reference image."""
    return build_batch(images or (reference_image(),), config)


def assert_wellformed(raw: RawDetections, config: ModelConfig) -> None:
    """Check everything that RawDetections' docstring states."""
    count = len(raw.scores)
    assert raw.boxes_xyxy.shape == (count, 4)
    assert raw.labels.shape == (count,)
    assert raw.boxes_xyxy.dtype == raw.scores.dtype == torch.float32
    assert raw.labels.dtype == torch.int64
    assert count <= config.max_detections
    assert (raw.scores[:-1] >= raw.scores[1:]).all()
    assert (raw.scores > config.score_threshold).all()
    assert ((raw.labels >= 0) & (raw.labels < config.num_classes)).all()
    height, width = raw.original_size
    limits = torch.tensor([width, height, width, height])
    assert ((raw.boxes_xyxy >= 0) & (raw.boxes_xyxy <= limits)).all()
    assert (raw.mask_probs is not None) == config.has_masks
    if raw.mask_probs is not None:
        assert raw.mask_probs.shape == (count, 28, 28)
        assert raw.mask_probs.dtype == torch.float32
        assert ((raw.mask_probs >= 0) & (raw.mask_probs <= 1)).all()
