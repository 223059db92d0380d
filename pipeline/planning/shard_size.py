"""How many images a shard has where the spec leaves that open: so few that every worker has several shards.

It is decided once, when the first images of a run are planned, and stands in the manifest from then on: a run that goes
on keeps its shards, whatever the machine is by then.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from pipeline.inputs.image_ref import ImageRef

# More would be lost at once with a worker, and a shard's rows are in memory until it is committed.
MAX_SHARD_IMAGES = 256
# The last shards of a run end at different times: with four each, the workers wait for a quarter of their time at
# most, and the more there are, the more often tables are written.
SHARDS_PER_WORKER = 4
# To be listed before the first shard is made, at most: 65 pages of an S3 listing.
MAX_LOOK_AHEAD = 65_536


def choose_shard_images(images: int, workers: int) -> int:
    """Choose the images per shard for so many images and workers: from 1 to MAX_SHARD_IMAGES."""
    if images > MAX_LOOK_AHEAD:
        return MAX_SHARD_IMAGES
    return max(1, min(MAX_SHARD_IMAGES, math.ceil(images / (workers * SHARDS_PER_WORKER))))


def look_ahead(refs: Iterable[ImageRef], workers: int) -> tuple[int, Iterator[ImageRef]]:
    """Choose the images per shard for a listing of unknown length, by listing as much as makes a difference.

    Returns:
        The images per shard, and the listing from its beginning.
    """
    refs = iter(refs)
    most = min(MAX_LOOK_AHEAD, MAX_SHARD_IMAGES * SHARDS_PER_WORKER * workers)
    first = list(islice(refs, most + 1))
    return choose_shard_images(len(first), workers), chain(first, refs)
