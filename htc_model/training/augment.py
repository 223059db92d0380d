"""Random changes to training pictures; every number is drawn from the generator that comes in."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from htc_model.config import ResizeConfig
from htc_model.preprocess import resized_size
from htc_model.training.samples import Picture, drop_invisible, resize_picture

# An object cut or covered down to fewer pixels than this (at network scale) teaches nothing.
_MIN_VISIBLE_PIXELS = 16


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a picture.

    flip: probability of mirroring left and right.
    scale: the network's usual scale is multiplied by a number drawn log-uniformly from [low, high]; what then
        exceeds the
        usual size is cropped at random (large-scale jitter, arXiv:2012.07177, sec. 3).
    colour: brightness, contrast and saturation each change by up to this fraction.
    copy_paste: probability that objects of a second picture are pasted (arXiv:2012.07177).
    """

    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    copy_paste: float = 0.0


def augment_picture(
    picture: Picture,
    donor: Picture | None,
    augmentation: Augmentation,
    resize: ResizeConfig,
    random: np.random.Generator,
) -> Picture:
    """Bring a picture to network scale with all changes applied.

    Args:
        picture: at its original size.
        donor: another picture whose objects may be pasted, or None.
        augmentation: what may happen.
        resize: the network's usual size.
        random: decides everything.
    """
    changed = _place(picture, augmentation, resize, random)
    if donor is not None and len(donor.labels) and random.random() < augmentation.copy_paste:
        changed = paste_objects(changed, _place(donor, augmentation, resize, random), random)
    return _colour(changed, augmentation.colour, random)


def _place(picture: Picture, augmentation: Augmentation, resize: ResizeConfig, random: np.random.Generator) -> Picture:
    """Scale, crop and flip."""
    usual = resized_size(*picture.size, resize)
    low, high = np.log(augmentation.scale)
    factor = float(np.exp(random.uniform(low, high)))
    scaled = max(1, round(usual[0] * factor)), max(1, round(usual[1] * factor))
    placed = resize_picture(picture, scaled)
    window = min(scaled[0], usual[0]), min(scaled[1], usual[1])
    top = int(random.integers(scaled[0] - window[0] + 1))
    left = int(random.integers(scaled[1] - window[1] + 1))
    if window != scaled:
        placed = crop_picture(placed, top, left, window)
    return flip_picture(placed) if random.random() < augmentation.flip else placed


def crop_picture(picture: Picture, top: int, left: int, size: tuple[int, int]) -> Picture:
    """Cut out a window; objects of which too little is left are dropped."""
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    cut = Picture(
        picture.name,
        picture.image[rows, columns],
        picture.labels,
        picture.masks[:, rows, columns],
        picture.crowd_mask[rows, columns],
        None if picture.stuff is None else picture.stuff[rows, columns],
    )
    return drop_invisible(cut, min_pixels=_MIN_VISIBLE_PIXELS)


def flip_picture(picture: Picture) -> Picture:
    """Mirror left and right."""
    return Picture(
        picture.name,
        np.ascontiguousarray(picture.image[:, ::-1]),
        picture.labels,
        np.ascontiguousarray(picture.masks[:, :, ::-1]),
        np.ascontiguousarray(picture.crowd_mask[:, ::-1]),
        None if picture.stuff is None else np.ascontiguousarray(picture.stuff[:, ::-1]),
    )


def paste_objects(picture: Picture, donor: Picture, random: np.random.Generator) -> Picture:
    """Paste a random, non-empty choice of the donor's objects at the same place, hiding what lies below.

    Args:
        picture, donor: at network scale; the donor is cut to the picture's size.
    """
    if not len(donor.labels):
        return picture
    height, width = (min(*pair) for pair in zip(picture.size, donor.size, strict=True))
    is_chosen = random.random(len(donor.labels)) < 0.5
    is_chosen[int(random.integers(len(donor.labels)))] = True
    pasted = np.zeros((int(is_chosen.sum()), *picture.size), np.uint8)
    pasted[:, :height, :width] = donor.masks[is_chosen, :height, :width]
    covered: NDArray[np.bool_] = np.any(pasted, axis=0)
    image = picture.image.copy()
    image[:height, :width][covered[:height, :width]] = donor.image[:height, :width][covered[:height, :width]]
    stuff = None
    if picture.stuff is not None and donor.stuff is not None:
        stuff = picture.stuff.copy()
        stuff[:height, :width][covered[:height, :width]] = donor.stuff[:height, :width][covered[:height, :width]]
    both = Picture(
        f"{picture.name} with {donor.name}",
        image,
        np.concatenate([picture.labels, donor.labels[is_chosen]]),
        np.concatenate([picture.masks * ~covered, pasted]),
        picture.crowd_mask * ~covered,
        stuff,
    )
    return drop_invisible(both, min_pixels=_MIN_VISIBLE_PIXELS)


def _colour(picture: Picture, strength: float, random: np.random.Generator) -> Picture:
    brightness, contrast, saturation = 1 + strength * random.uniform(-1, 1, 3).astype(np.float32)
    if strength == 0:
        return picture
    image = picture.image.astype(np.float32) * brightness
    image = (image - image.mean()) * contrast + image.mean()
    # Grey as the eye weighs the primaries (ITU-R BT.601).
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    image = (image - grey[..., None]) * saturation + grey[..., None]
    changed = np.rint(image).clip(0, 255).astype(np.uint8)
    return replace(picture, image=changed)
