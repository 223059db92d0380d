"""The model inside a worker: loaded once, given batches that fit its memory; an error affects only its own image."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from htc_model.config import ModelConfigError
from htc_model.finite import NonFiniteError, check_finite
from htc_model.inference.augmented import AugmentedModel
from htc_model.inference.precision import PrecisionChoice, choose_precision, forbid_tf32
from htc_model.masks.encode import CHUNK_COLUMNS, encode_detections
from htc_model.masks.frames import CHUNK_PIXELS, encode_frames
from htc_model.preprocess import upload_pixels
from htc_model.semantic_classes import semantic_classes
from htc_model.structures import Detections, FrameDetections, RawDetections
from pipeline.errors import ImageError
from pipeline.messages import ImageFailure
from pipeline.models.checked import CheckedModel
from pipeline.models.foreign_code import exits_as
from pipeline.models.pixels import Pixels, PresetPixels
from pipeline.models.protocol import InstanceModel
from pipeline.output.rows import ClassNames
from pipeline.worker.batch_encoding import BatchEncoder, PendingDetections
from pipeline.worker.batching import BatchSize
from pipeline.worker.error_boundaries import DeviceLostError, image_boundary
from pipeline.worker.fast_path import FastChoice, SegmentationModel, WholeImageModel
from pipeline.worker.uploads import Upload

if TYPE_CHECKING:
    # The network's part of a worker runs without the libraries of specs and stores.
    from pipeline.job_spec.model import ModelSection
    from pipeline.storage.storage import Storage

log = logging.getLogger(__name__)

# The feature maps and RoI features that htc_x101_64x4d_fpn holds at once add up to some 0.7 KiB per padded pixel; three
# times that is an estimate, not measured on a card yet. A wrong estimate costs a halved batch, not the run.
BYTES_PER_PIXEL = 2048
# Leaves room for the next batch's pixels, the masks being encoded and the allocator's fragments.
MEMORY_SHARE = 0.5
# Larger batches wait longer for images of their shape, and 16 of 1333 x 800 keep any card busy.
MAX_AUTO_BATCH = 16
# Image columns of masks worked on at a time, about 2 kB of memory each (`htc_model.masks.encode`): some 60 MB, 8 MB,
# 1 MB. Of masks over the whole image values, 32 bytes each (`htc_model.masks.frames`): a quarter of that.
MASK_CHUNKS = (CHUNK_COLUMNS, CHUNK_COLUMNS // 8, CHUNK_COLUMNS // 64)
FRAME_CHUNKS = (CHUNK_PIXELS, CHUNK_PIXELS // 8, CHUNK_PIXELS // 64)


LoadModel = Callable[..., SegmentationModel | InstanceModel]
# What the model finds in an image, and what becomes of the image.
Found = RawDetections | FrameDetections | PendingDetections
Outcome = Found | ImageFailure


class ImagePart(NamedTuple):
    """What the model has a result for: the image at a position of a shard, or one of its tiles, by its number."""

    position: int
    tile: int | None = None


@dataclass(frozen=True)
class DecodedImage:
    """One decoded image: position in its shard, uri, pixels [H, W, 3] uint8 RGB, and the shard's index.

    tile: the number of the tile that the pixels are; None for the whole image.
    """

    position: int
    uri: str
    pixels: np.ndarray
    shard: int = 0
    tile: int | None = None

    @property
    def part(self) -> ImagePart:
        """Where the result belongs."""
        return ImagePart(self.position, self.tile)


def load_model(section: "ModelSection", storage: "Storage | None" = None) -> SegmentationModel:
    """Build the spec's network with its weights, on the CPU, in evaluation mode.

    Raises:
        WeightsUnavailableError: the weights are not available.
        WeightsError: the weights are not of this preset, or not weights.
    """
    from htc_model.network.detector import build_model
    from htc_model.weights.load import load_into, load_weights
    from htc_model.weights.untrained import untrained_state
    from pipeline.weights.cache import resolve_weights
    from pipeline.weights.fingerprint import resolve_config

    path = resolve_weights(section, storage)
    model = build_model(resolve_config(section, path)).eval()
    if path is None:
        model.load_state_dict(untrained_state(model.state_dict()))
    else:
        load_into(model, load_weights(path))
    return model


def settle_precision(
    section: "ModelSection", device: torch.device, storage: "Storage | None" = None, *, is_callers_model: bool = False
) -> PrecisionChoice:
    """Settle what the spec's `precision` means on a device, and make float32 mean float32 there (no TF32).

    Args:
        section: the spec's model; its weights are hashed where a record of the precision gate could be about them.
        is_callers_model: whether the network is not the section's; then no record is about it.

    Raises:
        WeightsUnavailableError: the weights are not available.
    """
    forbid_tf32()
    weights_sha256 = ""
    if section.precision == "auto" and device.type == "cuda" and not is_callers_model:
        from pipeline.weights.fingerprint import compute_fingerprint

        weights_sha256 = compute_fingerprint(section, storage).weights_sha256
    choice = choose_precision(section.precision, section.preset, weights_sha256, device)
    log.info("precision: %s", choice)
    return choice


def prepare_for_cpu(model: SegmentationModel, precision: PrecisionChoice) -> SegmentationModel:
    """Return the model as a CPU runs it fastest, with the same detections: a float32 `HTC` is copied, others stay."""
    from htc_model.inference.cpu_network import optimise_for_cpu
    from htc_model.network.detector import HTC

    # A caller's subclass may compute anything, and a network in training mode cannot be folded.
    if type(model) is not HTC or model.training or precision.precision != "fp32":
        return model
    return optimise_for_cpu(model)


def augment(
    model: SegmentationModel | CheckedModel, section: "ModelSection"
) -> SegmentationModel | WholeImageModel | CheckedModel:
    """Return the model as the spec's `augment` has it see the images.

    Raises:
        ModelConfigError: the model is not one of the presets' networks.
    """
    from htc_model.network.detector import HTC

    if section.augment is None:
        return model
    if not isinstance(model, CheckedModel) and not (views := section.augment.views(model.config.resize)):
        return model
    if not isinstance(model, HTC):
        raise ModelConfigError(
            "model.augment is for networks of the presets; a model of your own must see its views by itself."
        )
    return AugmentedModel(model, views, wants_semantic=section.wants_semantic)


def pick_device(gpus: float) -> torch.device:
    """Return the worker's GPU when it was given one and CUDA sees it, else the CPU."""
    return torch.device("cuda") if gpus > 0 and torch.cuda.is_available() else torch.device("cpu")


