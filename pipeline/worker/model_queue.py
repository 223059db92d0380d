"""The images of a worker's shards on their way through its model: one batcher for all of them.

Shards take turns: the one whose turn it is adds its decoded images. What is left of it at its end waits in the batcher
for images of the same padded shape from the next shard, so that batches are full. It leaves as a smaller batch as soon
as waiting is of no use: no shard is left that could add to it, the model would be idle, or `JOINING_IMAGES` images have
come without filling it. A batch may so hold images of two shards; each result goes to its own shard.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.worker.batching import Batcher, Shape
from pipeline.worker.commit_claim import AbandonedError
from pipeline.worker.model_time import Awaited, ModelTime
from pipeline.worker.segmenter import DecodedImage, ImagePart, Outcome, Segmenter
from pipeline.worker.uploads import Upload
from pipeline.worker.watchdog import Watchdog

# Images of the next shard that the rest of a shard waits for at most: three quarters of a shard of 256, so that the one
# after it is read meanwhile. 84 % of images of COCO's sizes leave in full batches of 8 (benchmarks/batch_fill.py).
JOINING_IMAGES = 192
# How often a shard that waits for its next image asks whether the model has become idle.
IDLE_CHECK_S = 0.01


class Owner(Protocol):
    """The shard of some images in the queue; its methods are called on any thread, one at a time."""

    def check(self) -> None:
        """Check whether the shard's attempt is still needed, before each of its batches.

        Raises:
            AbandonedError: it is not.
        """

    def take_result(self, part: ImagePart, outcome: Outcome) -> None:
        """Take the outcome of one image or tile."""

    def take_seconds(self, seconds: float) -> None:
        """Take this shard's part of a batch's seconds in the model."""

    def give_back(self, parts: list[ImagePart]) -> None:
        """Take note that the pixels of these images and tiles are no longer referred to."""


class Source(Awaited, Protocol):
    """Decoded images, in order."""

    def wait_ready(self, timeout_s: float | None) -> bool:
        """Wait until the next image, or the end, would come without waiting; return whether it would."""

    def next(self) -> DecodedImage | None:
        """Return the next image, None at the end."""


@dataclass
class _Item:
    feed: "_Feed"
    image: DecodedImage


class _Feed:
    """One shard's images in the queue.

    held: its images in the batcher. running: those in a batch that is on its way through the model.
    joined: images that other shards have added since its last one. error: what ended it.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.is_complete = False
        self.held = 0
        self.running = 0
        self.joined = 0
        self.error: BaseException | None = None


Batch = list[_Item]


class Runner(Protocol):
    """Takes batches to the model, in order."""

    @property
    def is_idle(self) -> bool:
        """Whether no batch is on its way."""

    def submit(self, batch: Batch, run: Callable[[Batch, Upload | None], None]) -> None:
        """Call `run(batch, staged)`, at once or later on another thread."""


class DirectRunner:
    """Runs each batch at once, on the caller's thread, with nothing staged: for a CPU."""

    is_idle = True

    def submit(self, batch: Batch, run: Callable[[Batch, Upload | None], None]) -> None:
        """Run the batch."""
        run(batch, None)


