"""Fixed shapes give the dynamic path's detections, without any read by the host."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from htc_model.config import PRESETS, ModelConfig, ResizeConfig, load_preset
from htc_model.finite import NonFiniteError
from htc_model.inference import plan as plan_module
from htc_model.inference.fast_model import FastModel, fill_batch
from htc_model.inference.plan import InferencePlan, StaticDetections, mask_buckets
from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC, build_model
from htc_model.structures import ImageBatch, RawDetections
from tests.support.builders.networks import image_batch, lite_config, reference_image, untrained_model
from tests.support.goldens.decisions import Candidates, FilterSettings, collect_candidates
from tests.support.goldens.network import (
    DATA,
    Golden,
    build_golden_model,
    compare_detections,
    golden_batch,
    load_golden,
    measure_detections,
)
from tests.support.host_reads import HostTensors, OperatorCounter

LITE = lite_config(max_detections=40)


def small(name: str) -> ModelConfig:
    """A preset with narrow heads on 128 x 96 pixels, with few proposals and detections."""
    return replace(
        load_preset(name),
        resize=ResizeConfig(long_side=128, short_side=96),
        fpn_channels=64,
        box_fc_channels=128,
        mask_channels=64 if name.startswith("scnet") else 32,
        rpn_proposals=60,
        max_detections=20,
        score_threshold=0.001,
    )


def crops(count: int) -> list[np.ndarray]:
    """Different images of different sizes with the same padded shape."""
    source = reference_image()
    return [np.ascontiguousarray(source[10 * i : 10 * i + 240, 20 * i : 20 * i + 320 - 3 * i]) for i in range(count)]


@torch.inference_mode()
def run_plan(network: HTC, batch: ImageBatch, *, is_exhaustive: bool = False) -> StaticDetections:
    pixels, image_sizes, original_sizes = fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes)
    height, width = pixels.shape[2:]
    plan = InferencePlan(network, (height, width), len(pixels), is_exhaustive=is_exhaustive)
    return plan.run(pixels, image_sizes, original_sizes)


def image_of(found: StaticDetections, image: int, batch: ImageBatch) -> RawDetections:
    count = int(found.counts[image])
    probs = None if found.mask_probs is None else found.mask_probs[image, :count]
    return RawDetections(
        found.boxes_xyxy[image, :count],
        found.scores[image, :count],
        found.labels[image, :count],
        probs,
        batch.original_sizes[image],
    )


def as_golden(raw: RawDetections) -> Golden:
    golden = {
        "det_boxes": raw.boxes_xyxy.numpy(),
        "det_scores": raw.scores.numpy(),
        "det_labels": raw.labels.numpy(),
    }
    masks = encode_detections(raw).masks
    return golden if masks is None else golden | {"det_rle": masks}


@torch.inference_mode()
def assert_same(network: HTC, image: np.ndarray, expected: RawDetections, found: RawDetections) -> None:
    """Check that two computations found the same, but for decisions that the last bits of a float change."""
    batch = image_batch(network.config, image)

    def collect() -> tuple[Candidates, Candidates]:
        pyramid = network.features(batch.pixels)
        proposals = network.propose(pyramid, batch)[0]
        return collect_candidates(network, pyramid, batch, (proposals, proposals))

    settings = FilterSettings.of(network.config, score_margin=1e-3)
    rows = list(compare_detections(as_golden(expected), found, batch.image_sizes[0], settings, collect))
    assert rows[0].quantity == "detections missing"
    assert [row for row in rows if not row.is_ok] == []


@pytest.mark.parametrize(
    "config",
    [
        LITE,
        small("htc_r50_fpn"),
        small("htc_r50_fpn_dcn"),
        small("htc_without_semantic_r50_fpn"),
        small("mask_rcnn_r50_fpn"),
        small("cascade_rcnn_r50_fpn"),
        small("mask_rcnn_r50_pafpn"),
        small("mask_rcnn_r50_fpn_gn"),
        small("htc_r50_fpn_dcnv2"),
        small("htc_r50_fpn_ga"),
        small("scnet_r50_fpn"),
        small("detectors_htc_r50_fpn"),
    ],
    ids=lambda config: config.name,
)
def test_the_detections_are_the_dynamic_paths(config: ModelConfig) -> None:
    network, images = untrained_model(config), crops(1)
    batch = image_batch(config, *images)
    (expected,) = network.infer(batch)
    assert len(expected.scores) > 3
    found, exhaustive = run_plan(network, batch), run_plan(network, batch, is_exhaustive=True)
    for each in (found, exhaustive):
        assert each.finite.all()
        assert each.is_exact.all()
        assert_same(network, images[0], expected, image_of(each, 0, batch))
    assert torch.equal(found.labels, exhaustive.labels)
    assert torch.equal(found.boxes_xyxy, exhaustive.boxes_xyxy)


@pytest.mark.slow
def test_the_detections_of_a_golden() -> None:
    """The smallest network's; `benchmarks/parity.py --static` measures all goldens."""
    golden = load_golden(DATA / "goldens" / "mask_rcnn_r50__p0_397133.npz")
    model = build_golden_model("mask_rcnn_r50")
    batch = golden_batch(golden, model)
    (raw,) = FastModel(model, "cpu", is_static=True).infer(batch)
    rows = list(measure_detections(golden, model, batch, raw))
    assert len(rows) == 6
    assert [row for row in rows if not row.is_ok] == []


