"""Which pictures make up which batch, and how a batch is made.

All is a function of seed, epoch and index, so that a resumed run sees exactly what the uninterrupted one
would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from htc_model.config import ModelConfig
from htc_model.structures import ImageBatch
from htc_model.training.annotations import AnnotationError, CocoAnnotations
from htc_model.training.augment import Augmentation, augment_picture
from htc_model.training.samples import (
    LoadImage,
    LoadStuff,
    Picture,
    build_training_batch,
    check_stuff,
    load_picture,
)
from htc_model.training.targets import Truth

# So many unreadable pictures in a row mean a wrong folder, not a bad picture.
_MOST_STAND_INS = 20
# (epoch, index of the picture).
_Place = tuple[int, int]


@dataclass(frozen=True)
class TrainingBatch:
    """One step's input: the images, their objects, their names for messages, and what could not be read."""

    images: ImageBatch
    truths: list[Truth]
    names: list[str]
    unreadable: list[str]


class TrainingPictures(Dataset[TrainingBatch]):
    """Makes whole batches; the index is the list of places that a BatchPlan gives.

    Args:
        annotations: of the data set.
        load_image: from a file name to RGB pixels.
        config: of the network, for sizes and for what it needs.
        augmentation: what may happen to a picture.
        seed: of all that is random.
        load_stuff: from a file name to a semantic map, where the annotations name such files.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        load_image: LoadImage,
        config: ModelConfig,
        augmentation: Augmentation,
        seed: int,
        *,
        load_stuff: LoadStuff | None = None,
    ) -> None:
        self.annotations = annotations
        self.load_image = load_image
        self.config = config
        self.augmentation = augmentation
        self.seed = seed
        self.load_stuff = load_stuff if config.semantic else None

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, places: Sequence[_Place]) -> TrainingBatch:
        pictures: list[Picture] = []
        unreadable: list[str] = []
        for epoch, index in places:
            random = np.random.default_rng((self.seed, epoch, index))
            picture = self._load(index, unreadable)
            has_donor = self.augmentation.copy_paste > 0
            donor = self._load(int(random.integers(len(self))), unreadable) if has_donor else None
            pictures.append(augment_picture(picture, donor, self.augmentation, self.config.resize, random))
        images, truths = build_training_batch(pictures, self.config)
        return TrainingBatch(images, truths, [picture.name for picture in pictures], unreadable)

    def _load(self, index: int, unreadable: list[str]) -> Picture:
        """Load a picture; the next readable one stands in for one that cannot be read."""
        reason = ""
        for step in range(min(_MOST_STAND_INS, len(self))):
            annotations = self.annotations.images[(index + step) % len(self)]
            try:
                picture = load_picture(annotations, self.load_image, self.load_stuff)
                check_stuff(picture, self.config.semantic_classes)
                return picture
            except (OSError, ValueError) as error:
                reason = f"{annotations.file_name}: {error}"
                unreadable.append(reason)
        raise AnnotationError(f"{len(unreadable)} pictures in a row cannot be read; the last one is {reason}.")


class BatchPlan(Sampler[list[_Place]]):
    """The batches of one epoch for one rank: shuffled, and alike in shape so that little padding is computed.

    Args:
        aspect_ratios: width / height of each picture.
        batch_size: pictures per rank and step.
        seed, epoch: decide the order.
        rank, world_size: each rank takes every world_size-th batch; all take equally many.
        first_batch: skip so many, when an epoch is resumed in its middle.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> None:
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(aspect_ratios))
        # Landscape and portrait never mix; within each the shuffled order stands.
        is_wide = np.asarray(aspect_ratios)[order] >= 1
        batches = [
            [(epoch, int(index)) for index in group[start : start + batch_size]]
            for group in (order[is_wide], order[~is_wide])
            for start in range(0, len(group), batch_size)
        ]
        shuffled = [batches[index] for index in random.permutation(len(batches))]
        # Ranks must take the same number of steps: the first batches stand in for the missing last ones.
        missing = -len(shuffled) % world_size
        mine = [*shuffled, *shuffled[:missing]][rank::world_size]
        self.batch_count = len(mine)
        self._batches = mine[first_batch:]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[_Place]]:
        return iter(self._batches)


def iterate_batches(pictures: TrainingPictures, plan: BatchPlan, *, loaders: int) -> Iterator[TrainingBatch]:
    """Make the plan's batches in order.

    Args:
        loaders: processes that prepare batches ahead; 0 prepares them in this one.
    """
    loader: DataLoader[TrainingBatch] = DataLoader(
        pictures, batch_size=None, sampler=plan, num_workers=loaders, prefetch_factor=2 if loaders else None
    )
    return iter(loader)
