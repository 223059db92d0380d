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

import numpy as np
from numpy.typing import NDArray

from htc_model.structures import RawDetections
from pipeline.concurrency import Prefetch
from pipeline.inputs.decode import decode_image, read_header
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.read import fetch_image
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import JobSpec
from pipeline.messages import ImageFailure
from pipeline.output.rows import InstanceRow, build_instance_rows
from pipeline.storage.storage import Storage
from pipeline.telemetry import StageClock
from pipeline.worker.batching import Batcher
from pipeline.worker.byte_budget import ByteBudget, ByteGauge, Lane, SharedBudget
from pipeline.worker.commit_claim import CommitClaim
from pipeline.worker.error_boundaries import image_boundary
from pipeline.worker.segmenter import DecodedImage, Segmenter
from pipeline.worker.watchdog import Step, Watchdog

# Images read and decoded ahead of the model, per shard.
AHEAD_IMAGES = 32
# Decoded pixels of both shards together, those in batches included: 384 MiB are eleven photos of 12 megapixels. With
# them a worker of the bundled model stays within 2 GiB (benchmarks/worker_memory.py).
AHEAD_BYTES = 384 * 2**20
# Encoded bytes that are being read or wait to be decoded, of both shards together: some 25 photos of 12 megapixels.
ENCODED_BYTES = 128 * 2**20
# What decoders hold beside the pixels that come out, for each core, and at least: three photos of 12 megapixels.
DECODING_BYTES_PER_CPU = 256 * 2**20
DECODING_BYTES = 512 * 2**20
# Assumed of an image whose encoded size no listing told, until a larger one was read.
UNLISTED_BYTES = 4 * 2**20
# Encoding is as fast as inference or faster; where it is not, the model waits rather than hoarding masks.
MAX_ENCODING = 32


@dataclass(frozen=True)
class EncodedImage:
    """An image's rows of `instances`, its (height, width), and what was read of it."""

    rows: list[InstanceRow]
    size: tuple[int, int]
    read: ReadVersion | None = None


class WorkerResources:
    """What the shards of one worker share.

    turn: held by the shard that infers.
    encoded, pixels, decoding: bound the bytes on their way to the model, see `byte_budget`.
    read_slots: reads under way at once.
    decoders: as many as the worker has cores. Threads of their own, because glibc keeps freed memory for each thread
        that asked for it: decoded by the 32 that read, a few photos left a gigabyte behind.
    """

    def __init__(
        self, segmenter: Segmenter, spec: JobSpec, *, model_label: str, cpus: float, ahead_bytes: int = AHEAD_BYTES
    ) -> None:
        """`ahead_bytes`: of decoded pixels, at most; one image more where a consumer waits for it."""
        self.segmenter = segmenter
        self.spec = spec
        self.model_label = model_label
        # The driver has listed the input: a store that does not answer is away, not misspelt.
        self.storage = Storage(spec.storage, is_known=True)
        self.reads = self.storage.read_concurrency(spec.input.uri)
        self.watch = Watchdog(spec.retry.image_timeout_s)
        self.turn = threading.Lock()
        self.read_slots = threading.Semaphore(self.reads)
        self.encoded = SharedBudget(ENCODED_BYTES)
        self.pixels = SharedBudget(ahead_bytes)
        self.decoding = ByteBudget(max(DECODING_BYTES, int(cpus * DECODING_BYTES_PER_CPU)))
        self.decoders = ThreadPoolExecutor(max(1, int(cpus)), thread_name_prefix="decode")
        encoders = 2 if segmenter.device.type == "cuda" else 1
        self.encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encode")


