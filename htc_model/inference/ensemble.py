"""An ensemble: several networks see each image, and are merged before the masks.

    members -> proposals of each member --merged--> the same proposals for every member
            -> boxes and scores of each member --mean by votes--> threshold, NMS per class -> detections
            -> masks of the detections by each member --mean by votes--> 28x28 probabilities

Masks are averaged as probabilities at one box, never suppressed against each other. Weighted boxes fusion takes the
place of mean and NMS where it is asked for. Classes are joined by name; a class has the votes of the members that know
it. Each member resizes the image as it was trained, and sees its own views where it has any. An ensemble of one network
with itself gives that network's detections, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from htc_model.class_maps import ensemble_config, join_classes
from htc_model.config import ModelConfig, ModelConfigError, Suppression
from htc_model.finite import NonFiniteError
from htc_model.inference.fusion import Fusion, average_votes, check_wbf, fuse_boxes, merge_proposals
from htc_model.inference.plan import Precision
from htc_model.inference.views import (
    MEAN_GRID,
    Proposals,
    ScoredBoxes,
    SeenImages,
    from_original_pixels,
    rounded,
    to_original_pixels,
)
from htc_model.network.box_ops import clip_boxes
from htc_model.network.detector import HTC
from htc_model.network.postprocess import BoxDetections, select_detections, to_original
from htc_model.preprocess import resized_size
from htc_model.structures import RawDetections

T = TypeVar("T")
# A step that a member has begun; called, it returns the result. Steps of several members so run side by side.
Answer = Callable[[], T]
Size = tuple[int, int]


class Member(Protocol):
    """One network of an ensemble, in this process or another: the steps in their order, for some images at a time.

    Boxes are xyxy in pixels of the original images; tensors are on the images' device. Answers raise NonFiniteError and
    torch.OutOfMemoryError.
    """

    @property
    def config(self) -> ModelConfig:
        """Its network, with its views."""

    def place(self, device: torch.device) -> None:
        """Put the network on a device, where it is in this process."""

    def propose(self, images: Sequence[Tensor], *, at_once: int, keeps_features: bool) -> Answer[list[Proposals]]:
        """Begin with images [H, W, 3] uint8 RGB: proposals of each; see `views.SeenImages`."""

    def detect(self, proposals: Sequence[Tensor]) -> Answer[list[ScoredBoxes]]:
        """Refine and score proposals [R, 4] of each image."""

    def segment(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Answer[list[Tensor]]:
        """Segment boxes [N, 4] of each image, at its own labels [N]: [N, 28, 28] in [0, 1]."""

    def forget(self) -> None:
        """Free what is kept of the images."""


class LocalMember:
    """A member in this process.

    Args:
        network: in evaluation mode; its configuration has the views.
        precision: of the network, by autocast.
    """

    def __init__(self, network: HTC, *, precision: Precision = "fp32") -> None:
        self._network = network
        self._precision = precision
        self._seen: SeenImages | None = None

    @property
    def config(self) -> ModelConfig:
        """The network's."""
        return self._network.config

    def place(self, device: torch.device) -> None:
        """Put the network on a device."""
        self._network.to(device)

    def propose(self, images: Sequence[Tensor], *, at_once: int, keeps_features: bool) -> Answer[list[Proposals]]:
        """Begin with images; the answer computes."""
        self._seen = SeenImages(
            self._network, self.config.views, images, at_once=at_once, keeps_features=keeps_features
        )
        return partial(self._compute, images[0].device, self._seen.propose)

    def detect(self, proposals: Sequence[Tensor]) -> Answer[list[ScoredBoxes]]:
        """Refine and score; the answer computes."""
        return partial(self._compute, proposals[0].device, partial(self._images.detect, proposals))

    def segment(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Answer[list[Tensor]]:
        """Segment; the answer computes."""
        return partial(self._compute, boxes[0].device, partial(self._images.segment, boxes, labels))

    def forget(self) -> None:
        """Free the features."""
        self._seen = None

    @property
    def _images(self) -> SeenImages:
        if self._seen is None:
            raise RuntimeError("a member of an ensemble was asked about boxes before it saw the images")
        return self._seen

    @torch.inference_mode()
    def _compute(self, device: torch.device, step: Callable[[], T]) -> T:
        is_bf16 = self._precision == "bf16"
        autocast: AbstractContextManager[object] = (
            torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext()
        )
        with autocast:
            return step()


class EnsembleModel:
    """Several networks that see each image together.

    Args:
        members: at least one; a network stands for a `LocalMember` of it. Thresholds that only one of them can set, and
            the number of detections, are the first one's.
        votes: per member, more than 0; by default 1 each.
        fusion: of boxes: "nms", "soft_nms" (see `suppression`), or "wbf", weighted boxes fusion.
        suppression: the kind of soft-NMS.
        names: of the members, for messages; by default their configurations' names.

    Attributes:
        computes_on: the kind of device where members in other processes compute; "" for the images' device.

    Raises:
        ModelConfigError: see `class_maps.join_classes`; a member is no network of this family, or a class has no member
            with masks while other classes have.
    """

    def __init__(
        self,
        members: Sequence[Member | HTC],
        *,
        votes: Sequence[float] | None = None,
        fusion: Fusion = "nms",
        suppression: Suppression = "soft_gaussian",
        names: Sequence[str] | None = None,
    ) -> None:
        if not members:
            raise ModelConfigError("An ensemble needs at least one member.")
        self.members: tuple[Member, ...] = tuple(_as_member(each) for each in members)
        self.configs: Sequence[ModelConfig] = tuple(member.config for member in self.members)
        self.names = tuple(names or (config.name for config in self.configs))
        self.votes = tuple(1.0 for _ in self.members) if votes is None else tuple(float(vote) for vote in votes)
        if len(self.votes) != len(self.members) or any(not 0 < vote < float("inf") for vote in self.votes):
            raise ModelConfigError(
                f"An ensemble of {len(self.members)} members needs as many votes, each more than 0, not {self.votes}."
            )
        self.computes_on = ""
        self.fusion = fusion
        if fusion == "wbf":
            check_wbf()
        self.config = ensemble_config(self.configs, self.names)
        joined = join_classes(self.configs, self.names)
        if fusion == "soft_nms":
            self.config = replace(self.config, suppression=suppression)
        # By member: its own label of each joint class, -1 where it knows none; and the joint label of each of its own.
        self._own = [torch.tensor([-1 if label is None else label for label in own]) for own in joined.own_labels]
        places = {category: place for place, category in enumerate(joined.classes)}
        self._joint = [torch.tensor([places[category] for category in config.classes]) for config in self.configs]
        self._is_augmented = any(config.views for config in self.configs)
        self._knows_all = all(None not in own for own in joined.own_labels)

    def place(self, device: torch.device) -> None:
        """Put the members' networks on a device, where they are in this process."""
        for member in self.members:
            member.place(device)

    @torch.inference_mode()
    def infer_images(self, images: Sequence[Tensor], *, at_once: int | None = None) -> list[RawDetections]:
        """Detect and segment with all members.

        Args:
            images: [H, W, 3] uint8 RGB, of any sizes, on the members' device.
            at_once: images, or views of them, that go through a network together; by default all images.

        Returns:
            One RawDetections per image, most confident first, with labels in `config.classes`.

        Raises:
            NonFiniteError: an image's activations overflow in a member, or its weights contain NaN; names the member.
            torch.OutOfMemoryError: one image does not fit with all members.
        """
        if not images:
            return []
        try:
            return self._infer(images, at_once or len(images), keeps_features=True)
        except torch.OutOfMemoryError:
            # Leaving this handler frees what was computed.
            pass
        finally:
            self._forget()
        try:
            return self._infer(images, at_once or len(images), keeps_features=False)
        finally:
            self._forget()

    def _forget(self) -> None:
        for member in self.members:
            member.forget()

    def _infer(self, images: Sequence[Tensor], at_once: int, *, keeps_features: bool) -> list[RawDetections]:
        device = images[0].device
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        proposals = self._propose(images, at_once, keeps_features=keeps_features)
        scored = self._answers([member.detect(proposals) for member in self.members])
        frames = [self._frame(size) for size in sizes]
        detected = [
            self._fuse([found[index] for found in scored], size, frame, device)
            for index, (size, frame) in enumerate(zip(sizes, frames, strict=True))
        ]
        masks = self._segment(
            [
                to_original_pixels(boxes, frame, size)
                for (boxes, _, _), frame, size in zip(detected, frames, sizes, strict=True)
            ],
            [labels for _, _, labels in detected],
        )
        return [
            RawDetections(boxes if self._is_augmented else to_original(boxes, frame, size), scores, labels, probs, size)
            for (boxes, scores, labels), probs, frame, size in zip(detected, masks, frames, sizes, strict=True)
        ]

    def _frame(self, size: Size) -> Size:
        """Return the (height, width) in whose pixels boxes are selected.

        With views, the original image's, where mirrored views agree exactly; else those that the first member sees, as
        that network alone does it.
        """
        return size if self._is_augmented else resized_size(*size, self.config.resize)

    def _propose(self, images: Sequence[Tensor], at_once: int, *, keeps_features: bool) -> list[Tensor]:
        found = self._answers(
            [member.propose(images, at_once=at_once, keeps_features=keeps_features) for member in self.members]
        )
        limit = max(config.rpn_proposals for config in self.configs)
        iou = self.config.rpn_nms_iou
        return [
            merge_proposals([proposals[index] for proposals in found], iou=iou, limit=limit)[0]
            for index in range(len(images))
        ]

    def _fuse(self, found: Sequence[ScoredBoxes], size: Size, frame: Size, device: torch.device) -> BoxDetections:
        """Bring the members' boxes of one image together: detections in the frame's pixels."""
        known = [own.to(device) >= 0 for own in self._own]
        if self.fusion == "wbf" and len(found) > 1:
            own = [self._select(boxes, scores, size, frame) for boxes, scores in found]
            return fuse_boxes(
                [
                    (boxes, scores, self._joint[member].to(device)[labels])
                    for member, (boxes, scores, labels) in enumerate(own)
                ],
                [each.tolist() for each in known],
                self.votes,
                frame,
                score_threshold=self.config.score_threshold,
                limit=self.config.max_detections,
            )
        scores = average_votes(
            [self._spread(each, member) for member, (_, each) in enumerate(found)], known, self.votes
        )
        if self._knows_all and all(boxes.shape[1] == 1 for boxes, _ in found):
            everywhere = [torch.ones((), dtype=torch.bool, device=device)] * len(found)
            boxes = average_votes([boxes.double() for boxes, _ in found], everywhere, self.votes)
        else:
            boxes = average_votes(
                [self._spread(each.double(), member) for member, (each, _) in enumerate(found)],
                [each[:, None] for each in known],
                self.votes,
            )
        return self._select(boxes, scores.clamp(0, 1), size, frame)

    def _spread(self, values: Tensor, member: int) -> Tensor:
        """Return [R, classes of all, ...] from a member's [R, 1 or its classes, ...]; any value where it knows none."""
        if values.shape[1] == 1 and self.configs[member].num_classes > 1:
            return values.expand(-1, self.config.num_classes, *values.shape[2:])
        return values[:, self._own[member].to(values.device).clamp(min=0)]

    def _select(self, boxes: Tensor, scores: Tensor, size: Size, frame: Size) -> BoxDetections:
        """Threshold and suppress boxes [R, 1 or classes, 4] of original pixels: detections in the frame's pixels."""
        if self._is_augmented:
            boxes = rounded(boxes.double(), MEAN_GRID).float()
        else:
            boxes = from_original_pixels(boxes, frame, size)
        return select_detections(clip_boxes(boxes, boxes.new_tensor(frame)), scores, self.config)

    def _segment(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Average the masks of detections: boxes [N, 4] of original pixels, labels [N] in the classes of all."""
        with_masks = [member for member, config in enumerate(self.configs) if config.has_masks]
        if not with_masks:
            return [None] * len(boxes)
        device = boxes[0].device
        own = [[self._own[member].to(device)[each] for each in labels] for member in with_masks]
        chosen = [[(each >= 0).nonzero()[:, 0] for each in of_member] for of_member in own]
        found = self._answers(
            [
                self.members[member].segment(
                    [each[rows] for each, rows in zip(boxes, places, strict=True)],
                    [each[rows] for each, rows in zip(of_member, places, strict=True)],
                )
                for member, of_member, places in zip(with_masks, own, chosen, strict=True)
            ],
            with_masks,
        )
        votes = [self.votes[member] for member in with_masks]
        return [
            average_votes(
                [
                    _at_rows(of_member[image], places[image], len(labels[image]))
                    for of_member, places in zip(found, chosen, strict=True)
                ],
                [(each[image] >= 0)[:, None, None] for each in own],
                votes,
            ).clamp(0, 1)
            for image in range(len(boxes))
        ]

    def _answers(self, pending: Sequence[Answer[T]], members: Sequence[int] | None = None) -> list[T]:
        """Return what members answer, all of which have begun."""
        answers = []
        for answer, member in zip(pending, members or range(len(pending)), strict=True):
            with self._named(member):
                answers.append(answer())
        return answers

    @contextmanager
    def _named(self, member: int) -> Iterator[None]:
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.names[member]}: {error}") from error


def _as_member(member: Member | HTC) -> Member:
    if isinstance(member, HTC):
        return LocalMember(member)
    if not all(hasattr(member, step) for step in ("propose", "detect", "segment", "forget")):
        name = getattr(member, "name", None) or getattr(getattr(member, "config", None), "name", type(member).__name__)
        raise ModelConfigError(
            f"{name} cannot be a member of an ensemble: its heads cannot be run at given boxes, as those of the "
            "presets' networks can; give it a run of its own."
        )
    return member


def _at_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return [count, ...] with the values at these rows, zero elsewhere; the values themselves where all are there."""
    if len(rows) == count:
        return values
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, rows, values)