class ModelQueue:
    """Batches the images of all shards of one worker and runs them; `run` is called once for each shard."""

    def __init__(
        self,
        segmenter: Segmenter,
        watchdog: Watchdog,
        *,
        max_bytes: int,
        runner: Runner | None = None,
        joining_images: int = JOINING_IMAGES,
        model_time: ModelTime | None = None,
    ) -> None:
        """Prepare an empty queue.

        Args:
            max_bytes: of the images that wait for their batch.
            runner: by default a `DirectRunner`.
            model_time: counts what the model waits for.
        """
        # Of the batches that ran, for `WorkerReport`; changed on the model's thread only.
        self.batch_images = self.batch_slots = 0
        self._model_time = model_time or ModelTime()
        self._segmenter = segmenter
        self._watchdog = watchdog
        self._runner = runner or DirectRunner()
        self._joining_images = joining_images
        self._turn = threading.Lock()
        # Guards the batcher and the feeds; notified whenever one of them changes.
        self._change = threading.Condition()
        self._batcher: Batcher[_Item] = Batcher(segmenter.batch_size.current, max_bytes=max_bytes)
        self._feeds: list[_Feed] = []

    def open(self, owner: Owner) -> "_Feed":
        """Announce a shard that will add images: the rest of another one may wait for them. Close it in any case."""
        feed = _Feed(owner)
        with self._change:
            self._feeds.append(feed)
        return feed

    def close(self, feed: "_Feed") -> None:
        """Forget a shard, and its images that still wait for their batch; may be called again."""
        with self._change:
            if feed in self._feeds:
                self._feeds.remove(feed)
            self._batcher.discard(lambda item: item.feed is feed)
            feed.held = 0
            feed.is_complete = True
            self._change.notify_all()

    def run(self, feed: "_Feed", source: Source) -> None:
        """Take all images of the source through the model, when the shard's turn has come.

        Returns when the owner has all results.

        Raises:
            AbandonedError: the shard's attempt is not needed any more.
            DeviceLostError: the device is unusable; all shards in the batch get it.
        """
        try:
            self._feed_all(feed, source)
        except BaseException:
            # A lane may still run batches of this shard; they end before the shard does.
            with self._change:
                self._change.wait_for(lambda: not feed.running)
            raise
        self._await(feed)

    def _feed_all(self, feed: _Feed, source: Source) -> None:
        with self._turn:
            while (image := self._next(source)) is not None:
                self._add(feed, image)
                del image
                self._raise_error(feed)
            with self._change:
                feed.is_complete = True
                feed.joined = 0
                self._change.notify_all()
            if not self._is_fed():
                self._flush(lambda item: True)

    def _await(self, feed: _Feed) -> None:
        """Wait for the results of what the shard has added; nothing but its rest is left to do."""
        while True:
            with self._change:
                self._change.wait_for(
                    lambda: not feed.running and (feed.error is not None or not feed.held or not self._is_fed())
                )
                if feed.error is not None or not feed.held:
                    break
            # The shard that could have added to the rest has ended.
            with self._turn:
                self._flush(lambda item: item.feed is feed)
        self._raise_error(feed)

    def _raise_error(self, feed: _Feed) -> None:
        if feed.error is not None:
            raise feed.error

    def _is_fed(self) -> bool:
        """Return whether a shard is there that may add images."""
        with self._change:
            return any(not feed.is_complete for feed in self._feeds)

    def _next(self, source: Source) -> DecodedImage | None:
        """Return the source's next image; rests leave rather than leave the model idle."""
        if source.wait_ready(0):
            return source.next()
        with self._model_time.awaiting(source):
            while not source.wait_ready(0):
                if self._runner.is_idle:
                    self._flush(lambda item: item.feed.is_complete)
                    if self._runner.is_idle:
                        break
                if source.wait_ready(IDLE_CHECK_S):
                    break
            return source.next()

    def _add(self, feed: _Feed, image: DecodedImage) -> None:
        shape, size = self._segmenter.padded_shape(image), image.pixels.nbytes
        item = _Item(feed, image)
        del image
        with self._change:
            self._batcher.batch_size = self._segmenter.batch_size.current
            feed.held += 1
            batches = self._taken(self._batcher.add(shape, item, size))
            del item
            waiting = [other for other in self._feeds if other.is_complete and other.held]
            for other in waiting:
                other.joined += 1
            late = [other for other in waiting if other.joined >= self._joining_images]
            if late:
                batches += self._taken(self._batcher.flush(lambda item: item.feed in late))
        self._run_all(batches)

    def _flush(self, is_wanted: Callable[[_Item], bool]) -> None:
        """Run the batches of all shapes of which a wanted image waits."""
        with self._change:
            batches = self._taken(self._batcher.flush(is_wanted))
        self._run_all(batches)

    def _taken(self, batches: Iterator[Batch]) -> list[Batch]:
        taken = list(batches)
        for batch in taken:
            for item in batch:
                item.feed.held -= 1
                item.feed.running += 1
        return taken

    def _run_all(self, batches: list[Batch]) -> None:
        try:
            while batches:
                # No name here for a batch that is under way: its pixels are dropped when it ends.
                self._submit(batches.pop(0))
        finally:
            for batch in batches:
                self._end(batch, None)

    def _submit(self, batch: Batch) -> None:
        try:
            self._drop_abandoned(batch)
            if batch:
                is_direct = isinstance(self._runner, DirectRunner)
                with nullcontext() if is_direct else self._model_time.uploading():
                    self._runner.submit(batch, self._run)
        except BaseException as error:
            # Nothing is left in a batch that `_run` has ended.
            self._end(batch, error)
            raise

    def _drop_abandoned(self, batch: Batch) -> None:
        for feed in {id(item.feed): item.feed for item in batch}.values():
            try:
                if feed.error is None:
                    feed.owner.check()
            except AbandonedError as error:
                feed.error = error
            if feed.error is not None:
                dropped = [item for item in batch if item.feed is feed]
                batch[:] = [item for item in batch if item.feed is not feed]
                self._end(dropped, feed.error)

    def _run(self, batch: Batch, staged: Upload | None) -> None:
        """Run one batch and hand out its results; on an error every shard in it gets the error."""
        error: BaseException | None = None
        try:
            with self._model_time.busy("infer"):
                self._segment(batch, staged)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._end(batch, error)
            # Else its traceback and this frame would keep each other, and the pixels, alive.
            del error

    def _segment(self, batch: Batch, staged: Upload | None) -> None:
        owners = [item.feed.owner for item in batch]
        self.batch_images += len(batch)
        self.batch_slots += max(len(batch), self._segmenter.batch_size.current)
        seconds = 0.0
        results = self._segmenter.segment([item.image for item in batch], watch=self._watch, staged=staged)
        for owner in owners:
            start = time.perf_counter()
            image, outcome = next(results)
            seconds += time.perf_counter() - start
            part = image.part
            # Taking a result may wait for the encoding of earlier ones, and needs no pixels.
            del image
            owner.take_result(part, outcome)
        for owner in owners:
            owner.take_seconds(seconds / len(owners))

    def _end(self, batch: Batch, error: BaseException | None) -> None:
        """Empty the list, so that its pixels are dropped before their bytes are given back."""
        parts: dict[int, tuple[_Feed, list[ImagePart]]] = {}
        for item in batch:
            parts.setdefault(id(item.feed), (item.feed, []))[1].append(item.image.part)
        batch.clear()
        for feed, ended in parts.values():
            feed.owner.give_back(ended)
        with self._change:
            for feed, ended in parts.values():
                feed.running -= len(ended)
                feed.error = feed.error or error
            self._change.notify_all()

    def _watch(self, images: Sequence[DecodedImage]) -> AbstractContextManager[None]:
        step: Literal["the model"] = "the model"
        return self._watchdog.on_images([(image.shard, image.position) for image in images], step)


__all__ = ["Batch", "DirectRunner", "ModelQueue", "Owner", "Runner", "Shape", "Source"]
