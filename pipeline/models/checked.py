"""CheckedModel: a model of one's own behind checks, so that nothing that it returns can harm a table.

Its facts are checked once, when it is made; each result when it arrives. A result that is no detections fails the image
that it is of, with one sentence that names the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from htc_model.structures import Detections, FrameDetections, ImageBatch, RawDetections
from pipeline.errors import ImageError, ModelError
from pipeline.models.foreign_code import is_ctrl_c, place_of, raised
from pipeline.models.pixels import FormatPixels
from pipeline.models.protocol import InstanceModel, PixelFormat

PAGE = "docs/models/any_model.md"
# More than any image holds; a model that returns every candidate would fill the memory with masks.
MOST_INSTANCES = 10_000
# Scores and probabilities of sigmoids in bfloat16 are rounded; beyond this they are something else.
_RANGE_TOLERANCE = 1e-2
# Between the sides of a mask and those of its image, scaled to the mask: strides round up.
_SIDE_TOLERANCE_PX = 2.0
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _FaultError(Exception):
    """What is wrong with one image's result, as a phrase behind "the model NAME returned"."""


class CheckedModel:
    """A model of one's own whose facts are checked, and whose results are checked, cut off and sorted by `check`.

    Attributes:
        model: the object itself. reference: how the spec names it. name, classes: its own.
        category_ids: its own, or 1, 2, 3, ... pixels: makes its batches.
        score_threshold, max_detections: of the spec; instances must score above the one, and are at most the other.
    """

    def __init__(
        self,
        model: object,
        *,
        reference: str = "",
        who: str = "",
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> None:
        """Check the model's facts, and switch it to evaluation.

        Args:
            who: how a message about its facts begins; by default with the factory.

        Raises:
            ModelError: it does not keep to the protocol; one sentence that names it.
        """
        who = who or (f"The model factory {reference} returned" if reference else "The model is")
        self.reference = reference
        with _as_model_errors(f"{who} a {type(model).__name__}, whose facts cannot be read: one"):
            self.name, self.classes, self.category_ids, self.format = _read_facts(model, who)
        self.model = cast("InstanceModel", model)
        self.pixels = FormatPixels(self.format)
        self.score_threshold = score_threshold
        self.max_detections = max_detections
        with _as_model_errors(f"The model {self.name} cannot be switched to evaluation: its `eval`"):
            _call_if_there(model, "eval")

    def to(self, device: torch.device) -> None:
        """Move the model to a device, where it can be moved.

        Raises:
            ModelError: it raised something else than what torch raises for a device that is full or lost.
        """
        with _as_model_errors(f"The model {self.name} cannot be moved to {device}: its `to`"):
            _call_if_there(self.model, "to", device)

    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        """Return one result for each image, unchecked; see `check`.

        Raises:
            ImageError: `failed`, the model returned something else than one result for each image.
        """
        found = cast("object", self.model.infer(batch))
        if isinstance(found, str | bytes) or not isinstance(found, Sequence):
            raise self._error(f"a {type(found).__name__}, and not a list with one result for each image")
        if len(found) != len(batch):
            raise self._error(f"{len(found)} results for {len(batch)} images")
        return list(found)

    def check(self, found: object, size: tuple[int, int]) -> RawDetections | FrameDetections:
        """Return one image's result with what the spec wants of it: sorted by score, above the threshold, not too many.

        Boxes are not clipped yet, as masks are stretched over them; see `clip`.

        Args:
            found: an element of what `infer` returned.
            size: (height, width) of the decoded image.

        Raises:
            ImageError: `failed`, it is no valid result.
        """
        try:
            if isinstance(found, RawDetections):
                return self._check_raw(found, size)
            if isinstance(found, FrameDetections):
                return self._check_frames(found, size)
        except _FaultError as fault:
            raise self._error(str(fault)) from None
        raise self._error(f"a {type(found).__name__} for an image, and neither RawDetections nor FrameDetections")

    def try_check(self, found: object, size: tuple[int, int]) -> RawDetections | FrameDetections | ImageError:
        """Return what `check` returns, or its error as a value."""
        try:
            return self.check(found, size)
        except ImageError as error:
            return error

    def clip(self, found: Detections, size: tuple[int, int]) -> Detections:
        """Return one image's detections with the boxes clipped to the image of `size` (height, width)."""
        height, width = size
        limits = found.boxes_xyxy.new_tensor([width, height, width, height])
        return Detections(found.boxes_xyxy.clamp(min=0).minimum(limits), found.scores, found.labels, found.masks)

    def _error(self, phrase: str) -> ImageError:
        return ImageError("failed", f"the model {self.name} returned {phrase}")

    def _check_raw(self, found: RawDetections, size: tuple[int, int]) -> RawDetections:
        scores, labels, keep = self._check_common(found, size)
        boxes = _boxes(found.boxes_xyxy, len(scores)).to(scores.device)
        masks = mask_boxes = None
        if found.mask_boxes_xyxy is not None:
            mask_boxes = _boxes(found.mask_boxes_xyxy, len(scores)).to(scores.device)[keep]
        if found.mask_probs is not None:
            masks = _tensor(found.mask_probs, "mask_probs")
            if not len(scores):
                masks = masks.reshape(0, 1, 1) if masks.ndim != 3 else masks
            if masks.ndim != 3 or len(masks) != len(scores) or masks.shape[1] != masks.shape[2] or not masks.shape[1]:
                raise _FaultError(
                    f"mask_probs of the shape {_shape(masks)} for {len(scores)} boxes: RawDetections have square masks "
                    "[N, M, M] over each box, and masks over the whole image belong into FrameDetections"
                )
            masks = masks.float().to(scores.device)[keep]
            _check_range("masks", masks)
        return RawDetections(boxes[keep], scores[keep], labels[keep], masks, size, mask_boxes_xyxy=mask_boxes)

    def _check_frames(self, found: FrameDetections, size: tuple[int, int]) -> FrameDetections:
        scores, labels, keep = self._check_common(found, size)
        masks = _tensor(found.masks, "masks")
        if not len(scores):
            masks = masks.reshape(0, 1, 1) if masks.ndim != 3 or 0 in masks.shape[1:] else masks
        elif masks.ndim != 3 or len(masks) != len(scores) or 0 in masks.shape:
            raise _FaultError(
                f"masks of the shape {_shape(masks)} for {len(scores)} scores, and not [N, height, width]"
            )
        else:
            self._check_frame_size(masks, size)
        if masks.dtype != torch.bool and not masks.is_floating_point():
            raise _FaultError(f"masks of {masks.dtype}; FrameDetections have bool, logits or probabilities")
        masks = masks[keep.to(masks.device)]
        if masks.is_floating_point():
            _check_finite("masks", masks)
            if not found.is_logits:
                _check_range("masks", masks)
        boxes = None if found.boxes_xyxy is None else _boxes(found.boxes_xyxy, len(scores))
        return FrameDetections(
            None if boxes is None else boxes[keep.to(boxes.device)],
            scores[keep],
            labels[keep],
            masks,
            bool(found.is_logits),
            size,
        )

    def _check_frame_size(self, masks: Tensor, size: tuple[int, int]) -> None:
        height, width = masks.shape[1:]
        frames = [size, self.format.resized_size(*size)]
        if not any(_is_scaled(height, width, frame) for frame in frames):
            raise _FaultError(
                f"masks of {width} x {height} pixels for an image of {size[1]} x {size[0]} (resized: "
                f"{frames[1][1]} x {frames[1][0]}), which have another aspect ratio; padding must be cut off"
            )

    def _check_common(
        self, found: RawDetections | FrameDetections, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores [N] float32, labels [N] int64, and which to keep, most confident first: [K] int64."""
        if tuple(found.original_size) != tuple(size):
            raise _FaultError(f"original_size {tuple(found.original_size)} for an image of (height, width) {size}")
        scores, labels = _tensor(found.scores, "scores"), _tensor(found.labels, "labels")
        if scores.ndim != 1 or labels.shape != scores.shape:
            raise _FaultError(f"scores and labels of the shapes {_shape(scores)} and {_shape(labels)}, and not [N]")
        if len(scores) > MOST_INSTANCES:
            raise _FaultError(f"{len(scores):,} instances, more than {MOST_INSTANCES:,}")
        scores = scores.float()
        _check_range("scores", scores)
        labels = self._check_labels(labels).to(scores.device)
        order = torch.argsort(scores, descending=True, stable=True)
        keep = order[scores[order] > self.score_threshold][: self.max_detections]
        return scores.clamp(0, 1), labels, keep

    def _check_labels(self, labels: Tensor) -> Tensor:
        if not len(labels):
            return labels.to(torch.int64)
        if labels.dtype not in _INTEGERS:
            raise _FaultError(f"labels of {labels.dtype}, and not whole numbers")
        least, most = (int(each) for each in torch.aminmax(labels.to(torch.int64)))
        if least < 0 or most >= len(self.classes):
            wrong = least if least < 0 else most
            raise _FaultError(f"the label {wrong}, and has {len(self.classes)} classes, 0 to {len(self.classes) - 1}")
        return labels.to(torch.int64)


@contextmanager
def _as_model_errors(who: str) -> Iterator[None]:
    """Turn what the model's own code raises into one sentence; what another process may not run into passes."""
    try:
        yield
    except (ModelError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except BaseException as error:  # the boundary of another's code, which may call sys.exit
        if is_ctrl_c(error):
            raise
        raise ModelError(f"{who} raised {raised(error)}, in {place_of(error)}.") from error


def _read_facts(model: object, who: str) -> tuple[str, tuple[str, ...], tuple[int, ...], PixelFormat]:
    kind = type(model).__name__
    for fact in ("name", "classes", "pixels", "infer"):
        if not hasattr(model, fact):
            raise ModelError(f"{who} a {kind}, which has no `{fact}`{_way_out(model)}")
    if not callable(cast("Any", model).infer):
        raise ModelError(f"{who} a {kind}, whose `infer` is no method; see {PAGE}.")
    name = cast("Any", model).name
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ModelError(f"{who} a {kind}, whose `name` is not a text of one line, but {name!r}; see {PAGE}.")
    who = f"{who} the model {name}, whose" if who.endswith("returned") else f"The model {name} is wrong: its"
    classes = _read_list(cast("Any", model).classes, who, "classes", str)
    ids = getattr(model, "category_ids", None)
    category_ids = list(range(1, len(classes) + 1)) if ids is None else _read_list(ids, who, "category_ids", int)
    if len(category_ids) != len(classes):
        raise ModelError(f"{who} `category_ids` are {len(category_ids)}, and its classes {len(classes)}; see {PAGE}.")
    return name, tuple(classes), tuple(category_ids), _read_format(cast("Any", model).pixels, who)


def _way_out(model: object) -> str:
    if type(model).__module__.startswith("torchvision.models.detection"):
        return "; torchvision's models are named with --model torchvision:NAME."
    if type(model).__module__.startswith("transformers."):
        return "; models of transformers are named with --model transformers:NAME."
    return f"; a model has name, classes, pixels and infer, see {PAGE}."


def _read_list(values: Any, who: str, fact: str, kind: type) -> list[Any]:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise ModelError(f"{who} `{fact}` are not a list, but {values!r:.60}; see {PAGE}.")
    listed = [each.item() if isinstance(each, np.generic) else each for each in values]
    wanted = "texts" if kind is str else "whole numbers"
    for each in listed:
        if not isinstance(each, kind) or isinstance(each, bool) or each == "":
            raise ModelError(f"{who} `{fact}` must be {wanted}, and hold {each!r:.60}; see {PAGE}.")
    if not listed or len(set(listed)) < len(listed):
        what = "hold one twice" if listed else "are empty"
        raise ModelError(f"{who} `{fact}` {what}; see {PAGE}.")
    return listed


def _read_format(pixels: object, who: str) -> PixelFormat:
    if not isinstance(pixels, PixelFormat):
        raise ModelError(f"{who} `pixels` is a {type(pixels).__name__}, and not a PixelFormat; see {PAGE}.")
    problem = pixels.problem()
    if problem:
        raise ModelError(f"{who} `pixels` are wrong: {problem}; see {PAGE}.")
    return pixels


def _call_if_there(model: object, method: str, *values: object) -> None:
    found: Callable[..., object] | None = getattr(model, method, None)
    if callable(found):
        found(*values)


def _tensor(values: object, what: str) -> Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if not isinstance(values, Tensor):
        raise _FaultError(f"{what} that are a {type(values).__name__}, and not a tensor")
    return values.detach()


def _boxes(values: object, count: int) -> Tensor:
    boxes = _tensor(values, "boxes_xyxy")
    if not count:
        return boxes.float().reshape(0, 4) if not boxes.numel() else _wrong_boxes(boxes, count)
    if boxes.shape != (count, 4):
        return _wrong_boxes(boxes, count)
    boxes = boxes.float()
    _check_finite("boxes", boxes)
    is_reversed = (boxes[:, 2:] < boxes[:, :2]).any(dim=1)
    if bool(is_reversed.any()):
        x1, y1, x2, y2 = (f"{value:g}" for value in boxes[int(is_reversed.nonzero()[0])].tolist())
        raise _FaultError(f"the box {x1}, {y1}, {x2}, {y2}, whose end lies before its begin; boxes are x1, y1, x2, y2")
    return boxes


def _wrong_boxes(boxes: Tensor, count: int) -> Tensor:
    raise _FaultError(f"boxes_xyxy of the shape {_shape(boxes)} for {count} scores, and not [N, 4]")


def _check_finite(what: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise _FaultError(f"{what} that are not finite numbers (NaN or infinity)")


def _check_range(what: str, values: Tensor) -> None:
    _check_finite(what, values)
    if not values.numel():
        return
    least, most = (float(each) for each in torch.aminmax(values))
    if least < -_RANGE_TOLERANCE or most > 1 + _RANGE_TOLERANCE:
        raise _FaultError(f"{what} from {least:g} to {most:g}, and not from 0 to 1")


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(str(side) for side in tensor.shape)}]"


def _is_scaled(height: int, width: int, frame: tuple[int, int]) -> bool:
    """Return whether a mask's sides are those of a frame (height, width), both scaled alike."""
    # By the longer side, as the shorter one may be a pixel, rounded up.
    scale = height / frame[0] if frame[0] >= frame[1] else width / frame[1]
    return max(abs(frame[0] * scale - height), abs(frame[1] * scale - width)) <= _SIDE_TOLERANCE_PX
