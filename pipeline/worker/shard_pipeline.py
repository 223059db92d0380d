"""The stages of a shard inside a worker, overlapping: read, decode, infer, encode.

A worker runs two shards at once, each on its own thread. They share the thread pools, and the model by turns
(`model_queue`): while one infers, the other's first images are read and decoded; while one encodes its last masks and
commits, the other infers.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.seams import MixedMasksError
from htc_model.structures import Detections
from pipeline.concurrency import Prefetch
from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image, read_header
from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.formats.jpeg_decoders import JpegDecoder
from pipeline.inputs.geotiff import read_georeference
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.read import fetch_image
from pipeline.inputs.shard import Shard
from pipeline.inputs.windows import WindowedImage
from pipeline.job_spec.job import ImagesSection
from pipeline.job_spec.map_tables import MapTable, PanopticSection
from pipeline.job_spec.tiles import TilesSection
from pipeline.messages import ImageFailure
from pipeline.output.map_rows import MapRows, build_map_rows
from pipeline.output.rows import InstanceRow, build_instance_rows
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.telemetry import StageClock
from pipeline.worker.byte_budget import ByteBudget, ByteGauge, Lane, SharedBudget
from pipeline.worker.commit_claim import CommitClaim
from pipeline.worker.error_boundaries import image_boundary
from pipeline.worker.model_queue import ModelQueue
from pipeline.worker.model_time import ModelTime, ShardTime
from pipeline.worker.open_tiles import TileReader, TileSource
from pipeline.worker.segmenter import DecodedImage, Found, ImagePart, Outcome, Segmenter
from pipeline.worker.tiled_image import TiledImage
from pipeline.worker.upload_lane import CudaLane, UploadLane
from pipeline.worker.watchdog import Step, Watchdog

T = TypeVar("T")

# Images read and decoded ahead of the model, per shard.
AHEAD_IMAGES = 32
# Decoded pixels of both shards together, those in batches included: 384 MiB are eleven images of 12 megapixels. With
# them a worker of the bundled model stays within 2 GiB (benchmarks/worker_memory.py).
AHEAD_BYTES = 384 * 2**20
# Encoded bytes that are being read or wait for a decoder, of both shards together: some 25 images of 12 megapixels.
ENCODED_BYTES = 128 * 2**20
# Memory of the decoders beside the decoded pixels, for each core, and at least: three images of 12 megapixels.
DECODING_BYTES_PER_CPU = 256 * 2**20
DECODING_BYTES = 512 * 2**20
# Assumed of an image whose encoded size is not listed, until a larger one was read.
UNLISTED_BYTES = 4 * 2**20
# Encoding is as fast as inference or faster; where it is not, the model waits, so that masks do not pile up.
MAX_ENCODING = 32


@dataclass(frozen=True)
class EncodedImage:
    """An image's rows of `instances`, its (height, width), the version that was read, and its rows of maps."""

    rows: list[InstanceRow]
    size: tuple[int, int]
    read: ReadVersion | None = None
    map_rows: MapRows = field(default_factory=dict)


