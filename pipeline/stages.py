"""Read, decode, infer, encode: the stages that a shard's images go through inside a worker, overlapping.

Two shards go through here at once, each on a thread of its own. They share the pools, and the model by turns:
while one infers, the other's first images are read and decoded; while one encodes its last masks and commits,
the other infers already.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from htc_model.structures import RawDetections
from pipeline.batching import Batcher
from pipeline.borders import at_image_border
from pipeline.claims import Claim
from pipeline.config import JobSpec
from pipeline.image_reading import fetch_image
from pipeline.images import decode_image
from pipeline.metrics import StageClock
from pipeline.plan import Shard
from pipeline.prefetch import ByteBudget, ByteGauge, Prefetch
from pipeline.refs import ImageRef
from pipeline.reports import ImageFailure
from pipeline.segmenter import DecodedImage, Segmenter
from pipeline.storage import Storage
from pipeline.stored import ReadVersion
from pipeline.tables import InstanceRow, build_instance_rows
from pipeline.watch import ImageWatch, Step

# Images loaded ahead of the model, beyond those that wait in the batcher, and the bytes of pixels at which
# loading pauses: 512 MiB are fourteen photos of 12 megapixels.
AHEAD_IMAGES = 32
AHEAD_BYTES = 512 * 2**20
# Encoded bytes being read or decoded, of both shards together.
ENCODED_BYTES = 2**30
# Encoding is as fast as inference or faster; where it is not, the model waits rather than hoarding masks.
MAX_ENCODING = 32


@dataclass(frozen=True)
class EncodedImage:
    """An image's rows of `instances`, its (height, width), and what was read of it."""

    rows: list[InstanceRow]
    size: tuple[int, int]
    read: ReadVersion | None = None


class WorkerTools:
    """What the shards of one worker share.

    turn: held by the shard that infers.
    encoded: holds back reads while too many bytes are being read and decoded.
    decode_slots: as many as the worker has cores; the readers, more of them, take turns at decoding.
    """

    def __init__(self, segmenter: Segmenter, spec: JobSpec, *, model_label: str, cpus: float) -> None:
        self.segmenter = segmenter
        self.spec = spec
        self.model_label = model_label
        # The driver has listed the input: a store that does not answer is away, not misspelt.
        self.storage = Storage(spec.storage, is_known=True)
        self.reads = self.storage.read_concurrency(spec.input.uri)
        self.watch = ImageWatch(spec.retry.image_timeout_s)
        self.turn = threading.Lock()
        self.readers = ThreadPoolExecutor(self.reads, thread_name_prefix="read")
        self.encoded = ByteBudget(ENCODED_BYTES)
        self.decode_slots = threading.Semaphore(max(1, int(cpus)))
        encoders = 2 if segmenter.device.type == "cuda" else 1
        self.encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encode")


