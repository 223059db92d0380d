"""How many images a shard has where the spec leaves that open: so few that every worker has several shards.

It is decided once, when the first images of a run are planned, and stands in the manifest from then on: a run that goes
on keeps its shards, whatever the machine is by then.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from pipeline.cluster.connection import connected_resources, local_cpus, plan_workers
from pipeline.errors import RunError
from pipeline.inputs.image_ref import ImageRef
from pipeline.job_spec.job import ComputeSection
from pipeline.machine_limits import usable_memory

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


def expected_workers(compute: ComputeSection) -> int:
    """The workers that a run will have, as far as it is known before they are started."""
    if compute.workers != "auto":
        return compute.workers
    resources = connected_resources()
    try:
        if resources is not None:
            cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
            return plan_workers(compute, cpus=cpus, gpus=gpus, shards=None).workers
        cpus, gpus = float(local_cpus()), float(local_gpus())
        return plan_workers(compute, cpus=cpus, gpus=gpus, shards=None, memory_bytes=usable_memory()).workers
    except RunError:
        # Too little for one worker: the run says so when it starts them.
        return 1


def local_gpus(devices: Path = Path("/dev")) -> int:
    """The NVIDIA GPUs of this machine that this process may use, told without a library for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in {"", "-1", "NoDevFiles"}])
    return sum(re.fullmatch(r"nvidia\d+", each.name) is not None for each in devices.glob("nvidia*"))