def test_an_image_does_not_depend_on_its_batch_nor_on_empty_slots() -> None:
    network, images = untrained_model(LITE), crops(3)
    batch = image_batch(LITE, *images)
    found = run_plan(network, batch)
    assert found.scores.shape == (4, 40)
    assert found.counts[3] == 0
    assert (found.scores[3] == -torch.inf).all()
    for empty in (found.boxes_xyxy[3], found.labels[3], found.mask_probs):
        assert empty is not None
    assert not found.boxes_xyxy[3].any()
    assert found.mask_probs is not None
    assert not found.mask_probs[3].any()
    assert found.finite.all()
    for index, image in enumerate(images):
        alone = image_batch(LITE, image)
        assert_same(network, image, image_of(run_plan(network, alone), 0, alone), image_of(found, index, batch))


@torch.inference_mode()
def test_the_other_slots_do_not_change_a_bit() -> None:
    network = untrained_model(LITE)
    batch = image_batch(LITE, *crops(4))
    plan = InferencePlan(network, (192, 256), 4)
    sizes, originals = torch.tensor(batch.image_sizes), torch.tensor(batch.original_sizes)
    every = plan.run(batch.pixels, sizes, originals)
    pixels = batch.pixels.clone()
    pixels[1], pixels[3] = 0, pixels[0]
    sizes[1], originals[1] = torch.tensor([0, 0]), torch.tensor([1, 1])
    other = plan.run(pixels, sizes, originals)
    assert other.counts[1] == 0
    for image in (0, 2):
        for name in ("boxes_xyxy", "scores", "labels", "mask_probs"):
            assert torch.equal(getattr(every, name)[image], getattr(other, name)[image]), name


# What is dropped, the host is not asked about: fewer slots than D, none above the threshold, no proposals.


def test_fewer_candidates_than_slots() -> None:
    config = replace(LITE, score_threshold=1.0)
    found = run_plan(untrained_model(config), image_batch(config, *crops(1)))
    assert found.counts.tolist() == [0]
    assert found.boxes_xyxy.shape == (1, 40, 4)
    tiny = lite_config(rpn_proposals=3, rpn_candidates_per_level=2, max_detections=900, has_masks=False)
    network, batch = untrained_model(tiny), image_batch(tiny, *crops(1))
    found, expected = run_plan(network, batch), network.infer(batch)[0]
    assert found.scores.shape == (1, 900)
    assert found.counts.tolist() == [len(expected.scores)]


def test_one_class_and_one_box() -> None:
    config = replace(LITE, classes=("thing",), category_ids=(1,), max_detections=1)
    network, (image,) = untrained_model(config), crops(1)
    batch = image_batch(config, image)
    assert_same(network, image, network.infer(batch)[0], image_of(run_plan(network, batch), 0, batch))


# Nothing is read by the host.


@torch.inference_mode()
def test_no_operator_reads_between_pixels_and_results() -> None:
    model = FastModel(untrained_model(LITE), "cpu", is_static=True)
    batch = image_batch(LITE, *crops(3))
    inputs = fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes)
    model.detect(*inputs)
    with OperatorCounter() as counter:
        model.infer_static(*inputs)
    assert sum(counter.operators.values()) > 500
    assert counter.reads == {}
    assert counter.uploads == {}
    with OperatorCounter() as dynamic:
        model.network.infer(batch)
    assert sum(dynamic.reads.values()) > 20


KINDS = {
    "mask_rcnn_r50_fpn": 4,
    "cascade_rcnn_r50_fpn": 5,
    "htc_x101_64x4d_fpn_dcn": 6,
    "htc_lite0_fpn": 6,
    "htc_r50_fpn_ga": 6,
    "scnet_r50_fpn": 6,
    "detectors_htc_r50_fpn": 6,
}


