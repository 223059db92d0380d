"""Masks that do not fit the memory are encoded in smaller chunks; an image for which none fit fails alone."""

import numpy as np
import pytest
import torch

import pipeline.worker.segmenter
from htc_model.config import load_preset
from htc_model.masks.encode import encode_detections
from htc_model.masks.rle import decode_rle
from htc_model.structures import Detections, RawDetections
from pipeline.errors import ImageError
from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.segmenter import MASK_CHUNKS, Segmenter
from tests.support.fakes.models import FakeModel


def raw_detections() -> RawDetections:
    maps = torch.linspace(0, 1, 3 * 28 * 28).reshape(3, 28, 28)
    boxes = torch.tensor([[0.0, 0.0, 300.0, 200.0], [10.5, 20.25, 90.0, 70.0], [50.0, 5.0, 60.0, 190.0]])
    return RawDetections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 3]), maps, (200, 300))


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(FakeModel(load_preset("htc_lite0_fpn")), torch.device("cpu"))


def limit_columns(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    chunks: list[int] = []

    def bounded(raw: RawDetections, *, chunk_columns: int) -> Detections:
        chunks.append(chunk_columns)
        if chunk_columns > most:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return encode_detections(raw, chunk_columns=chunk_columns)

    monkeypatch.setattr(pipeline.worker.segmenter, "encode_detections", bounded)
    return chunks


def test_smaller_chunks_give_the_same_masks(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = segmenter.encode(raw_detections())
    chunks = limit_columns(monkeypatch, most=MASK_CHUNKS[-1])
    found = segmenter.encode(raw_detections())
    assert tuple(chunks) == MASK_CHUNKS
    assert found.masks is not None
    assert wanted.masks is not None
    for one, other in zip(found.masks, wanted.masks, strict=True):
        np.testing.assert_array_equal(decode_rle(one), decode_rle(other))


def test_masks_that_never_fit_fail_their_image(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_columns(monkeypatch, most=0)
    with pytest.raises(ImageError, match="ran out of memory on the masks of this 300 x 200 image") as caught:
        segmenter.encode(raw_detections())
    assert caught.value.status == "failed"


def test_a_device_lost_over_masks_is_not_the_images_fault(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(raw: RawDetections, *, chunk_columns: int) -> Detections:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure (pretended)")

    monkeypatch.setattr(pipeline.worker.segmenter, "encode_detections", lost)
    with pytest.raises(DeviceLostError):
        segmenter.encode(raw_detections())
