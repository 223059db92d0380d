"""Batches encoded apart from the model's thread give the same detections as image by image; other processes too."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import pipeline.worker.batch_encoding
from htc_model.config import load_preset
from htc_model.masks.batch_runs import MaskRuns, find_runs
from htc_model.masks.encode import encode_detections
from htc_model.masks.rle import decode_rle
from htc_model.structures import Detections, RawDetections
from pipeline.errors import ImageError
from pipeline.messages import ImageFailure
from pipeline.worker.batch_encoding import BatchEncoder, PendingDetections
from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.mask_text import TextProcesses
from pipeline.worker.segmenter import DecodedImage, Outcome, Segmenter
from tests.support.fakes.models import FakeModel
from tests.support.paths import ROOT

CPU = torch.device("cpu")


def raw_of(count: int, size: tuple[int, int], seed: int = 0) -> RawDetections:
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    maps = torch.nn.functional.interpolate(torch.rand(count, 1, 7, 7, generator=generator), 28, mode="bilinear")[:, 0]
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 80, (count,), generator=generator)
    return RawDetections(corners.flatten(1), scores, labels, maps, size)


@pytest.fixture
def encoder() -> Iterator[BatchEncoder]:
    encoder = BatchEncoder(CPU)
    yield encoder
    encoder.close()


def assert_same(found: Detections, wanted: Detections) -> None:
    assert torch.equal(found.boxes_xyxy, wanted.boxes_xyxy)
    assert torch.equal(found.scores, wanted.scores)
    assert torch.equal(found.labels, wanted.labels)
    assert (found.masks is None) == (wanted.masks is None)
    for one, other in zip(found.masks or (), wanted.masks or (), strict=True):
        assert one["size"] == other["size"]
        np.testing.assert_array_equal(decode_rle(one), decode_rle(other))


def test_a_batch_gives_what_each_image_gives_alone(encoder: BatchEncoder) -> None:
    raws = [raw_of(5, (60, 80), 1), raw_of(0, (40, 30)), raw_of(1, (33, 47), 2), raw_of(9, (60, 80), 3)]
    for raw, pending in zip(raws, encoder.submit(raws), strict=True):
        assert pending.original_size == raw.original_size
        assert_same(pending.result(), encode_detections(raw))


def test_batches_without_detections_or_without_masks(encoder: BatchEncoder) -> None:
    nothing = raw_of(0, (40, 30))
    boxes = RawDetections(
        *(getattr(raw_of(3, (40, 30)), name) for name in ("boxes_xyxy", "scores", "labels")), None, (40, 30)
    )
    for raws in ([nothing, nothing], [boxes, boxes]):
        for raw, pending in zip(raws, encoder.submit(raws), strict=True):
            assert_same(pending.result(), encode_detections(raw))


@pytest.mark.parametrize("name", ["boxes_xyxy", "scores", "mask_probs"])
def test_numbers_that_are_not_finite_fail_their_image_alone(encoder: BatchEncoder, name: str) -> None:
    raws = [raw_of(3, (60, 80), 1), raw_of(3, (60, 80), 2)]
    getattr(raws[1], name).flatten()[0] = float("nan")
    good, bad = encoder.submit(raws)
    segmenter = Segmenter(FakeModel(load_preset("htc_lite0_fpn")), CPU)
    assert_same(segmenter.encode(good), encode_detections(raws[0]))
    with pytest.raises(ImageError, match="finite"):
        segmenter.encode(bad)


def outcomes(segmenter: Segmenter, count: int) -> list[Outcome]:
    images = [DecodedImage(number, str(number), np.zeros((32, 48, 3), np.uint8)) for number in range(count)]
    return [outcome for _, outcome in segmenter.segment(images)]


def test_a_segmenter_with_an_encoder_gives_the_same_detections(encoder: BatchEncoder) -> None:
    model = FakeModel(load_preset("htc_lite0_fpn"), max_batch=2)
    alone, together = Segmenter(model, CPU, batch_size=4), Segmenter(model, CPU, batch_size=4, encoder=encoder)
    for one, other in zip(outcomes(alone, 4), outcomes(together, 4), strict=True):
        assert isinstance(one, RawDetections)
        assert isinstance(other, PendingDetections)
        assert_same(together.encode(other), alone.encode(one))
    bad = FakeModel(load_preset("htc_lite0_fpn"), {(32, 48): "raise"})
    assert isinstance(outcomes(Segmenter(bad, CPU, encoder=encoder), 1)[0], ImageFailure)


def test_a_batch_whose_masks_do_not_fit_is_encoded_image_by_image(
    encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    monkeypatch.setattr(pipeline.worker.batch_encoding, "find_runs", full)
    raws = [raw_of(3, (60, 80), seed) for seed in range(2)]
    segmenter = Segmenter(FakeModel(load_preset("htc_lite0_fpn")), CPU)
    for raw, pending in zip(raws, encoder.submit(raws), strict=True):
        assert_same(segmenter.encode(pending), encode_detections(raw))


def test_a_device_that_is_lost_meanwhile_is_no_images_fault(
    encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: object) -> object:
        raise torch.AcceleratorError("CUDA error (pretended)")

    monkeypatch.setattr(pipeline.worker.batch_encoding, "find_runs", lost)
    (pending,) = encoder.submit([raw_of(3, (60, 80))])
    with pytest.raises(DeviceLostError):
        Segmenter(FakeModel(load_preset("htc_lite0_fpn")), CPU).encode(pending)


def runs_of(count: int) -> MaskRuns:
    raw = raw_of(count, (60, 80))
    assert raw.mask_probs is not None
    return find_runs(raw.mask_probs, raw.boxes_xyxy, [(60, 80)] * count).wait()


def test_processes_that_die_are_replaced_once_and_no_mask_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    runs, texts = runs_of(7), TextProcesses(1)
    wanted = runs.encode()
    try:
        assert texts.encode(runs) == wanted
        for message in ("new ones take over", "encoded in the worker"):
            assert texts.pids
            for pid in texts.pids:
                os.kill(pid, signal.SIGKILL)
            assert texts.encode(runs) == wanted
            # A death may be noticed only after one more answer.
            assert texts.encode(runs) == wanted
            assert message in caplog.text
        assert texts.pids == ()
    finally:
        texts.close()


PROGRAM = """
import sys
from types import SimpleNamespace
import numpy as np
from pipeline.worker.mask_text import TextProcesses

if __name__ == "__main__":
    texts = TextProcesses(1)
    one = np.array([1])
    print(texts.encode(SimpleNamespace(begins=one, ends=one + 2, run_counts=one, sizes=np.array([[4, 5]]))))
    print(*texts.pids, flush=True)
    sys.stdin.readline()
"""


def test_the_processes_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "worker.py"
    path.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as worker:
        assert worker.stdout is not None
        assert "counts" in worker.stdout.readline()
        process = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
    _, alive = psutil.wait_procs([process], timeout=60)
    assert not alive
