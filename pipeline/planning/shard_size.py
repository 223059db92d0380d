"""Images per shard where the spec leaves that open: small enough that every worker gets several shards.

The number is chosen once, when the first images of a run are planned, and stored in the manifest: a resumed run keeps
its shards, whatever machine it runs on by then.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from pipeline.inputs.image_ref import ImageRef
from pipeline.job_spec.job import ComputeSection
from pipeline.planning.worker_plan import expected_workers

# A dead worker loses at most a shard's work, and a shard's rows stay in memory until it is committed.
MAX_SHARD_IMAGES = 256
# The last shards of a run end at different times. With four shards each, workers are idle for at most a quarter of
# their time; with more, tables are written more often.
SHARDS_PER_WORKER = 4
# The most images that are listed before the first shard is made: 65 pages of an S3 listing.
MAX_LOOK_AHEAD = 65_536


@dataclass(frozen=True)
class ShardSizing:
    """How many images a shard gets.

    shard_images: the spec's number, or "auto" for one that depends on the input's size. workers: how many the run will
        have; only "auto" depends on it.
    """

    shard_images: int | Literal["auto"] = "auto"
    workers: int = 1

    @classmethod
    def of(cls, compute: ComputeSection, workers: int | None = None) -> "ShardSizing":
        """Take the sizing from a spec; `workers`: how many the run will have, None for as many as fit this machine."""
        return cls(compute.shard_images, expected_workers(compute) if workers is None else workers)

    def choose(self, refs: Iterator[ImageRef]) -> tuple[int, Iterator[ImageRef]]:
        """Return the images per shard, and the listing from its beginning."""
        return look_ahead(refs, self.workers) if self.shard_images == "auto" else (self.shard_images, refs)


def choose_shard_images(images: int, workers: int) -> int:
    """Choose the images per shard by the numbers of images and workers: from 1 to MAX_SHARD_IMAGES."""
    if images > MAX_LOOK_AHEAD:
        return MAX_SHARD_IMAGES
    return max(1, min(MAX_SHARD_IMAGES, math.ceil(images / (workers * SHARDS_PER_WORKER))))


def look_ahead(refs: Iterable[ImageRef], workers: int) -> tuple[int, Iterator[ImageRef]]:
    """Choose the images per shard for a listing of unknown length; lists only as many images as make a difference.

    Returns:
        The images per shard, and the listing from its beginning.
    """
    refs = iter(refs)
    most = min(MAX_LOOK_AHEAD, MAX_SHARD_IMAGES * SHARDS_PER_WORKER * workers)
    first = list(islice(refs, most + 1))
    return choose_shard_images(len(first), workers), chain(first, refs)
