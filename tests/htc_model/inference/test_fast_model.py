"""`FastModel` as a worker's model: any batch size, few plans, results for the encoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from htc_model.config import ModelConfig
from htc_model.inference import fast_model
from htc_model.inference.encode import encode_batch, find_mask_runs, read_detections
from htc_model.inference.fast_model import FastModel, choose_pool_levels, fill_batch
from htc_model.inference.static_ops import pool_levels
from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch
from htc_model.weights import bundled_weights
from pipeline.job_spec.model import ModelSection
from pipeline.worker.segmenter import load_model
from tests.support.builders.networks import (
    assert_wellformed,
    image_batch,
    lite_config,
    reference_image,
    untrained_model,
)
from tests.support.paths import ROOT

LITE = lite_config(max_detections=20, rpn_proposals=40)


def batch_of(count: int, config: ModelConfig = LITE) -> ImageBatch:
    source = reference_image()
    return image_batch(config, *(source[5 * i : 5 * i + 240, 4 * i : 4 * i + 320] for i in range(count)))


def static_model(config: ModelConfig = LITE) -> FastModel:
    return FastModel(untrained_model(config), "cpu", is_static=True)


@pytest.mark.parametrize("count", [1, 3])
def test_what_it_returns_is_wellformed(count: int) -> None:
    model, batch = static_model(), batch_of(count)
    raws = model.infer(batch)
    assert [raw.original_size for raw in raws] == list(batch.original_sizes)
    for raw in raws:
        assert_wellformed(raw, LITE)
        assert len(raw.scores) == 20


def test_a_batch_beyond_the_largest_size_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_model, "BATCH_SIZES", (1, 2))
    model, batch = static_model(), batch_of(5)
    raws = model.infer(batch)
    assert [len(raw.scores) for raw in raws] == [20] * 5
    assert sorted(key[1] for key in model._plans) == [1, 2]
    (alone,) = model.infer(batch_of(1))
    torch.testing.assert_close(raws[0].scores, alone.scores, atol=1e-4, rtol=1e-3)


def test_plans_are_kept_for_the_shapes_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_model, "MAX_PLANS", 2)
    model = static_model()
    for count in (1, 2, 1, 3):
        batch = batch_of(count)
        model.detect(*fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes))
    assert [key[1] for key in model._plans] == [1, 4]


def test_on_a_cpu_it_is_the_dynamic_path_on_the_folded_network() -> None:
    model, batch = FastModel(untrained_model(LITE), "cpu"), batch_of(1)
    assert not model.is_static
    (raw,), (expected,) = model.infer(batch), model.network.infer(batch)
    assert torch.equal(raw.boxes_xyxy, expected.boxes_xyxy)
    assert choose_pool_levels(torch.device("cpu")) is pool_levels


def test_bfloat16_boxes_are_float32() -> None:
    model = FastModel(untrained_model(LITE), "cpu", precision="bf16", is_static=True)
    (raw,) = model.infer(batch_of(1))
    assert_wellformed(raw, LITE)
    assert len(raw.scores) > 0


# Encoding


@pytest.mark.parametrize("config", [LITE, replace(LITE, has_masks=False)], ids=["masks", "boxes only"])
@torch.inference_mode()
def test_a_batch_is_encoded_as_each_image_alone(config: ModelConfig) -> None:
    model, batch = static_model(config), batch_of(3, config)
    # Sizes as different as a batch may have.
    sizes = [(480, 640), (61, 82), (1500, 2000)]
    inputs = fill_batch(batch.pixels, batch.image_sizes, sizes)
    static = model.infer_static(*inputs)
    encoded = encode_batch(static, sizes)
    raws = model.infer(ImageBatch(batch.pixels, batch.image_sizes, sizes))
    assert len(encoded) == 3
    for image, (detections, raw) in enumerate(zip(encoded, raws, strict=True)):
        count = int(static.counts[image])
        expected = encode_detections(raw)
        assert len(detections) == count == len(raw.scores)
        assert detections.masks == expected.masks
        assert (detections.masks is None) == (not config.has_masks)
        for name in ("boxes_xyxy", "scores", "labels"):
            assert torch.equal(getattr(detections, name), getattr(expected, name))
            assert getattr(detections, name).dtype == getattr(expected, name).dtype


@torch.inference_mode()
def test_what_the_host_reads() -> None:
    model, batch = static_model(), batch_of(3)
    inputs = fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes)
    detecting = model.detect(*inputs)
    host = read_detections(detecting.state.detections, inputs[2])
    assert host.counts == [20, 20, 20, 0]
    assert host.is_exact.tolist() == [True] * 4
    assert host.finite.shape == (4, len(detecting.plan.checks) - 1)
    assert torch.equal(host.boxes_xyxy, detecting.state.detections.boxes_xyxy)
    assert host.scores[3].tolist() == [-torch.inf] * 20
    static = model.segment(detecting, sum(host.counts))
    pending = find_mask_runs(static, host, batch.original_sizes)
    assert pending is not None
    assert len(pending.wait().run_counts) == 4 * 20


# The bundled weights on example photos


@pytest.fixture(scope="module")
def bundled() -> HTC:
    model = load_model(ModelSection(preset="htc_lite0_fpn", weights=str(bundled_weights())))
    assert isinstance(model, HTC)
    return model


@pytest.mark.parametrize("name", ["000000079031.jpg", "000000173008.jpg"])
def test_example_photos(bundled: HTC, name: str) -> None:
    with Image.open(ROOT / "examples" / "photos" / name) as photo:
        batch = image_batch(bundled.config, np.asarray(photo.convert("RGB")))
    (expected,) = bundled.infer(batch)
    (found,) = FastModel(bundled, "cpu", is_static=True).infer(batch)
    assert len(expected.scores) > 0
    is_clear = expected.scores > bundled.config.score_threshold + 1e-3
    assert torch.equal(found.labels[: int(is_clear.sum())], expected.labels[is_clear])
    torch.testing.assert_close(found.scores[: int(is_clear.sum())], expected.scores[is_clear], atol=1e-3, rtol=0)