class ShardStages:
    """The way of one shard's images, or of some of them, through the stages; used once."""

    def __init__(
        self,
        tools: WorkerTools,
        shard: Shard,
        *,
        positions: Sequence[int],
        is_last_attempt: bool,
        claim: Claim,
        on_images: Callable[[int], None],
    ) -> None:
        """`positions`: the images to do, by their place in the shard."""
        self.clock = StageClock()
        self.bytes_read = ByteGauge()
        self._tools = tools
        self._shard = shard
        self._positions = positions
        self._claim = claim
        self._is_last_attempt = is_last_attempt
        self._on_images = on_images
        self._pixels_held = ByteGauge()
        self._versions: dict[int, ReadVersion] = {}
        self._failures: dict[int, ImageFailure] = {}
        self._encoding: deque[Future[EncodedImage | ImageFailure]] = deque()
        self._encoded: dict[int, Future[EncodedImage | ImageFailure]] = {}

    def outcomes(self) -> "list[EncodedImage | ImageFailure]":
        """What became of each image, in the order of the positions.

        Raises:
            AbandonedError: another attempt commits the shard.
            StorageError: images cannot be read for now.
        """
        try:
            with (
                Prefetch(
                    self._tools.readers,
                    ((position, self._shard.images[position]) for position in self._positions),
                    self._load,
                    ahead=max(AHEAD_IMAGES, self._tools.reads),
                    gauge=self._pixels_held,
                    max_bytes=AHEAD_BYTES,
                ) as loaded,
                # Begun before the turn comes, so that the first images are there when it does.
                self._tools.turn,
            ):
                self._segment_all(iter(loaded))
            ends = {position: future.result() for position, future in self._encoded.items()}
        finally:
            # Only when something flew past is there anything left to drop here.
            for future in self._encoded.values():
                future.cancel()
            wait(self._encoded.values())
        return [
            replace(
                self._failures[position] if position in self._failures else ends[position],
                read=self._versions.get(position),
            )
            for position in self._positions
        ]

    def _load(self, numbered: tuple[int, ImageRef]) -> tuple[int, DecodedImage | ImageFailure]:
        position, ref = numbered
        with self._tools.encoded.hold(ref.bytes or 0):
            loaded = at_image_border(
                ref.uri, lambda: self._read_and_decode(position, ref), is_last_attempt=self._is_last_attempt
            )
        return position, loaded

    def _read_and_decode(self, position: int, ref: ImageRef) -> DecodedImage:
        limits = self._tools.spec.images
        with self.clock.time("read"):
            payload, self._versions[position] = fetch_image(ref, self._tools.storage, max_bytes=limits.max_bytes)
        self.bytes_read.add(len(payload))
        with self._tools.decode_slots, self.clock.time("decode"), self._watch([position], "decoding"):
            pixels = decode_image(payload, max_pixels=limits.max_pixels)
        self._pixels_held.add(pixels.nbytes)
        return DecodedImage(position, ref.uri, pixels)

    def _segment_all(self, loaded: Iterator[tuple[int, DecodedImage | ImageFailure]]) -> None:
        batcher: Batcher[DecodedImage] = Batcher(self._tools.segmenter.batch_size.current)
        while (each := self._next(loaded)) is not None:
            position, image = each
            if isinstance(image, ImageFailure):
                self._fail(position, image)
                continue
            batcher.batch_size = self._tools.segmenter.batch_size.current
            for batch in batcher.add(self._tools.segmenter.padded_shape(image), image, image.pixels.nbytes):
                self._segment(batch)
            # Drops this frame's hold on the pixels while the next image is awaited.
            del each, image
        for batch in batcher.flush():
            self._segment(batch)

    def _next(
        self, loaded: Iterator[tuple[int, DecodedImage | ImageFailure]]
    ) -> tuple[int, DecodedImage | ImageFailure] | None:
        with self.clock.time("wait"):
            return next(loaded, None)

    def _segment(self, batch: list[DecodedImage]) -> None:
        self._claim.check()
        pixel_bytes = sum(image.pixels.nbytes for image in batch)
        results = self._tools.segmenter.segment(batch, watch=self._watch_model)
        while True:
            with self.clock.time("infer"):
                result = next(results, None)
            if result is None:
                break
            image, outcome = result
            if isinstance(outcome, ImageFailure):
                self._fail(image.position, outcome)
            else:
                self._encode(image, outcome)
                self._on_images(1)
        self._pixels_held.add(-pixel_bytes)

    def _encode(self, image: DecodedImage, raw: RawDetections) -> None:
        while len(self._encoding) >= MAX_ENCODING:
            wait([self._encoding.popleft()])
        ref = self._shard.images[image.position]
        future = self._tools.encoders.submit(at_image_border, ref.uri, lambda: self._encode_rows(image.position, raw))
        self._encoding.append(future)
        self._encoded[image.position] = future

    def _encode_rows(self, position: int, raw: RawDetections) -> EncodedImage:
        with self.clock.time("encode"), self._watch([position], "mask encoding"):
            rows = build_instance_rows(
                self._shard.images[position],
                self._tools.segmenter.encode(raw),
                self._tools.segmenter.model.config,
                model=self._tools.model_label,
            )
        return EncodedImage(rows, raw.original_size)

    def _watch(self, positions: Sequence[int], step: Step) -> AbstractContextManager[None]:
        return self._tools.watch.on(self._shard.index, positions, step)

    def _watch_model(self, images: Sequence[DecodedImage]) -> AbstractContextManager[None]:
        return self._watch([image.position for image in images], "the model")

    def _fail(self, position: int, failure: ImageFailure) -> None:
        self._failures[position] = failure
        self._on_images(1)
