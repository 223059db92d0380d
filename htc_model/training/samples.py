"""Training samples: an image with its objects, from the data set's files to the network's input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from htc_model.config import ModelConfig
from htc_model.preprocess import resize_uint8
from htc_model.structures import ImageBatch
from htc_model.training.annotations import ImageAnnotations, decode_mask
from htc_model.training.semantic_targets import IGNORED_PIXEL, rasterise_semantic
from htc_model.training.targets import Truth

# From a file name of the annotations to RGB [H, W, 3] uint8. The caller knows the folder or bucket and decodes the
# file; this package reads no images.
LoadImage = Callable[[str], NDArray[np.uint8]]
# From a file name to a semantic map [H, W] uint8.
LoadStuff = Callable[[str], NDArray[np.uint8]]


@dataclass(frozen=True)
class TrainingImage:
    """One image and its objects, at any scale.

    name: for messages. pixels: [H, W, 3] uint8 RGB. labels: [G] int64 in [0, C).
    masks: [G, H, W] uint8, 0 or 1. crowd_mask: [H, W] uint8, 1 where a crowd is.
    stuff: [H, W] uint8, the data set's own semantic map; None where it has none.
    """

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    crowd_mask: NDArray[np.uint8]
    stuff: NDArray[np.uint8] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


def load_training_image(
    annotations: ImageAnnotations, load_image: LoadImage, load_stuff: LoadStuff | None = None
) -> TrainingImage:
    """Read one image and rasterise its objects' masks; with `load_stuff`, read its semantic map too.

    Raises:
        ValueError: a file's size is not the annotated one, so that masks would not fit.
    """
    pixels = load_image(annotations.file_name)
    height, width = pixels.shape[:2]
    _check_size(annotations.file_name, (height, width), annotations)
    stuff = None
    if load_stuff is not None and annotations.stuff_file is not None:
        stuff = load_stuff(annotations.stuff_file)
        _check_size(annotations.stuff_file, stuff.shape, annotations)
    objects = [entry for entry in annotations.objects if not entry.is_crowd]
    masks = np.zeros((len(objects), height, width), np.uint8)
    for mask, entry in zip(masks, objects, strict=True):
        mask[:] = decode_mask(entry, height, width)
    crowd_mask = np.zeros((height, width), np.uint8)
    for entry in annotations.objects:
        if entry.is_crowd:
            crowd_mask |= decode_mask(entry, height, width)
    labels = np.array([entry.label for entry in objects], np.int64)
    return drop_invisible(TrainingImage(annotations.file_name, pixels, labels, masks, crowd_mask, stuff))


def _check_size(name: str, size: tuple[int, ...], annotations: ImageAnnotations) -> None:
    if size != (annotations.height, annotations.width):
        raise ValueError(f"{name} is {size[1]}x{size[0]} but annotated as {annotations.width}x{annotations.height}")


def check_stuff(image: TrainingImage, class_count: int) -> None:
    """Raise ValueError if the semantic map has a label that the branch has no class for."""
    if image.stuff is None:
        return
    labels = image.stuff[image.stuff != IGNORED_PIXEL]
    if labels.size and int(labels.max()) >= class_count:
        raise ValueError(
            f"the semantic map of {image.name} has label {int(labels.max())}, but model.semantic_classes is "
            f"{class_count}"
        )


def drop_invisible(image: TrainingImage, *, min_pixels: int = 1) -> TrainingImage:
    """Leave out objects of which fewer than `min_pixels` are visible."""
    is_visible = image.masks.sum(axis=(1, 2), dtype=np.int64) >= min_pixels
    if is_visible.all():
        return image
    return replace(image, labels=image.labels[is_visible], masks=image.masks[is_visible])


def resize_image(image: TrainingImage, size: tuple[int, int]) -> TrainingImage:
    """Resize to (height, width): the image as inference does, masks by the nearest pixel.

    Objects so small that no pixel of theirs is left are dropped.
    """
    if image.size == size:
        return image
    pixels = resize_uint8(torch.from_numpy(np.require(image.pixels, requirements=["C", "W"])), size).numpy()
    rows = (np.arange(size[0]) + 0.5) * image.size[0] // size[0]
    columns = (np.arange(size[1]) + 0.5) * image.size[1] // size[1]
    cells = np.ix_(rows.astype(np.int64), columns.astype(np.int64))
    masks = image.masks[:, cells[0], cells[1]]
    stuff = None if image.stuff is None else image.stuff[cells]
    return drop_invisible(TrainingImage(image.name, pixels, image.labels, masks, image.crowd_mask[cells], stuff))


def mask_boxes(masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Find the tight boxes of masks [G, H, W], none empty: [G, 4] float32 xyxy, borders between pixels."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns = np.flatnonzero(mask.any(axis=0))
        rows = np.flatnonzero(mask.any(axis=1))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def build_truth(image: TrainingImage, config: ModelConfig) -> Truth:
    """Convert an image's objects to tensors, leaving out what the model does not use.

    The semantic branch learns the data set's own map where there is one, else one made from the masks.
    """
    masks = torch.from_numpy(np.ascontiguousarray(image.masks))
    labels = torch.from_numpy(image.labels)
    semantic_map = None
    if config.semantic and image.stuff is not None:
        semantic_map = torch.from_numpy(np.require(image.stuff, requirements=["C", "W"]))
    elif config.semantic:
        crowd_mask = torch.from_numpy(np.ascontiguousarray(image.crowd_mask))
        semantic_map = rasterise_semantic(masks, labels, crowd_mask, other_label=config.num_classes)
    return Truth(
        boxes_xyxy=torch.from_numpy(mask_boxes(image.masks)),
        labels=labels,
        masks=masks if config.has_masks else None,
        semantic_map=semantic_map,
    )


def build_training_batch(images: Sequence[TrainingImage], config: ModelConfig) -> tuple[ImageBatch, list[Truth]]:
    """Normalise, pad to the largest image and stack; the images are already at network scale.

    Unlike at inference, images of different padded sizes may share a batch: the padding changes features at the border
    a little, which training tolerates.
    """
    resize = config.resize
    sizes = [image.size for image in images]
    multiple = resize.pad_multiple
    height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
    mean = torch.tensor(resize.mean_rgb).view(3, 1, 1)
    std = torch.tensor(resize.std_rgb).view(3, 1, 1)
    pixels = torch.zeros(len(images), 3, height, width)
    for slot, image in zip(pixels, images, strict=True):
        rgb = torch.from_numpy(np.require(image.pixels, requirements=["C", "W"])).permute(2, 0, 1).float()
        normalised = (rgb - mean) / std
        slot[:, : image.size[0], : image.size[1]] = normalised.flip(0) if resize.has_bgr else normalised
    return ImageBatch(pixels, sizes, sizes), [build_truth(image, config) for image in images]
