"""Masks that do not fit the memory are predicted in smaller chunks, with the same result."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from htc_model.network.cascade_roi_head import MASK_CHUNKS_ROIS
from htc_model.network.detector import HTC
from tests.support.builders.networks import image_batch, lite_config, untrained_model


@contextmanager
def limited_rois(model: HTC, limit: int) -> Iterator[list[int]]:
    """Let the first mask head run out of memory with more than `limit` RoIs; yields the numbers of RoIs it got."""
    sizes: list[int] = []

    def check(_head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    hook = model.roi_head.mask_heads[0].register_forward_pre_hook(check)
    try:
        yield sizes
    finally:
        hook.remove()


def test_masks_are_the_same_in_smaller_chunks() -> None:
    config = lite_config(max_detections=40)
    model, batch = untrained_model(config), image_batch(config)
    (whole,) = model.infer(batch)
    with limited_rois(model, limit=10) as sizes:
        (chunked,) = model.infer(batch)
    assert sizes[:2] == [40, 32]
    assert set(sizes[2:]) == {4}
    assert whole.mask_probs is not None
    assert chunked.mask_probs is not None
    torch.testing.assert_close(chunked.mask_probs, whole.mask_probs, rtol=1e-4, atol=1e-5)


def test_if_not_even_the_smallest_chunk_fits_the_error_is_raised() -> None:
    config = lite_config(max_detections=40)
    model = untrained_model(config)
    with limited_rois(model, limit=MASK_CHUNKS_ROIS[-1] - 1), pytest.raises(torch.OutOfMemoryError):
        model.infer(image_batch(config))
