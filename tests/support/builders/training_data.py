"""A tiny data set of coloured boxes, and a small network with its settings to train on it."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.config import ModelConfig, load_preset
from htc_model.training.spec import TrainingSpec
from htc_model.training.train_config import TrainConfig

SIDE = 96


def draw_image(name: str) -> NDArray[np.uint8]:
    """A grey image with one bright box, which depends on the number in the name."""
    left, top, width, height = box_of(int(name.removesuffix(".png")))
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[top : top + height, left : left + width] = (200, 120, 40)
    return image


def box_of(number: int) -> tuple[int, int, int, int]:
    """x, y, width, height of an image's object."""
    random = np.random.default_rng(number)
    width, height = random.integers(30, 60, 2).tolist()
    left, top = random.integers(0, SIDE - 60, 2).tolist()
    return left, top, width, height


def small_document(images: int) -> dict[str, Any]:
    """A COCO document: `images` images with one polygon each, two categories with a gap between their ids."""
    annotations = []
    for number in range(images):
        x, y, width, height = box_of(number)
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": (3, 7)[number % 2],
                "bbox": [x, y, width, height],
                "segmentation": [corners],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
    }


def small_config(**changes: Any) -> ModelConfig:
    """htc_lite0_fpn, narrow, for two classes and small images."""
    base = load_preset("htc_lite0_fpn")
    narrow: dict[str, Any] = {
        "classes": ("three", "seven"),
        "category_ids": (3, 7),
        "semantic_classes": 3,
        "resize": replace(base.resize, short_side=SIDE, long_side=SIDE),
        "fpn_channels": 16,
        "box_fc_channels": 32,
        "mask_channels": 16,
    }
    return replace(base, **(narrow | changes))


def small_spec(output: str, **changes: Any) -> TrainingSpec:
    """A run of a few small steps on the tiny data set."""
    values: dict[str, Any] = {
        "train": [{"annotations": "small.json", "images": "small"}],
        "output": output,
        "model": {"initial": "none", "short_side": SIDE, "long_side": SIDE},
        "optimiser": {"warmup_steps": 2, "learning_rate": 1e-3},
        "sampling": {"rois": 16, "proposals": 20},
        "augmentation": {"scale": [0.8, 1.2], "colour": 0.2, "copy_paste": 0.5},
        "epochs": 2,
        "batch_size": 2,
        "log_steps": 1,
        "checkpoint_steps": 3,
    }
    return TrainingSpec.model_validate(values | changes)


def sample_all(train_config: TrainConfig, proposals: int) -> TrainConfig:
    """Make the losses deterministic: every positive and negative counts, and an image keeps so many proposals."""
    return replace(
        train_config,
        anchor_sample=replace(train_config.anchor_sample, count=None),
        roi_sample=replace(train_config.roi_sample, count=None),
        proposals=proposals,
    )
