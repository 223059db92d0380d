"""Masks that do not fit the memory at once are predicted in smaller chunks, and come out the same."""

import pytest
import torch

from htc_model.network.cascade_roi_head import MASK_CHUNKS_ROIS, CascadeHead
from tests.support.builders.networks import lite_config, photo_batch, untrained_model


def limit_rois(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let the pooling of mask features run out of memory beyond `most` RoIs; returns the sizes asked for."""
    sizes: list[int] = []
    pool = CascadeHead.mask_features

    def bounded(self: CascadeHead, pyramid: object, semantic_feat: object, rois: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rois))
        if len(rois) > most:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return pool(self, pyramid, semantic_feat, rois)  # type: ignore[arg-type]

    monkeypatch.setattr(CascadeHead, "mask_features", bounded)
    return sizes


def test_masks_are_the_same_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = lite_config(max_detections=40)
    model, batch = untrained_model(config), photo_batch(config)
    (whole,) = model.infer(batch)
    sizes = limit_rois(monkeypatch, most=10)
    (chunked,) = model.infer(batch)
    assert sizes[:2] == [40, 32]
    assert set(sizes[2:]) == {4}
    assert whole.mask_probs is not None
    assert chunked.mask_probs is not None
    torch.testing.assert_close(chunked.mask_probs, whole.mask_probs, rtol=1e-4, atol=1e-5)


def test_where_not_even_the_smallest_chunk_fits_memory_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = lite_config(max_detections=40)
    limit_rois(monkeypatch, most=MASK_CHUNKS_ROIS[-1] - 1)
    with pytest.raises(torch.OutOfMemoryError):
        untrained_model(config).infer(photo_batch(config))
