"""Augmentation: what happens to the image happens to its masks."""

from dataclasses import replace

import numpy as np
import pytest

from htc_model.training.augment import (
    Augmentation,
    augment_image,
    build_mosaic,
    crop_image,
    flip_image,
    paste_objects,
)
from htc_model.training.coco_reader import read_annotations
from htc_model.training.samples import TrainingImage, load_training_image, mask_boxes, resize_image
from htc_model.training.spec import AugmentationSection
from tests.support.builders.training_data import SIDE, draw_image, small_config, small_document


@pytest.fixture
def image() -> TrainingImage:
    return load_training_image(read_annotations(small_document(1)).images[0], draw_image)


def is_bright(image: TrainingImage) -> np.ndarray:
    return image.pixels[..., 0] > 130


def test_masks_lie_on_their_objects(image):
    assert np.array_equal(image.masks[0] > 0, is_bright(image))


@pytest.mark.parametrize("change", ["flip", "crop", "resize"])
def test_masks_move_with_the_image(image, change):
    changed = {
        "flip": flip_image,
        "crop": lambda p: crop_image(p, 5, 9, (70, 80)),
        "resize": lambda p: resize_image(p, (2 * SIDE, 2 * SIDE)),
    }[change](image)
    disagreement = ((changed.masks[0] > 0) != is_bright(changed)).mean()
    assert disagreement < 0.005
    assert not np.array_equal(changed.pixels, image.pixels)


def test_boxes_are_tight():
    masks = np.zeros((1, 6, 9), np.uint8)
    masks[0, 2:4, 3:8] = 1
    assert mask_boxes(masks).tolist() == [[3.0, 2.0, 8.0, 4.0]]


def test_objects_cut_away_are_dropped(image):
    x1, y1, _, _ = mask_boxes(image.masks)[0].astype(int).tolist()
    assert len(crop_image(image, 0, 0, (max(y1, 1), max(x1, 1))).labels) == 0


def test_pasted_objects_hide_what_is_below(image):
    donor = flip_image(image)
    pasted = paste_objects(image, donor, np.random.default_rng(0))
    assert len(pasted.labels) == 2
    assert np.array_equal(pasted.masks[-1], donor.masks[0])
    assert not (pasted.masks[0] & pasted.masks[1]).any()
    assert np.array_equal(pasted.pixels[donor.masks[0] > 0], donor.pixels[donor.masks[0] > 0])
    untouched = donor.masks[0] == 0
    assert np.array_equal(pasted.pixels[untouched], image.pixels[untouched])


def test_the_generator_decides_everything(image):
    augmentation = Augmentation(scale=(0.5, 2.0), colour=0.4, copy_paste=1.0)
    resize = small_config().resize
    first, again, other = (
        augment_image(image, image, augmentation, resize, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.masks, again.masks)
    assert first.pixels.shape != other.pixels.shape or not np.array_equal(first.pixels, other.pixels)


def test_jitter_never_exceeds_the_usual_size(image):
    resize = small_config().resize
    sizes = [
        augment_image(image, None, Augmentation(scale=(0.5, 2.0)), resize, np.random.default_rng(seed)).size
        for seed in range(20)
    ]
    assert max(sizes) == (SIDE, SIDE)
    assert min(sizes) < (0.7 * SIDE, 0.7 * SIDE)


def test_without_augmentation_an_image_is_only_brought_to_scale(image):
    same = augment_image(image, None, Augmentation(flip=0), small_config().resize, np.random.default_rng(0))
    assert np.array_equal(same.pixels, image.pixels)


def test_a_crop_keeps_masks_on_their_objects_and_is_at_least_half_the_image(image):
    resize = small_config().resize
    sizes = set()
    for seed in range(12):
        random = np.random.default_rng(seed)
        changed = augment_image(image, None, Augmentation(flip=0.0, crop=1.0), resize, random)
        sizes.add(changed.size)
        if len(changed.labels):
            assert ((changed.masks[0] > 0) != is_bright(changed)).mean() < 0.02
    assert len(sizes) > 1
    assert all(max(size) == SIDE for size in sizes)


def test_a_mosaic_has_the_objects_of_four_images(image):
    images = [load_training_image(entry, draw_image) for entry in read_annotations(small_document(4)).images]
    mosaic = build_mosaic(images, small_config().resize, np.random.default_rng(0))
    assert mosaic.size == (SIDE, SIDE)
    assert mosaic.labels.tolist() == [each.labels[0] for each in images]
    assert ((mosaic.masks.sum(axis=0) > 0) != is_bright(mosaic)).mean() < 0.02
    boxes = mask_boxes(mosaic.masks)
    assert boxes[0, 2] <= boxes[1, 0] + 1, "the second image is to the right of the first"
    assert boxes[0, 3] <= boxes[2, 1] + 1, "the third is below"
    augmented = augment_image(
        images[0], None, Augmentation(flip=0.0), small_config().resize, np.random.default_rng(0), others=images[1:]
    )
    assert len(augmented.labels) == 4


def test_an_object_of_which_scaling_leaves_no_pixel_is_dropped(image):
    speck = np.zeros((1, *image.size), np.uint8)
    speck[0, 1, 1] = 1
    both = replace(image, labels=np.array([*image.labels, 1]), masks=np.concatenate([image.masks, speck]))
    small = resize_image(both, (SIDE // 4, SIDE // 4))
    assert small.labels.tolist() == image.labels.tolist()
    assert len(mask_boxes(small.masks)) == 1
    assert len(resize_image(replace(both, labels=both.labels[1:], masks=both.masks[1:]), (24, 24)).labels) == 0


def test_multi_scale_training_samples_the_short_side(image):
    """The image is square: its size is the sampled short side, up to the long side, and masks follow."""
    resize = small_config().resize
    plain = Augmentation(flip=0.0, short_sides=(48, 80), long_side=72)
    sizes = [augment_image(image, None, plain, resize, np.random.default_rng(seed)).size for seed in range(30)]
    assert {height for height, _ in sizes} <= set(range(48, 73))
    assert len(set(sizes)) > 5
    assert max(sizes) == (72, 72)
    changed = augment_image(image, None, plain, resize, np.random.default_rng(1))
    assert ((changed.masks[0] > 0) != is_bright(changed)).mean() < 0.02


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"short_sides": [800, 400]}, "low <= high"),
        ({"short_sides": [8, 400]}, "32 <= low"),
        ({"long_side": 1600}, "belongs to short_sides"),
    ],
)
def test_wrong_ranges_are_refused(section, reason):
    with pytest.raises(ValueError, match=reason):
        AugmentationSection.model_validate(section)
    assert AugmentationSection.model_validate({"short_sides": [400, 1400], "long_side": 1600}).build().long_side == 1600