class WorkerResources:
    """The resources that the shards of one worker share.

    model: batches the images of both shards and takes them through the model.
    encoded, pixels, decoding: bound the bytes on their way to the model, see `byte_budget`.
    model_time: counts what the model waits for.
    read_slots: bounds the reads that run at once.
    decoders: as many threads as the worker has cores, apart from those that read, because glibc keeps freed memory for
        each thread that allocated it: decoded by the 32 reading threads, a few images left a gigabyte behind.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        input_uri: str,
        storage: StorageSection,
        images: ImagesSection,
        image_timeout_s: float | None,
        cpus: float,
        ahead_bytes: int = AHEAD_BYTES,
        jpeg: JpegDecoder | None = None,
        model_time: ModelTime | None = None,
        rule: BandRule = AS_STORED,
        tiles: TilesSection | None = None,
        panoptic: PanopticSection | None = None,
    ) -> None:
        """Open storage and start the pools.

        Args:
            input_uri: decides how many reads run at once.
            images: the limits of one image.
            image_timeout_s: for one image in one step, None for no limit.
            cpus: cores this worker may use; that many images are decoded at once.
            ahead_bytes: of decoded pixels, at most; one image more where a consumer waits for it.
            jpeg: of ordinary JPEG files; None for Pillow.
            model_time: begun when the worker started; by default now, with the model loaded.
            rule: how the bands of an image become its colours.
            tiles: how huge images are cut; None to take each image as a whole.
            panoptic: what becomes a segment.
        """
        if model_time is None:
            model_time = ModelTime()
            model_time.started()
        self.model_time = model_time
        self.segmenter = segmenter
        self.limits = images
        self.jpeg = jpeg
        self.rule = rule
        self.panoptic = panoptic
        # The driver has listed the input: a store that does not answer is unavailable, not misspelt.
        self.storage = Storage(storage, is_known=True)
        self.tiles = None if tiles is None else TileReader(tiles, images, self.storage, jpeg=jpeg, rule=rule)
        self.reads = self.storage.read_concurrency(input_uri)
        self.watchdog = Watchdog(image_timeout_s)
        self.read_slots = threading.Semaphore(self.reads)
        self.encoded = SharedBudget(ENCODED_BYTES)
        self.pixels = SharedBudget(ahead_bytes)
        # On a CPU a batch is computed where it is, by the shard's own thread.
        runner = UploadLane(CudaLane(segmenter.device)) if segmenter.device.type == "cuda" else None
        self.model = ModelQueue(
            segmenter, self.watchdog, max_bytes=ahead_bytes // 2, runner=runner, model_time=model_time
        )
        self.decoding = ByteBudget(max(DECODING_BYTES, int(cpus * DECODING_BYTES_PER_CPU)))
        self.decoders = ThreadPoolExecutor(max(1, int(cpus)), thread_name_prefix="decode")
        encoders = 2 if segmenter.device.type == "cuda" else 1
        self.encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encode")


class ShardPipeline:
    """Runs one shard's images, or some of them, through the stages; used once."""

    def __init__(
        self,
        resources: WorkerResources,
        shard: Shard,
        *,
        positions: Sequence[int],
        model_label: str,
        is_last_attempt: bool,
        claim: CommitClaim,
        on_images: Callable[[int], None],
        shard_time: ShardTime,
        map_tables: Sequence[MapTable] = (),
    ) -> None:
        """Prepare the stages.

        Args:
            positions: the images to do, by their place in the shard.
            model_label: what the tables' `model` column contains.
            is_last_attempt: whether an image that storage fails to read fails alone, instead of the attempt.
            claim: the attempt's right to commit, checked before each batch.
            on_images: called with the number of further images whose outcome is known.
            shard_time: gets how far the shard is.
            map_tables: the tables of maps that the run has.
        """
        self.shard_time = shard_time
        self.clock = StageClock()
        self.bytes_read = ByteGauge()
        self._resources = resources
        self._shard = shard
        self._positions = positions
        self._model_label = model_label
        self._map_tables = map_tables
        self._claim = claim
        self._is_last_attempt = is_last_attempt
        self._on_images = on_images
        self._numbers = {position: number for number, position in enumerate(positions)}
        self._largest_unlisted = UNLISTED_BYTES
        self._encoded_bytes: Lane
        self._pixel_bytes: Lane
        # The number of the image that the model gets next, and those that are read, for `awaits`.
        self._awaited = -1
        self._read_numbers: set[int] = set()
        self._versions: dict[int, ReadVersion] = {}
        self._failures: dict[int, ImageFailure] = {}
        self._tiled: dict[int, TiledImage] = {}
        self._encoding: deque[Future[Any]] = deque()
        self._encoded: dict[int, Future[EncodedImage | ImageFailure]] = {}

    def run(self) -> "list[EncodedImage | ImageFailure]":
        """Return the outcome of each image, in the order of the positions.

        Raises:
            AbandonedError: another attempt commits the shard.
            StorageError: images cannot be read for now.
        """
        self._encoded_bytes, self._pixel_bytes = self._resources.encoded.open_lane(), self._resources.pixels.open_lane()
        ahead = max(AHEAD_IMAGES, self._resources.reads)
        model = self._resources.model
        feed = model.open(self)
        try:
            with (
                # A pool for this shard alone: a load that waits for memory blocks its thread, which must not be one of
                # the other shard's.
                ThreadPoolExecutor(ahead, thread_name_prefix="load") as loaders,
                Prefetch(
                    loaders,
                    self._positions,
                    self._load,
                    ahead=ahead,
                    on_wait=self._await,
                    on_leave=self._leave,
                ) as loaded,
            ):
                # Loading begins before this shard's turn, so that its first images are ready then.
                model.run(feed, _Images(loaded, self))
            ends = {position: future.result() for position, future in self._encoded.items()}
        finally:
            model.close(feed)
            self._leave()
            # After an exception some of them may not have run.
            for future in self._encoded.values():
                future.cancel()
            for tiled in self._tiled.values():
                tiled.close()
            wait(self._encoded.values())
        return [
            replace(
                self._failures[position] if position in self._failures else ends[position],
                read=self._versions.get(position),
            )
            for position in self._positions
        ]

    @property
    def awaits(self) -> Literal["read", "decode"]:
        """What the image that the model gets next still needs."""
        return "decode" if self._awaited in self._read_numbers else "read"

    def _await(self, number: int) -> None:
        self._awaited = number
        self._encoded_bytes.await_number(number)
        self._pixel_bytes.await_number(number)

    def _leave(self) -> None:
        self._encoded_bytes.close()
        self._pixel_bytes.close()

    def _load(self, position: int) -> tuple[int, DecodedImage | TiledImage | ImageFailure]:
        ref, number = self._shard.images[position], self._numbers[position]
        try:
            return position, image_boundary(
                ref.uri, lambda: self._read_and_decode(position, ref), is_last_attempt=self._is_last_attempt
            )
        finally:
            self._encoded_bytes.give_back(number)
            # The images behind one that failed before it requested its bytes must not wait for it.
            self._encoded_bytes.skip(number)
            self._pixel_bytes.skip(number)

    def _read_and_decode(self, position: int, ref: ImageRef) -> DecodedImage | TiledImage:
        number, limits, tiles = self._numbers[position], self._resources.limits, self._resources.tiles
        if tiles is not None and (stored := self._find_stored(tiles, number, ref)) is not None:
            return self._tile(tiles, position, ref, stored)
        payload = self._read(number, position, ref)
        if tiles is not None and (found := tiles.find_decoded(payload)) is not None:
            return self._tile(tiles, position, ref, found)
        header = read_header(payload, max_pixels=limits.max_pixels, rule=self._resources.rule)
        self._pixel_bytes.take(number, header.pixel_bytes)
        pixel_bytes = 0
        try:
            with self._resources.decoding.hold(header.decoding_bytes):
                pixels = self._resources.decoders.submit(self._decode, position, payload).result()
            pixel_bytes = pixels.nbytes
        finally:
            self._pixel_bytes.resize(number, pixel_bytes)
        return DecodedImage(position, ref.uri, pixels, self._shard.index)

    def _find_stored(self, tiles: TileReader, number: int, ref: ImageRef) -> TileSource | None:
        with self._resources.read_slots, self.clock.time("read"):
            found = tiles.find_stored(ref)
        if found is not None:
            # It is never in memory as a whole.
            self._encoded_bytes.skip(number)
            self._read_numbers.add(number)
        return found

    def _tile(self, tiles: TileReader, position: int, ref: ImageRef, found: TileSource) -> TiledImage:
        """Begin to read an image's tiles, when there is room for those that are read ahead."""
        number = self._numbers[position]
        self._pixel_bytes.take(number, TiledImage.first_bytes(found.grid, found.whole_bytes))
        thread = ThreadPoolExecutor(1, thread_name_prefix="tiles")
        try:
            with self._resources.decoding.hold(found.decoding_bytes):
                opening = self._resources.decoders if found.is_decoded else thread
                windows = opening.submit(self._open, position, found).result()
        except BaseException:
            thread.shutdown()
            self._pixel_bytes.give_back(number)
            raise
        tiled = TiledImage(
            position,
            ref.uri,
            windows,
            tiles.plan(windows.size),
            shard=self._shard.index,
            thread=thread,
            whole_bytes=found.whole_bytes,
            boundary=lambda step: image_boundary(
                ref.uri, lambda: self._read_tile(position, step), is_last_attempt=self._is_last_attempt
            ),
            charge=lambda held: self._pixel_bytes.resize(number, held),
            on_complete=self._join,
        )
        self._tiled[position] = tiled
        return tiled

    def _open(self, position: int, found: TileSource) -> WindowedImage:
        with self.clock.time("decode"), self._watch([position], "decoding"):
            windows, read = found.open()
        if read is not None:
            self._versions[position] = read
        elif windows.georeference is not None:
            self._versions[position] = replace(self._versions[position], georeference=windows.georeference)
        return windows

    def _read_tile(self, position: int, step: Callable[[], T]) -> T:
        with self.clock.time("decode"), self._watch([position], "decoding"):
            return step()

    def _decode(self, position: int, payload: bytes) -> NDArray[np.uint8]:
        with self.clock.time("decode"), self._watch([position], "decoding"):
            resources = self._resources
            pixels = decode_image(
                payload, max_pixels=resources.limits.max_pixels, jpeg=resources.jpeg, rule=resources.rule
            )
            if (georeference := read_georeference(payload)) is not None:
                self._versions[position] = replace(self._versions[position], georeference=georeference)
            return pixels

    def _read(self, number: int, position: int, ref: ImageRef) -> bytes:
        """Read an image's encoded bytes, when there is room for them."""
        # The rows of a Parquet file are read one after the other: in any other order, pages would be read again.
        is_row = ref.row is not None
        self._encoded_bytes.take(number, self._expected_bytes(ref), is_passed=not is_row)
        with self._resources.read_slots, self.clock.time("read"):
            payload, self._versions[position] = fetch_image(
                ref, self._resources.storage, max_bytes=self._resources.limits.max_bytes
            )
        if ref.bytes is None:
            self._largest_unlisted = max(self._largest_unlisted, len(payload))
        self._encoded_bytes.resize(number, len(payload))
        self._encoded_bytes.skip(number)
        self._read_numbers.add(number)
        # Asked after the line above, as the model's thread asks the other way round: one of them sees the other.
        if self._awaited == number:
            self._resources.model_time.note()
        self.bytes_read.add(len(payload))
        return payload

    def _expected_bytes(self, ref: ImageRef) -> int:
        max_bytes = self._resources.limits.max_bytes
        # An image that is larger than the limit is refused unread.
        return min(self._largest_unlisted if ref.bytes is None else ref.bytes, max_bytes)

    def tiles_in_work(self) -> tuple[int, int]:
        """Return how many tiles are done, and how many there are, of the images that are being cut now."""
        done = [(tiled.tiles_done, len(tiled.grid)) for tiled in list(self._tiled.values())]
        in_work = [(tiles, total) for tiles, total in done if tiles is not None]
        return sum(tiles for tiles, _ in in_work), sum(total for _, total in in_work)

    def check(self) -> None:
        """Check whether the attempt is still needed.

        Raises:
            AbandonedError: it is not.
        """
        self._claim.check()

    def take_result(self, part: ImagePart, outcome: Outcome) -> None:
        """Take what reading, decoding or the model made of one image, or the model of one tile."""
        position, tile = part
        if tile is not None:
            self._take_tile(self._tiled[position], tile, outcome)
            return
        if isinstance(outcome, ImageFailure):
            self._failures[position] = outcome
        else:
            self._encoded[position] = self._encode(position, lambda: self._encode_rows(position, outcome))
        self._on_images(1)

    def _take_tile(self, tiled: TiledImage, tile: int, outcome: Outcome) -> None:
        if isinstance(outcome, ImageFailure):
            tiled.fail(tile, outcome)
        else:
            encode = partial(self._encode_tile, tiled, tile, outcome)
            tiled.take_encoding(tile, self._encode(tiled.position, encode))

    def take_seconds(self, seconds: float) -> None:
        """Count this shard's part of a batch's time in the model."""
        self.clock.add({"infer": seconds})

    def give_back(self, parts: Sequence[ImagePart]) -> None:
        """Free the bytes of pixels that nothing refers to any more."""
        for position, tile in parts:
            if tile is None:
                self._pixel_bytes.give_back(self._numbers[position])
            else:
                self._tiled[position].give_back()

    def _encode(self, position: int, step: Callable[[], T]) -> "Future[T | ImageFailure]":
        while len(self._encoding) >= MAX_ENCODING:
            with self._resources.model_time.busy("encode"):
                wait([self._encoding.popleft()])
        future = self._resources.encoders.submit(image_boundary, self._shard.images[position].uri, step)
        self._encoding.append(future)
        return future

    def _encode_rows(self, position: int, found: Found) -> EncodedImage:
        with self.clock.time("encode"), self._watch([position], "mask encoding"):
            return self._rows_of(position, self._resources.segmenter.encode(found), found.original_size)

    def _encode_tile(self, tiled: TiledImage, tile: int, found: Found) -> Detections:
        with self.clock.time("encode"), self._watch([tiled.position], "mask encoding"):
            return tiled.cut(tile, self._resources.segmenter.encode(found))

    def _join(self, tiled: TiledImage) -> None:
        """Join an image's tiles when their masks are encoded; called on the model's thread or on the shard's."""
        position = tiled.position
        encoders = self._resources.encoders
        self._encoded[position] = encoders.submit(image_boundary, tiled.uri, lambda: self._join_rows(tiled))
        self._on_images(1)

    def _join_rows(self, tiled: TiledImage) -> EncodedImage | ImageFailure:
        tiled.wait_encoded()
        # As long as all of its tiles may take.
        with self.clock.time("encode"), self._watch([tiled.position] * len(tiled.grid), "mask encoding"):
            try:
                joined = tiled.join()
            except MixedMasksError as error:
                model = self._resources.segmenter.model_phrase
                raise ImageError("failed", f"{model} returned no one result: {error}") from error
            if isinstance(joined, ImageFailure):
                return joined
            return self._rows_of(tiled.position, joined.detections, tiled.size)

    def _rows_of(self, position: int, found: Detections, size: tuple[int, int]) -> EncodedImage:
        ref, segmenter = self._shard.images[position], self._resources.segmenter
        rows = build_instance_rows(ref, found, segmenter.classes, model=self._model_label)
        map_rows = build_map_rows(
            ref,
            found,
            segmenter.classes,
            segmenter.semantic_classes,
            self._map_tables,
            model=self._model_label,
            rules=self._resources.panoptic,
        )
        return EncodedImage(rows, size, map_rows=map_rows)

    def _watch(self, positions: Sequence[int], step: Step) -> AbstractContextManager[None]:
        return self._resources.watchdog.on(self._shard.index, positions, step)


