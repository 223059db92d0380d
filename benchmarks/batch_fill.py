"""Counts how full the model's batches are: a batcher for each shard against one for all shards of a worker.

Usage: python benchmarks/batch_fill.py [--batch 8] [--shard 256] [--shards 32] [--joining 192] [--seeds 5]

Images have the sizes of COCO's (photo_sizes.py) and the padded shapes of 1333 x 800. No model and no clock: the real
`Batcher` and `ModelQueue` run with a model that only counts, and two shards at once as in a worker. Prints a table and,
last, one JSON line.
"""

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.photo_sizes import draw_sizes
from htc_model.config import load_preset
from htc_model.preprocess import padded_size
from pipeline.worker.batching import Batcher, BatchSize
from pipeline.worker.model_queue import JOINING_IMAGES, ModelQueue
from pipeline.worker.segmenter import DecodedImage
from pipeline.worker.watchdog import Watchdog

RESIZE = load_preset("htc_r50_fpn").resize
# Room for decoded images that wait for their batch, as in a worker (half of shard_pipeline.AHEAD_BYTES).
MAX_BYTES = 192 * 2**20


class Counting:
    """A segmenter that only counts."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = BatchSize(batch_size)
        self.fills: list[int] = []

    def padded_shape(self, image: DecodedImage) -> tuple[int, int]:
        return padded_size(*image.pixels.shape[:2], RESIZE)

    def segment(self, images: Sequence[DecodedImage], **options: object):
        self.fills.append(len(images))
        for image in images:
            yield image, None


class Shard:
    """A shard whose images are all decoded already."""

    def __init__(self, index: int, sizes: Sequence[tuple[int, int]]) -> None:
        self.has_turn = threading.Event()
        # Views of one byte, with the shape and `nbytes` of the image.
        self._images = iter(
            DecodedImage(position, "", np.broadcast_to(np.uint8(0), (*size, 3)), index)
            for position, size in enumerate(sizes)
        )

    def check(self) -> None: ...
    def take_result(self, position: int, outcome: object) -> None: ...
    def take_seconds(self, seconds: float) -> None: ...
    def give_back(self, positions: object) -> None: ...

    @property
    def awaits(self) -> Literal["read", "decode"]:
        return "read"

    def wait_ready(self, timeout_s: float | None) -> bool:
        self.has_turn.set()
        return True

    def next(self) -> DecodedImage | None:
        return next(self._images, None)


def fills_alone(shards: Sequence[Sequence[tuple[int, int]]], batch_size: int) -> list[int]:
    """Return the batches' sizes with a batcher for each shard, emptied at its end."""
    fills = []
    for sizes in shards:
        batcher: Batcher[int] = Batcher(batch_size, max_bytes=MAX_BYTES)
        for number, size in enumerate(sizes):
            fills += [len(batch) for batch in batcher.add(padded_size(*size, RESIZE), number, 3 * size[0] * size[1])]
        fills += [len(batch) for batch in batcher.flush()]
    return fills


def fills_together(shards: Sequence[Sequence[tuple[int, int]]], batch_size: int, joining: int) -> list[int]:
    """Return the batches' sizes with one batcher; each shard begins when the one before the last has ended."""
    segmenter = Counting(batch_size)
    queue = ModelQueue(segmenter, Watchdog(None), max_bytes=MAX_BYTES, joining_images=joining)
    # Opened in time: the next shard is there before the one under way has added its last image.
    made = [Shard(index, sizes) for index, sizes in enumerate(shards)]
    feeds = {0: queue.open(made[0])}
    threads = []
    for index, shard in enumerate(made):
        if index + 1 < len(made):
            feeds[index + 1] = queue.open(made[index + 1])

        def run(index: int = index, shard: Shard = shard) -> None:
            queue.run(feeds[index], shard)
            queue.close(feeds[index])

        if index >= 2:
            threads[index - 2].join()
        threads.append(threading.Thread(target=run))
        threads[-1].start()
        # The turn goes to the shards in their order, so that the counts are the same each time.
        shard.has_turn.wait()
    for thread in threads:
        thread.join()
    return segmenter.fills


def row(name: str, fills: list[int], batch_size: int) -> dict[str, object]:
    full = sum(fill for fill in fills if fill == batch_size)
    return {
        "batcher": name, "images": sum(fills), "batches": len(fills), "mean": round(statistics.mean(fills), 2),
        "in_full_batches": round(full / sum(fills), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--joining", type=int, default=JOINING_IMAGES)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    alone: list[int] = []
    together: list[int] = []
    for seed in range(options.seeds):
        sizes = draw_sizes(options.shard * options.shards, seed)
        shards = [sizes[start : start + options.shard] for start in range(0, len(sizes), options.shard)]
        alone += fills_alone(shards, options.batch)
        together += fills_together(shards, options.batch, options.joining)
    rows = [row("one for each shard", alone, options.batch), row("one for all", together, options.batch)]
    for each in rows:
        print(each)
    print(json.dumps({"benchmark": "batch_fill", "batch": options.batch, "shard": options.shard, "rows": rows}))


if __name__ == "__main__":
    main()