@pytest.mark.parametrize(
    ("name", "checks", "shape", "batch"),
    [*((name, checks, (800, 1344), 8) for name, checks in KINDS.items()), ("mask_rcnn_r50_fpn", 4, (1344, 32), 1)],
)
def test_on_an_accelerator_every_tensor_stays_there(name: str, checks: int, shape: tuple[int, int], batch: int) -> None:
    """With tensors that have a shape and a device but no values, an operator that needs a value raises."""
    config = PRESETS[name]
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        network = build_model(config).eval()
        plan = InferencePlan(network, shape, batch)
        inputs = torch.empty(batch, 3, *shape), *(torch.empty(batch, 2, dtype=torch.int64) for _ in range(2))
        with HostTensors() as host:
            found = plan.run(*inputs)
            smallest = plan.masks(plan.boxes(*inputs), plan.mask_buckets[0]) if config.has_masks else found
    assert host.found == {}
    assert found.boxes_xyxy.shape == smallest.boxes_xyxy.shape == (batch, 100, 4)
    assert found.boxes_xyxy.device.type == "cuda"
    assert found.finite.shape == (batch, checks)
    assert len(plan.checks) == checks
    if found.mask_probs is not None:
        assert found.mask_probs.shape == (batch, 100, 28, 28)


@pytest.mark.slow
def test_the_whole_of_it_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    # More steps are more of the same operators, which take long to trace.
    monkeypatch.setattr(plan_module, "RPN_NMS_STEPS", 2)
    monkeypatch.setattr(plan_module, "NMS_STEPS", 2)
    network = untrained_model(LITE)
    batch = image_batch(LITE, *crops(1))
    plan = InferencePlan(network, (192, 256), 1)
    inputs = fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes)
    with torch.no_grad():
        compiled = torch.compile(plan.run, fullgraph=True, backend="eager")(*inputs)
        eager = plan.run(*inputs)
    assert torch.equal(compiled.scores, eager.scores)
    assert compiled.mask_probs is not None
    assert eager.mask_probs is not None
    assert torch.equal(compiled.mask_probs, eager.mask_probs)


# Values that are not finite.


@lru_cache(maxsize=1)
def two_images() -> ImageBatch:
    return image_batch(LITE, *crops(2))


def lite() -> HTC:
    model = build_model(LITE).eval()
    model.load_state_dict(untrained_model(LITE).state_dict())
    return model


def message(call: Callable[[], object]) -> str:
    with pytest.raises(NonFiniteError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    "module",
    [
        "neck.lateral_convs.0.conv",
        "rpn_head.rpn_cls",
        "rpn_head.rpn_reg",
        "roi_head.bbox_head.0.fc_cls",
        "roi_head.bbox_head.2.fc_reg",
        "roi_head.mask_head.2.convs.1.conv",
    ],
)
def test_values_that_overflow_raise_as_in_the_dynamic_path(module: str) -> None:
    model = lite()
    parameter = model.get_submodule(module).bias
    assert isinstance(parameter, Tensor)
    with torch.no_grad():
        parameter.fill_(torch.nan)
    words = message(lambda: model.infer(two_images()))
    assert message(lambda: FastModel(model, "cpu", is_static=True).infer(two_images())) == words


@torch.inference_mode()
def test_the_image_at_fault_is_marked() -> None:
    network = untrained_model(LITE)
    batch = two_images()
    pixels = batch.pixels.clone()
    pixels[1, 0, 50, 60] = torch.nan
    sizes, originals = torch.tensor(batch.image_sizes), torch.tensor(batch.original_sizes)
    plan = InferencePlan(network, (192, 256), 2)
    found, clean = plan.run(pixels, sizes, originals), plan.run(batch.pixels, sizes, originals)
    assert found.finite[0].all()
    assert not found.finite[1, 0]
    assert torch.equal(found.boxes_xyxy[0], clean.boxes_xyxy[0])


def test_finite_logits_with_an_infinite_sum_raise_too() -> None:
    model = lite()
    with torch.no_grad():
        for head in model.roi_head.box_heads:
            head.fc_cls.bias[0] = 3e38
    words = message(lambda: model.infer(two_images()))
    assert message(lambda: FastModel(model, "cpu", is_static=True).infer(two_images())) == words


# Fixed sizes that do not suffice.


@pytest.mark.parametrize(("name", "value"), [("NMS_CANDIDATES", 45), ("RPN_NMS_STEPS", 1), ("NMS_STEPS", 1)])
def test_an_undecided_image_is_decided_exhaustively(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # One class, and NMS so strict that 45 candidates give fewer than 40 detections.
    config = replace(LITE, classes=("thing",), category_ids=(1,), nms_iou=0.1)
    network = untrained_model(config)
    model = FastModel(network, "cpu", is_static=True)
    batch = image_batch(config, *crops(2))
    expected = model.infer(batch)
    monkeypatch.setattr(plan_module, name, value)
    found = run_plan(model.network, batch)
    assert not found.is_exact.all()
    for raw, want in zip(FastModel(network, "cpu", is_static=True).infer(batch), expected, strict=True):
        assert torch.equal(raw.labels, want.labels)
        torch.testing.assert_close(raw.boxes_xyxy, want.boxes_xyxy, atol=1e-3, rtol=1e-4)


def test_sizes_of_the_mask_heads_batch() -> None:
    assert mask_buckets(20) == (20,)
    assert mask_buckets(64) == (64,)
    assert mask_buckets(800) == (64, 128, 256, 512, 800)
