"""Test-time augmentation: one network over several views of each image, merged before the masks.

    views -> proposals of each view --NMS--> the same proposals for every view
          -> boxes and scores of each view --mean--> threshold, NMS per class -> detections
          -> masks of the detections in each view --mean--> 28x28 probabilities

Masks are averaged as probabilities at one box, never suppressed against each other. The order of the steps is that of
the published two-stage testing (MMDetection, `aug_test`), with which the paper's overall system was measured. A view is
mirrored before it is resized, and positions are rounded to a grid on which mirroring is exact, so that a mirrored
photo gives the mirrored detections.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from htc_model.config import ModelConfig, ViewConfig
from htc_model.inference.views import SeenImages
from htc_model.network.box_ops import clip_boxes
from htc_model.network.detector import HTC
from htc_model.network.postprocess import select_detections
from htc_model.preprocess import assemble_batch
from htc_model.structures import RawDetections


class AugmentedModel:
    """A network that sees each image in the views of its configuration.

    Args:
        network: in evaluation mode, on its device.
        views: at least one; by default those of the network's configuration.
        wants_semantic: whether each image's detections also have its semantic map in every view.
    """

    def __init__(
        self, network: HTC, views: Sequence[ViewConfig] | None = None, *, wants_semantic: bool = False
    ) -> None:
        self.network = network
        self.wants_semantic = wants_semantic
        self.config = network.config
        self.views = tuple(network.config.views if views is None else views)
        if not self.views:
            raise ValueError("test-time augmentation needs at least one view")

    @property
    def configs(self) -> Sequence[ModelConfig]:
        """The configurations of the networks that see an image: this one's."""
        return (self.config,)

    def place(self, device: torch.device) -> None:
        """Put the network on a device."""
        self.network.to(device)

    @torch.inference_mode()
    def infer_images(self, images: Sequence[Tensor], *, at_once: int | None = None) -> list[RawDetections]:
        """Detect and segment over all views.

        Args:
            images: [H, W, 3] uint8 RGB, of any sizes, on the network's device.
            at_once: views of images that go through the network together; by default as many as there are images, which
                bounds the memory of the backbone by that of the same batch without augmentation.

        Returns:
            One RawDetections per image, most confident first; they do not depend on the other images.

        Raises:
            NonFiniteError: an image's activations overflow, or the weights contain NaN.
            torch.OutOfMemoryError: one view does not fit.
        """
        if self._is_plain():
            batches = (assemble_batch([image], self.config) for image in images)
            return [self.network.infer(replace(each, wants_semantic=self.wants_semantic))[0] for each in batches]
        see = partial(
            SeenImages,
            self.network,
            self.views,
            images,
            at_once=at_once or max(1, len(images)),
            wants_semantic=self.wants_semantic,
        )
        try:
            return self._infer(images, see())
        except torch.OutOfMemoryError:
            # Leaving this handler frees the features of all views.
            pass
        return self._infer(images, see(keeps_features=False))

    def _is_plain(self) -> bool:
        resize = self.config.resize
        return self.views == (ViewConfig(resize.long_side, resize.short_side),)

    def _infer(self, images: Sequence[Tensor], seen: SeenImages) -> list[RawDetections]:
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        scored = seen.detect([boxes for boxes, _ in seen.propose()])
        detected = [
            select_detections(clip_boxes(boxes, boxes.new_tensor(size)), scores, self.config)
            for (boxes, scores), size in zip(scored, sizes, strict=True)
        ]
        masks: Sequence[Tensor | None] = [None] * len(sizes)
        if self.config.has_masks:
            masks = seen.segment([boxes for boxes, _, _ in detected], [labels for _, _, labels in detected])
        return [
            RawDetections(boxes, scores, labels, probs, size, semantic=maps)
            for (boxes, scores, labels), probs, size, maps in zip(detected, masks, sizes, seen.maps(), strict=True)
        ]
