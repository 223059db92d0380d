"""The training data set: which images make up each batch, and how a batch is built.

Batches depend on seed, epoch and index alone, so that a resumed run gets the batches of an uninterrupted one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from htc_model.config import ModelConfig
from htc_model.structures import ImageBatch
from htc_model.training.annotations import AnnotationError, CocoAnnotations
from htc_model.training.augment import Augmentation, augment_image
from htc_model.training.balance import count_repeats
from htc_model.training.samples import (
    LoadImage,
    LoadStuff,
    TrainingImage,
    build_training_batch,
    check_stuff,
    load_training_image,
)
from htc_model.training.targets import Truth

# This many unreadable images in a row mean a wrong folder, not a bad image.
_MAX_UNREADABLE_IN_A_ROW = 20
# (epoch, index of the image), and which repeat it is from the second on.
_Place = tuple[int, ...]


@dataclass(frozen=True)
class TrainingBatch:
    """One step's input: the images, their objects, their names for messages, and reasons for unreadable images."""

    images: ImageBatch
    truths: list[Truth]
    names: list[str]
    unreadable: list[str]


class TrainingDataset(Dataset[TrainingBatch]):
    """Builds whole batches; the index is a list of (epoch, image index) from a BatchPlan.

    Args:
        annotations: of the data set.
        load_image: from a file name to RGB pixels.
        config: of the network, for sizes and for what it needs.
        augmentation: which random changes are applied.
        seed: of all random numbers.
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
        loaded: list[TrainingImage] = []
        unreadable: list[str] = []
        for place in places:
            # Each repeat of an image in an epoch is augmented in its own way.
            random = np.random.default_rng((self.seed, *place))
            image = self._load(place[1], unreadable)
            has_donor = self.augmentation.copy_paste > 0
            donor = self._load(int(random.integers(len(self))), unreadable) if has_donor else None
            others = []
            if self.augmentation.mosaic > 0 and random.random() < self.augmentation.mosaic:
                others = [self._load(int(random.integers(len(self))), unreadable) for _ in range(3)]
            loaded.append(augment_image(image, donor, self.augmentation, self.config.resize, random, others=others))
        images, truths = build_training_batch(loaded, self.config)
        return TrainingBatch(images, truths, [image.name for image in loaded], unreadable)

    def _load(self, index: int, unreadable: list[str]) -> TrainingImage:
        """Load an image; one that cannot be read is replaced by the next readable one."""
        reason = ""
        for step in range(min(_MAX_UNREADABLE_IN_A_ROW, len(self))):
            annotations = self.annotations.images[(index + step) % len(self)]
            try:
                image = load_training_image(annotations, self.load_image, self.load_stuff)
                check_stuff(image, self.config.semantic_classes)
                return image
            except (OSError, ValueError) as error:
                reason = f"{annotations.file_name}: {error}"
                unreadable.append(reason)
        raise AnnotationError(f"{len(unreadable)} images in a row cannot be read; the last one is {reason}.")


class BatchPlan(Sampler[list[_Place]]):
    """The batches of one epoch for one process: shuffled, with images of similar shape to save padding.

    Args:
        aspect_ratios: width / height of each image.
        batch_size: images per rank and step.
        seed, epoch: determine the order.
        rank, world_size: each process takes every world_size-th batch; all take equally many.
        first_batch: how many batches to skip, for an epoch that is resumed in the middle.
        repeats: [N], how often each image is taken, on average over the epochs (see `repeat_factors`); None is once.
            Every epoch has the same number of batches.
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
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(aspect_ratios))
        # Landscape and portrait never mix; within each group the shuffled order is kept.
        is_wide = np.asarray(aspect_ratios)[order] >= 1
        groups: list[list[_Place]] = [
            [(epoch, int(index)) for index in group] for group in (order[is_wide], order[~is_wide])
        ]
        if repeats is not None:
            groups = [_repeat(places, repeats, random) for places in groups]
        batches = [
            places[start : start + batch_size] for places in groups for start in range(0, len(places), batch_size)
        ]
        shuffled = [batches[index] for index in random.permutation(len(batches))]
        # All processes must take the same number of steps: the first batches are repeated at the end.
        missing = -len(shuffled) % world_size
        mine = [*shuffled, *shuffled[:missing]][rank::world_size]
        self.batch_count = len(mine)
        self._batches = mine[first_batch:]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[_Place]]:
        return iter(self._batches)


def _repeat(places: Sequence[_Place], repeats: NDArray[np.float64], random: np.random.Generator) -> list[_Place]:
    """Repeat the places of images as their factors say, in random order."""
    counts = count_repeats(repeats[[place[1] for place in places]], random.random())
    repeated: list[_Place] = [
        (*place, number) if number else place
        for place, count in zip(places, counts.tolist(), strict=True)
        for number in range(count)
    ]
    return [repeated[position] for position in random.permutation(len(repeated))]


def iterate_batches(dataset: TrainingDataset, plan: BatchPlan, *, loaders: int) -> Iterator[TrainingBatch]:
    """Build the plan's batches in order.

    Args:
        loaders: number of processes that prepare batches in advance; with 0 this process does.
    """
    loader: DataLoader[TrainingBatch] = DataLoader(
        dataset, batch_size=None, sampler=plan, num_workers=loaders, prefetch_factor=2 if loaders else None
    )
    return iter(loader)