class ShardPipeline:
    """The way of one shard's images, or of some of them, through the stages; used once."""

    def __init__(
        self,
        tools: WorkerResources,
        shard: Shard,
        *,
        positions: Sequence[int],
        is_last_attempt: bool,
        claim: CommitClaim,
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
        self._numbers = {position: number for number, position in enumerate(positions)}
        self._largest_unlisted = UNLISTED_BYTES
        self._encoded_bytes: Lane
        self._pixel_bytes: Lane
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
        self._encoded_bytes, self._pixel_bytes = self._tools.encoded.open_lane(), self._tools.pixels.open_lane()
        ahead = max(AHEAD_IMAGES, self._tools.reads)
        try:
            with (
                # Of its own: a load that waits for memory keeps its thread, and must not keep the other shard's.
                ThreadPoolExecutor(ahead, thread_name_prefix="load") as loaders,
                Prefetch(
                    loaders,
                    self._positions,
                    self._load,
                    ahead=ahead,
                    on_wait=self._await,
                    on_leave=self._leave,
                ) as loaded,
                # Begun before the turn comes, so that the first images are there when it does.
                self._tools.turn,
            ):
                self._segment_all(iter(loaded))
            ends = {position: future.result() for position, future in self._encoded.items()}
        finally:
            self._leave()
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

    def _await(self, number: int) -> None:
        self._encoded_bytes.await_number(number)
        self._pixel_bytes.await_number(number)

    def _leave(self) -> None:
        self._encoded_bytes.close()
        self._pixel_bytes.close()

    def _load(self, position: int) -> tuple[int, DecodedImage | ImageFailure]:
        ref, number = self._shard.images[position], self._numbers[position]
        try:
            return position, image_boundary(
                ref.uri, lambda: self._read_and_decode(position, ref), is_last_attempt=self._is_last_attempt
            )
        finally:
            self._encoded_bytes.give_back(number)
            # Those behind an image that failed before it asked must not wait for it.
            self._encoded_bytes.skip(number)
            self._pixel_bytes.skip(number)

    def _read_and_decode(self, position: int, ref: ImageRef) -> DecodedImage:
        number, limits = self._numbers[position], self._tools.spec.images
        payload = self._read(number, position, ref)
        header = read_header(payload, max_pixels=limits.max_pixels)
        self._pixel_bytes.take(number, header.pixel_bytes)
        pixel_bytes = 0
        try:
            with self._tools.decoding.hold(header.decoding_bytes):
                pixels = self._tools.decoders.submit(self._decode, position, payload).result()
            pixel_bytes = pixels.nbytes
        finally:
            self._pixel_bytes.resize(number, pixel_bytes)
        return DecodedImage(position, ref.uri, pixels)

    def _decode(self, position: int, payload: bytes) -> NDArray[np.uint8]:
        with self.clock.time("decode"), self._watch([position], "decoding"):
            return decode_image(payload, max_pixels=self._tools.spec.images.max_pixels)

    def _read(self, number: int, position: int, ref: ImageRef) -> bytes:
        """Read an image's encoded bytes, when there is room for them."""
        # The rows of a Parquet file are read one behind the other: in any other order, pages were read again.
        is_row = ref.row is not None
        self._encoded_bytes.take(number, self._expected_bytes(ref), is_passed=not is_row)
        with self._tools.read_slots, self.clock.time("read"):
            payload, self._versions[position] = fetch_image(
                ref, self._tools.storage, max_bytes=self._tools.spec.images.max_bytes
            )
        if ref.bytes is None:
            self._largest_unlisted = max(self._largest_unlisted, len(payload))
        self._encoded_bytes.resize(number, len(payload))
        self._encoded_bytes.skip(number)
        self.bytes_read.add(len(payload))
        return payload

    def _expected_bytes(self, ref: ImageRef) -> int:
        max_bytes = self._tools.spec.images.max_bytes
        # What is larger than the limit is refused unread.
        return min(self._largest_unlisted if ref.bytes is None else ref.bytes, max_bytes)

    def _segment_all(self, loaded: Iterator[tuple[int, DecodedImage | ImageFailure]]) -> None:
        batcher: Batcher[DecodedImage] = Batcher(
            self._tools.segmenter.batch_size.current, max_bytes=self._tools.pixels.most // 2
        )
        while (each := self._next(loaded)) is not None:
            position, image = each
            if isinstance(image, ImageFailure):
                self._fail(position, image)
                continue
            batcher.batch_size = self._tools.segmenter.batch_size.current
            ready = batcher.add(self._tools.segmenter.padded_shape(image), image, image.pixels.nbytes)
            # Drops this frame's hold on the pixels while the next image is awaited.
            del each, image
            for batch in ready:
                self._segment(batch)
        for batch in batcher.flush():
            self._segment(batch)

    def _next(
        self, loaded: Iterator[tuple[int, DecodedImage | ImageFailure]]
    ) -> tuple[int, DecodedImage | ImageFailure] | None:
        with self.clock.time("wait"):
            return next(loaded, None)

    def _segment(self, batch: list[DecodedImage]) -> None:
        """Infer a batch and empty the list, so that its pixels are dropped before their bytes are given back."""
        self._claim.check()
        numbers = [self._numbers[image.position] for image in batch]
        results = self._tools.segmenter.segment(batch, watch=self._watch_model)
        while True:
            with self.clock.time("infer"):
                result = next(results, None)
            if result is None:
                break
            position, outcome = result[0].position, result[1]
            # Encoding may take long, and needs no pixels.
            del result
            if isinstance(outcome, ImageFailure):
                self._fail(position, outcome)
            else:
                self._encode(position, outcome)
                self._on_images(1)
        del results
        batch.clear()
        for number in numbers:
            self._pixel_bytes.give_back(number)

    def _encode(self, position: int, raw: RawDetections) -> None:
        while len(self._encoding) >= MAX_ENCODING:
            wait([self._encoding.popleft()])
        ref = self._shard.images[position]
        future = self._tools.encoders.submit(image_boundary, ref.uri, lambda: self._encode_rows(position, raw))
        self._encoding.append(future)
        self._encoded[position] = future

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
