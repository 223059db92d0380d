"""A picture with its objects, from the data set's files to the network's input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from htc_model.config import ModelConfig
from htc_model.preprocess import resize_uint8
from htc_model.structures import ImageBatch
from htc_model.training.annotations import ImageAnnotations, decode_mask
from htc_model.training.losses import IGNORED_PIXEL
from htc_model.training.semantic_loss import rasterise_semantic
from htc_model.training.targets import Truth

# From a file name of the annotations to RGB [H, W, 3] uint8. Which folder or bucket that is, and how a file
# is decoded, is the caller's knowledge: the network knows no files.
LoadImage = Callable[[str], NDArray[np.uint8]]
# From a file name to a semantic map [H, W] uint8.
LoadStuff = Callable[[str], NDArray[np.uint8]]


@dataclass(frozen=True)
class Picture:
    """One picture and its objects, at any scale.

    name: for messages. image: [H, W, 3] uint8 RGB. labels: [G] int64 in [0, C).
    masks: [G, H, W] uint8, 0 or 1. crowd_mask: [H, W] uint8, 1 where a crowd is.
    stuff: [H, W] uint8, the data set's own semantic map; None where it has none.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    crowd_mask: NDArray[np.uint8]
    stuff: NDArray[np.uint8] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])


def load_picture(annotations: ImageAnnotations, load_image: LoadImage, load_stuff: LoadStuff | None = None) -> Picture:
    """Read one image and draw its objects' masks; its semantic map is read too if there is a way to.

    Raises:
        ValueError: a file's size is not the annotated one; masks would not fit.
    """
    image = load_image(annotations.file_name)
    height, width = image.shape[:2]
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
    return drop_invisible(Picture(annotations.file_name, image, labels, masks, crowd_mask, stuff))


def _check_size(name: str, size: tuple[int, ...], annotations: ImageAnnotations) -> None:
    if size != (annotations.height, annotations.width):
        raise ValueError(f"{name} is {size[1]}x{size[0]} but annotated as {annotations.width}x{annotations.height}")


def check_stuff(picture: Picture, class_count: int) -> None:
    """Raise ValueError if the semantic map has a label that the branch has no class for."""
    if picture.stuff is None:
        return
    labels = picture.stuff[picture.stuff != IGNORED_PIXEL]
    if labels.size and int(labels.max()) >= class_count:
        raise ValueError(
            f"the semantic map of {picture.name} has label {int(labels.max())}, but model.semantic_classes is "
            f"{class_count}"
        )


def drop_invisible(picture: Picture, *, min_pixels: int = 1) -> Picture:
    """Leave out objects of which fewer than `min_pixels` are to be seen."""
    is_visible = picture.masks.sum(axis=(1, 2), dtype=np.int64) >= min_pixels
    if is_visible.all():
        return picture
    return replace(picture, labels=picture.labels[is_visible], masks=picture.masks[is_visible])


def resize_picture(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resize to (height, width): the image as inference does, masks by the nearest pixel."""
    if picture.size == size:
        return picture
    image = resize_uint8(torch.from_numpy(np.require(picture.image, requirements=["C", "W"])), size).numpy()
    rows = (np.arange(size[0]) + 0.5) * picture.size[0] // size[0]
    columns = (np.arange(size[1]) + 0.5) * picture.size[1] // size[1]
    cells = np.ix_(rows.astype(np.int64), columns.astype(np.int64))
    masks = picture.masks[:, cells[0], cells[1]]
    stuff = None if picture.stuff is None else picture.stuff[cells]
    return Picture(picture.name, image, picture.labels, masks, picture.crowd_mask[cells], stuff)


def mask_boxes(masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Find the tight boxes of masks [G, H, W], none empty: [G, 4] float32 xyxy, borders between pixels."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns = np.flatnonzero(mask.any(axis=0))
        rows = np.flatnonzero(mask.any(axis=1))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def build_truth(picture: Picture, config: ModelConfig) -> Truth:
    """Turn a picture's objects into what the step compares with, leaving out what the model does not use.

    The semantic branch learns the data set's own map where there is one, else one drawn from the masks.
    """
    masks = torch.from_numpy(np.ascontiguousarray(picture.masks))
    labels = torch.from_numpy(picture.labels)
    semantic_map = None
    if config.semantic and picture.stuff is not None:
        semantic_map = torch.from_numpy(np.require(picture.stuff, requirements=["C", "W"]))
    elif config.semantic:
        crowd_mask = torch.from_numpy(np.ascontiguousarray(picture.crowd_mask))
        semantic_map = rasterise_semantic(masks, labels, crowd_mask, other_label=config.num_classes)
    return Truth(
        boxes_xyxy=torch.from_numpy(mask_boxes(picture.masks)),
        labels=labels,
        masks=masks if config.has_masks else None,
        semantic_map=semantic_map,
    )


def build_training_batch(pictures: Sequence[Picture], config: ModelConfig) -> tuple[ImageBatch, list[Truth]]:
    """Normalise, pad to the largest picture and stack; pictures are at network scale already.

    Unlike at inference, pictures of different padded sizes may share a batch: what the padding does to the
        features at its border is noise that training bears.
    """
    resize = config.resize
    sizes = [picture.size for picture in pictures]
    multiple = resize.pad_multiple
    height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
    mean = torch.tensor(resize.mean_rgb).view(3, 1, 1)
    std = torch.tensor(resize.std_rgb).view(3, 1, 1)
    pixels = torch.zeros(len(pictures), 3, height, width)
    for slot, picture in zip(pixels, pictures, strict=True):
        rgb = torch.from_numpy(np.require(picture.image, requirements=["C", "W"])).permute(2, 0, 1).float()
        slot[:, : picture.size[0], : picture.size[1]] = (rgb - mean) / std
    return ImageBatch(pixels, sizes, sizes), [build_truth(picture, config) for picture in pictures]