def auto_batch_size(pixels: Pixels, device: torch.device, *, beside: Sequence[Pixels] = ()) -> int:
    """Return how many images of the largest padded shape fit; 1 on a CPU, where larger batches are no faster.

    Args:
        beside: those of the other networks that see each image, whose features are kept meanwhile.
    """
    if device.type != "cuda":
        return 1
    free_bytes, _ = torch.cuda.mem_get_info(device)
    sizes = [each.largest_size() for each in (pixels, *beside)]
    count = sum(height * width for height, width in sizes)
    return max(1, min(MAX_AUTO_BATCH, int(free_bytes * MEMORY_SHARE / (BYTES_PER_PIXEL * count))))


def _finite(raw: RawDetections) -> RawDetections:
    """Return detections whose numbers are all finite.

    Raises:
        ImageError: `failed`, one is NaN or infinite.
    """
    try:
        check_finite("scores", [raw.scores])
        check_finite("boxes", [raw.boxes_xyxy])
        if raw.mask_probs is not None:
            check_finite("masks", [raw.mask_probs])
    except NonFiniteError as error:
        raise ImageError("failed", f"the model computed no result: {error}") from error
    return raw


def _mask_side(found: object) -> int | None:
    """Return the side of an image's square mask maps; None where there are no masks."""
    return None if not isinstance(found, RawDetections) or found.mask_probs is None else found.mask_probs.shape[-1]


def _unwatched(images: Sequence[DecodedImage]) -> AbstractContextManager[None]:
    return nullcontext()


