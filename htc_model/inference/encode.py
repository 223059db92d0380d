"""From a batch's static detections on the device to `Detections` on the host, with two copies: the boxes, the runs.

The steps can run in different threads, and the last one in another process:

    host = read_detections(static, original_sizes)             waits for the network
    pending = find_mask_runs(static, host, original_sizes)     starts the device's part
    runs = pending.wait()                                      waits for it
    masks = runs.encode()                                      numpy only; `MaskRuns` can be pickled
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.inference.plan import StaticDetections, raise_non_finite
from htc_model.masks.batch_runs import PendingRuns, count_columns, find_runs
from htc_model.structures import Detections, Rle

Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class HostDetections:
    """A batch's detections on the CPU, without masks.

    boxes_xyxy [B, D, 4], scores [B, D], labels [B, D] and counts are those of `StaticDetections`.
    finite: [B, checks] bool, and is_exact: [B] bool, as there.
    total_columns: the image columns of all boxes, which the device goes through to find the masks' runs.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    counts: list[int]
    finite: Tensor
    is_exact: Tensor
    total_columns: int

    def check_finite(self, checks: Sequence[str], images: int) -> None:
        """Raise for the first check that one of the first `images` images fails, as the dynamic path does.

        Args:
            checks: `InferencePlan.checks`.
            images: how many slots of the batch are images.

        Raises:
            NonFiniteError: an image's activations overflow, or the weights contain NaN.
        """
        raise_non_finite(checks, self.finite[:images].tolist())


@torch.no_grad()
def read_detections(static: StaticDetections, original_sizes: Tensor) -> HostDetections:
    """Copy everything but the masks to the host, in one copy.

    Args:
        static: on any device; with or without masks.
        original_sizes: [B, 2] int64 (height, width), on the same device.
    """
    batch, slots = static.scores.shape
    of_instances = original_sizes.repeat_interleave(slots, dim=0)
    total = count_columns(static.boxes_xyxy.flatten(0, 1), of_instances)
    # As bits: a float32 holds integers to 2^24 only.
    columns = [
        static.boxes_xyxy.flatten(1).view(torch.int32),
        static.scores.view(torch.int32),
        static.labels.int(),
        static.counts[:, None].int(),
        static.is_exact[:, None].int(),
        total.int().expand(batch, 1),
        static.finite.int(),
    ]
    widths = [column.shape[1] for column in columns]
    on_host = torch.cat(columns, dim=1).cpu()
    boxes, scores, labels, counts, is_exact, totals, finite = on_host.split_with_sizes(widths, dim=1)
    return HostDetections(
        boxes_xyxy=boxes.contiguous().view(torch.float32).reshape(batch, slots, 4),
        scores=scores.contiguous().view(torch.float32),
        labels=labels.long(),
        counts=counts[:, 0].tolist(),
        finite=finite.bool(),
        is_exact=is_exact[:, 0].bool(),
        total_columns=totals[0].tolist()[0],
    )


def find_mask_runs(static: StaticDetections, host: HostDetections, original_sizes: Sizes) -> PendingRuns | None:
    """Start finding the runs of all images' masks on the device; None for a box-only model.

    Args:
        static: with masks.
        host: of the same detections.
        original_sizes: of the images; slots of the batch beyond them are empty.

    Returns:
        Work whose `MaskRuns` has D masks for each slot of the batch; those of empty slots are empty.
    """
    if static.mask_probs is None:
        return None
    batch, slots = static.scores.shape
    sizes = [*original_sizes, *[(1, 1)] * (batch - len(original_sizes))]
    of_instances = [size for size in sizes for _ in range(slots)]
    return find_runs(static.mask_probs.flatten(0, 1), static.boxes_xyxy.flatten(0, 1), of_instances, host.total_columns)


def split_detections(host: HostDetections, masks: Sequence[Rle] | None, images: int) -> list[Detections]:
    """Cut a batch's results into those of its first `images` images; `masks` as `MaskRuns.encode` gives them."""
    slots = host.scores.shape[1]
    return [
        Detections(
            boxes_xyxy=host.boxes_xyxy[image, :count],
            scores=host.scores[image, :count],
            labels=host.labels[image, :count],
            masks=None if masks is None else list(masks[image * slots : image * slots + count]),
        )
        for image, count in enumerate(host.counts[:images])
    ]


def encode_batch(static: StaticDetections, original_sizes: Sizes) -> list[Detections]:
    """Encode a batch's masks and move everything to the CPU: the steps of this module, one after the other.

    Args:
        static: with masks, unless the model has none; its flags are not looked at.
        original_sizes: of the images; slots of the batch beyond them are empty.

    Returns:
        The same as `masks.encode.encode_detections` of each image.
    """
    batch, device = len(static.scores), static.scores.device
    filled = torch.tensor([*original_sizes, *[(1, 1)] * (batch - len(original_sizes))], dtype=torch.int64)
    host = read_detections(static, filled.to(device))
    pending = find_mask_runs(static, host, original_sizes)
    masks = None if pending is None else pending.wait().encode()
    return split_detections(host, masks, len(original_sizes))
