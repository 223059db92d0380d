"""Augmentation: random changes to training images; every random number comes from the caller's generator."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from htc_model.config import ResizeConfig
from htc_model.preprocess import resized_size
from htc_model.training.samples import TrainingImage, drop_invisible, resize_image

# Objects of which cropping or covering leaves fewer pixels than this (at network scale) are dropped.
_MIN_VISIBLE_PIXELS = 16


@dataclass(frozen=True)
class Augmentation:
    """Which random changes are applied, and how strongly.

    flip: probability of mirroring left and right.
    scale: the network's usual scale is multiplied by a number sampled log-uniformly from [low, high]; what then
        exceeds the usual size is cropped at random (large-scale jitter, arXiv:2012.07177, sec. 3).
    colour: brightness, contrast and saturation each change by up to this fraction.
    copy_paste: probability that objects of a second image are pasted (arXiv:2012.07177).
    crop: probability that a random window, at least half as wide and high as the image, takes the image's place.
    mosaic: probability that four images share the place of one (YOLOv4, arXiv:2004.10934, section 3.3).
    short_sides: multi-scale training: each image's network size is for a short side sampled from [low, high] pixels, in
        place of the usual one; its long side is at most `long_side`, the usual one by default. HTC's best published
        weights were trained with [400, 1400] and 1600 (arXiv:1901.07518, extensions).
    """

    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    copy_paste: float = 0.0
    crop: float = 0.0
    mosaic: float = 0.0
    short_sides: tuple[int, int] | None = None
    long_side: int | None = None


def augment_image(
    image: TrainingImage,
    donor: TrainingImage | None,
    augmentation: Augmentation,
    resize: ResizeConfig,
    random: np.random.Generator,
    *,
    others: Sequence[TrainingImage] = (),
) -> TrainingImage:
    """Bring an image to network scale with all changes applied.

    Args:
        image: at its original size.
        donor: another image whose objects may be pasted, or None.
        augmentation: which changes, and how strongly.
        resize: the network's usual size.
        random: source of all random numbers.
        others: three images that make a mosaic with the image; none for no mosaic.
    """
    image = build_mosaic([image, *others], resize, random) if others else image
    changed = _place(image, augmentation, resize, random)
    if donor is not None and len(donor.labels) and random.random() < augmentation.copy_paste:
        changed = paste_objects(changed, _place(donor, augmentation, resize, random), random)
    return _colour(changed, augmentation.colour, random)


def _place(
    image: TrainingImage, augmentation: Augmentation, resize: ResizeConfig, random: np.random.Generator
) -> TrainingImage:
    """Scale, crop and flip."""
    if augmentation.crop > 0 and random.random() < augmentation.crop:
        image = _crop_at_random(image, random)
    if augmentation.short_sides is not None:
        short, longest = augmentation.short_sides
        resize = replace(
            resize,
            short_side=int(random.integers(short, longest + 1)),
            long_side=augmentation.long_side or resize.long_side,
        )
    usual = resized_size(*image.size, resize)
    low, high = np.log(augmentation.scale)
    factor = float(np.exp(random.uniform(low, high)))
    scaled = max(1, round(usual[0] * factor)), max(1, round(usual[1] * factor))
    placed = resize_image(image, scaled)
    window = min(scaled[0], usual[0]), min(scaled[1], usual[1])
    top = int(random.integers(scaled[0] - window[0] + 1))
    left = int(random.integers(scaled[1] - window[1] + 1))
    if window != scaled:
        placed = crop_image(placed, top, left, window)
    return flip_image(placed) if random.random() < augmentation.flip else placed


def _crop_at_random(image: TrainingImage, random: np.random.Generator) -> TrainingImage:
    height, width = (max(1, round(side * random.uniform(0.5, 1.0))) for side in image.size)
    top = int(random.integers(image.size[0] - height + 1))
    left = int(random.integers(image.size[1] - width + 1))
    return crop_image(image, top, left, (height, width))


def build_mosaic(images: Sequence[TrainingImage], resize: ResizeConfig, random: np.random.Generator) -> TrainingImage:
    """Put four images into the quarters of one, whose centre lies at random in its middle third.

    Args:
        images: four, at any size; each is scaled to its quarter, which changes its proportions a little.
        resize: the network's usual size.

    Returns:
        an image of the first one's network size, with the objects of all that are left visible.
    """
    height, width = resized_size(*images[0].size, resize)
    row, column = (round(side * random.uniform(1 / 3, 2 / 3)) for side in (height, width))
    pixels = np.zeros((height, width, 3), np.uint8)
    crowd_mask = np.zeros((height, width), np.uint8)
    stuff = None if any(image.stuff is None for image in images) else np.zeros((height, width), np.uint8)
    labels, masks = [], []
    quarters = [(0, 0, row, column), (0, column, row, width), (row, 0, height, column), (row, column, height, width)]
    for image, (top, left, bottom, right) in zip(images, quarters, strict=True):
        scaled = resize_image(image, (bottom - top, right - left))
        window = slice(top, bottom), slice(left, right)
        pixels[window], crowd_mask[window] = scaled.pixels, scaled.crowd_mask
        if stuff is not None and scaled.stuff is not None:
            stuff[window] = scaled.stuff
        placed = np.zeros((len(scaled.labels), height, width), np.uint8)
        placed[:, window[0], window[1]] = scaled.masks
        labels.append(scaled.labels)
        masks.append(placed)
    name = " with ".join(image.name for image in images)
    mosaic = TrainingImage(name, pixels, np.concatenate(labels), np.concatenate(masks), crowd_mask, stuff)
    return drop_invisible(mosaic, min_pixels=_MIN_VISIBLE_PIXELS)


def crop_image(image: TrainingImage, top: int, left: int, size: tuple[int, int]) -> TrainingImage:
    """Crop a window; objects of which too little is left are dropped."""
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    cut = TrainingImage(
        image.name,
        image.pixels[rows, columns],
        image.labels,
        image.masks[:, rows, columns],
        image.crowd_mask[rows, columns],
        None if image.stuff is None else image.stuff[rows, columns],
    )
    return drop_invisible(cut, min_pixels=_MIN_VISIBLE_PIXELS)


def flip_image(image: TrainingImage) -> TrainingImage:
    """Mirror left and right."""
    return TrainingImage(
        image.name,
        np.ascontiguousarray(image.pixels[:, ::-1]),
        image.labels,
        np.ascontiguousarray(image.masks[:, :, ::-1]),
        np.ascontiguousarray(image.crowd_mask[:, ::-1]),
        None if image.stuff is None else np.ascontiguousarray(image.stuff[:, ::-1]),
    )


def paste_objects(image: TrainingImage, donor: TrainingImage, random: np.random.Generator) -> TrainingImage:
    """Paste a random, non-empty subset of the donor's objects at the same position, hiding what they cover.

    Args:
        image, donor: at network scale; the donor is cropped to the image's size.
    """
    if not len(donor.labels):
        return image
    height, width = (min(*pair) for pair in zip(image.size, donor.size, strict=True))
    is_chosen = random.random(len(donor.labels)) < 0.5
    is_chosen[int(random.integers(len(donor.labels)))] = True
    pasted = np.zeros((int(is_chosen.sum()), *image.size), np.uint8)
    pasted[:, :height, :width] = donor.masks[is_chosen, :height, :width]
    covered: NDArray[np.bool_] = np.any(pasted, axis=0)
    pixels = image.pixels.copy()
    pixels[:height, :width][covered[:height, :width]] = donor.pixels[:height, :width][covered[:height, :width]]
    stuff = None
    if image.stuff is not None and donor.stuff is not None:
        stuff = image.stuff.copy()
        stuff[:height, :width][covered[:height, :width]] = donor.stuff[:height, :width][covered[:height, :width]]
    both = TrainingImage(
        f"{image.name} with {donor.name}",
        pixels,
        np.concatenate([image.labels, donor.labels[is_chosen]]),
        np.concatenate([image.masks * ~covered, pasted]),
        image.crowd_mask * ~covered,
        stuff,
    )
    return drop_invisible(both, min_pixels=_MIN_VISIBLE_PIXELS)


def _colour(image: TrainingImage, strength: float, random: np.random.Generator) -> TrainingImage:
    brightness, contrast, saturation = 1 + strength * random.uniform(-1, 1, 3).astype(np.float32)
    if strength == 0:
        return image
    pixels = image.pixels.astype(np.float32) * brightness
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    # Luma weights of ITU-R BT.601.
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    pixels = (pixels - grey[..., None]) * saturation + grey[..., None]
    changed = np.rint(pixels).clip(0, 255).astype(np.uint8)
    return replace(image, pixels=changed)