class _Images:
    """The decoded images of one shard for the model; images that failed before go to the shard at once."""

    def __init__(
        self, loaded: Prefetch[int, tuple[int, DecodedImage | TiledImage | ImageFailure]], shard: ShardPipeline
    ) -> None:
        self._loaded = loaded
        self._results = iter(loaded)
        self._shard = shard
        self._image: DecodedImage | None = None
        # Whose tiles come next.
        self._tiled: TiledImage | None = None

    @property
    def awaits(self) -> Literal["read", "decode"]:
        """What the next image still needs."""
        return self._shard.awaits

    def wait_ready(self, timeout_s: float | None) -> bool:
        """Wait until the next image, or the end, is there; return whether it is."""
        self._shard.shard_time.feeding()
        while self._image is None:
            if self._tiled is not None:
                if not self._tiled.wait_ready(timeout_s):
                    return False
                self._image = self._tiled.next()
                if self._tiled.is_read:
                    self._tiled = None
                continue
            if not self._loaded.wait_ready(timeout_s):
                return False
            if (each := next(self._results, None)) is None:
                return True
            position, loaded = each
            if isinstance(loaded, ImageFailure):
                self._shard.take_result(ImagePart(position), loaded)
            elif isinstance(loaded, TiledImage):
                self._tiled = loaded
            else:
                self._image = loaded
            # Else this frame would keep the pixels while it waits for the next image.
            del each, loaded
        return True

    def next(self) -> DecodedImage | None:
        """Return the next image, None at the end; raises what ended the loading. Called when the model is idle."""
        with self._shard.clock.time("wait"):
            self.wait_ready(None)
        image, self._image = self._image, None
        if image is None:
            self._shard.shard_time.fed()
        return image