class Segmenter:
    """Runs a model over decoded images on one device, in batches that fit its memory."""

    def __init__(
        self,
        model: SegmentationModel | WholeImageModel | CheckedModel,
        device: torch.device,
        *,
        precision: PrecisionChoice | None = None,
        batch_size: int | None = None,
        fast: FastChoice | None = None,
        encoder: BatchEncoder | None = None,
        wants_semantic: bool = False,
    ) -> None:
        """Put the model on the device.

        Args:
            precision: None: fp32; "bf16" of `model` is by autocast, see `settle_precision`.
            batch_size: None: by memory.
            fast: the model that takes the place of `model`, if it may, see `fast_path`.
            encoder: encodes whole batches; None encodes image by image, where the caller calls `encode`.
            wants_semantic: whether the semantic branch's maps are asked for.
        """
        if isinstance(model, WholeImageModel):
            model.place(device)
        elif isinstance(model, torch.nn.Module | CheckedModel):
            model.to(device)
        self.model = model
        self.classes: ClassNames = model if isinstance(model, CheckedModel) else model.config
        self._pixels: Pixels = model.pixels if isinstance(model, CheckedModel) else PresetPixels(model.config)
        self.device = device
        self.precision = precision or PrecisionChoice("fp32", "by default")
        self.fast = fast or FastChoice(None, "")
        self.semantic_classes = (
            () if isinstance(model, CheckedModel) or not wants_semantic else semantic_classes(model.config)
        )
        self._wants_semantic = wants_semantic
        self._encoder = encoder
        beside = [PresetPixels(config) for config in model.configs[1:]] if isinstance(model, WholeImageModel) else ()
        self.batch_size = BatchSize(batch_size or auto_batch_size(self._pixels, device, beside=beside))

    @property
    def device_name(self) -> str:
        """The kind of the device that the model computes on, which may be another process's."""
        return getattr(self.model, "computes_on", "") or self.device.type

    @property
    def model_phrase(self) -> str:
        """The model in messages about it, with the name that a model of one's own has."""
        return f"the model {self.model.name}" if isinstance(self.model, CheckedModel) else "the model"

    def padded_shape(self, image: DecodedImage) -> tuple[int, int]:
        """Return the (height, width) of the image inside a batch; equal shapes may share one."""
        height, width = image.pixels.shape[:2]
        return self._pixels.padded_size(height, width)

    def segment(
        self,
        images: Sequence[DecodedImage],
        *,
        watch: Callable[[Sequence[DecodedImage]], AbstractContextManager[None]] = _unwatched,
        staged: Upload | None = None,
    ) -> Iterator[tuple[DecodedImage, Outcome]]:
        """Segment images of one padded shape; yields every image, in order, with its detections or its failure.

        A batch that does not fit the accelerator's memory is halved; an image that does not fit alone fails. The images
        of a batch that raises are tried one by one, so that only the image at fault fails.

        Args:
            watch: entered with the images of each batch during the inference.
            staged: the same images on their way to the device.

        Raises:
            DeviceLostError: the device is unusable.
        """
        batches = deque([list(images)])
        while batches:
            batch = batches.popleft()
            name = batch[0].uri if len(batch) == 1 else f"{batch[0].uri} and {len(batch) - 1} more"
            with watch(batch):
                outcome = image_boundary(name, lambda batch=batch, staged=staged: self._infer(batch, staged))  # type: ignore[misc]
            # Its pieces are built from the images again.
            staged = None
            if isinstance(outcome, list):
                if len(outcome) != len(batch):
                    # Whose results they are cannot be known, and a consumer may stop before the last one.
                    raise ValueError(f"the model returned {len(outcome)} results for {len(batch)} images")
                self.batch_size.succeeded(len(batch))
                yield from zip(batch, self._outcomes(batch, outcome), strict=True)
            elif len(batch) > 1:
                half = (len(batch) + 1) // 2 if outcome is None else 1
                pieces = [batch[start : start + half] for start in range(0, len(batch), half)]
                batches.extendleft(reversed(pieces))
            elif outcome is None:
                height, width = batch[0].pixels.shape[:2]
                kind = "image" if batch[0].tile is None else "tile"
                reason = f"the {self.device.type} ran out of memory on this {width} x {height} {kind} alone"
                yield batch[0], ImageFailure(batch[0].uri, "failed", reason)
            else:
                yield batch[0], self._naming_model(outcome)

    def _naming_model(self, failure: ImageFailure) -> ImageFailure:
        """Name a model of one's own whose `infer` raised; what is wrong with its results names it already."""
        if not isinstance(self.model, CheckedModel) or not failure.traceback:
            return failure
        return replace(failure, reason=f"{self.model_phrase} raised {failure.reason}")

    def _outcomes(self, images: Sequence[DecodedImage], raws: Sequence[Any]) -> Iterable[Outcome]:
        if isinstance(self.model, CheckedModel):
            return self._checked_outcomes(images, raws)
        if self._encoder is not None and len(raws) == len(images):
            return self._encoder.submit(raws)
        # For any model: NaN would make rows that no reader can order or filter.
        return (
            image_boundary(image.uri, lambda raw=raw: _finite(raw))  # type: ignore[misc]
            for image, raw in zip(images, raws, strict=True)
        )

    def _checked_outcomes(
        self, images: Sequence[DecodedImage], found: Sequence[RawDetections | FrameDetections | ImageError]
    ) -> list[Outcome]:
        outcomes: list[Outcome] = [
            ImageFailure(image.uri, each.status, each.reason) if isinstance(each, ImageError) else each
            for image, each in zip(images, found, strict=True)
        ]
        if self._encoder is not None:
            # One pass encodes maps of one size; a model may return its results on the CPU.
            kind = self.device.type
            places = [
                place
                for place, each in enumerate(found)
                if isinstance(each, RawDetections) and each.scores.device.type == kind
            ]
            sides = {place: _mask_side(found[place]) for place in places}
            together = [place for place in places if sides[place] == sides[places[0]]]
            raws = [each for place in together if isinstance(each := found[place], RawDetections)]
            for place, pending in zip(together, self._encoder.submit(raws) if raws else [], strict=True):
                outcomes[place] = pending
        return outcomes

    def encode(self, found: Found) -> Detections:
        """Encode one image's masks, in smaller and smaller chunks when they do not fit the memory.

        Raises:
            ImageError: `failed`: the smallest chunks do not fit either, or the model's numbers are not finite.
            DeviceLostError: the device is unusable.
        """
        detections = self._encode_found(found)
        return self.model.clip(detections, found.original_size) if isinstance(self.model, CheckedModel) else detections

    def _encode_found(self, found: Found) -> Detections:
        if not isinstance(found, PendingDetections):
            return self._encode_alone(found)
        try:
            return found.result()
        except NonFiniteError as error:
            raise ImageError("failed", f"the model computed no result: {error}") from error
        except torch.OutOfMemoryError:
            log.warning("out of memory with the masks of a batch; they are encoded image by image")
        self._free_cache()
        return self._encode_alone(found.raw)

    def _encode_alone(self, found: RawDetections | FrameDetections) -> Detections:
        for chunk in FRAME_CHUNKS if isinstance(found, FrameDetections) else MASK_CHUNKS:
            detections = self._encode(found, chunk)
            if detections is not None:
                return detections
        height, width = found.original_size
        raise ImageError(
            "failed", f"the {self.device.type} ran out of memory on the masks of this {width} x {height} image"
        )

    def _encode(self, found: RawDetections | FrameDetections, chunk: int) -> Detections | None:
        """Return one image's encoded masks; None when they do not fit the memory."""
        try:
            if isinstance(found, FrameDetections):
                return encode_frames(found, chunk_pixels=chunk)
            return encode_detections(found, chunk_columns=chunk)
        except torch.OutOfMemoryError:
            log.warning("out of memory with masks in chunks of %d", chunk)
        except NonFiniteError as error:
            raise ImageError("failed", f"the model computed no result: {error}") from error
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        self._free_cache()
        return None

    def _own_code(self) -> AbstractContextManager[None]:
        """Return a context in which what would end the process fails the images: only a model of one's own exits."""
        if not isinstance(self.model, CheckedModel):
            return nullcontext()
        # sys.exit in a model of one's own would end the worker, and all images of its shards would be tried again.
        return exits_as(lambda phrase: ImageError("failed", f"{self.model_phrase} {phrase}"))

    def _infer(self, images: Sequence[DecodedImage], staged: Upload | None) -> list[Any] | None:
        """Return the detections of one batch; None when it does not fit the memory."""
        try:
            with torch.inference_mode(), self._own_code():
                if isinstance(self.model, WholeImageModel):
                    return self._infer_whole(self.model, images, staged)
                if staged is None:
                    batch = self._pixels.build([image.pixels for image in images], self.device)
                else:
                    batch = self._pixels.assemble(staged.receive())
                if isinstance(self.model, CheckedModel):
                    with self._autocast():
                        found = self.model.infer(batch)
                    return [self.model.try_check(*each) for each in zip(found, batch.original_sizes, strict=True)]
                batch = replace(batch, wants_semantic=self._wants_semantic)
                if self.fast.model is not None:
                    return self.fast.model.infer(batch)
                with self._autocast():
                    return self.model.infer(batch)
        except NonFiniteError as error:
            # The images of a batch are tried one by one, so that only the image at fault fails.
            raise ImageError("failed", f"the model computed no result: {error}") from error
        except torch.OutOfMemoryError:
            self.batch_size.ran_out(len(images))
            log.warning("out of memory with %d images, now at most %d", len(images), self.batch_size.current)
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        self._free_cache()
        return None

    def _infer_whole(
        self, model: WholeImageModel, images: Sequence[DecodedImage], staged: Upload | None
    ) -> list[RawDetections]:
        pixels = [upload_pixels(each.pixels, self.device) for each in images] if staged is None else staged.receive()
        with self._autocast():
            return model.infer_images(pixels, at_once=self.batch_size.current)

    def _free_cache(self) -> None:
        # Called outside the handlers: the exception's traceback would keep the tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
