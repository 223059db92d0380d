"""The cache of recorded plans: what is recorded when, what is dropped, and what a replay returns."""

import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from htc_model.config import ResizeConfig
from htc_model.inference.fast_model import FastModel
from htc_model.inference.graphs import GraphCache, Recording
from htc_model.inference.plan import BoxState, StaticDetections
from tests.support.builders.networks import image_batch, lite_config, reference_image, untrained_model

T = TypeVar("T")


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    return [tensor for each in value for tensor in tensors_of(each)] if isinstance(value, list) else []


class FakeCapturer:
    """Records like a graph: a replay runs the call on what its inputs hold now, into the first call's tensors."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.captures = 0
        self.resets = 0

    def capture(self, call: Callable[[], T]) -> Recording[T]:
        self.captures += 1
        if self.captures == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
        outputs = call()

        def replay() -> None:
            for static, new in zip(tensors_of(outputs), tensors_of(call()), strict=True):
                static.copy_(new)

        def reset() -> None:
            self.resets += 1
            for static in tensors_of(outputs):
                static.fill_(-1)

        return Recording(replay, outputs, reset)


class SumPlan:
    """Scores are the sums of the pixels, mask probabilities the scores by bucket."""

    mask_buckets = (64, 128)

    def boxes(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> BoxState:
        scores = pixels.flatten(1).sum(1, keepdim=True)
        flags = torch.ones(len(pixels), 1, dtype=torch.bool)
        counts = torch.ones(len(pixels), dtype=torch.int64)
        boxes = original_sizes[:, None].repeat(1, 1, 2).float()
        detections = StaticDetections(boxes, scores, counts[:, None], counts, None, flags, flags[:, 0])
        return BoxState(detections, [pixels * 2], None, boxes[:, 0], counts, counts, counts.sum())

    def masks(self, state: BoxState, bucket: int) -> StaticDetections:
        found = state.detections
        # From the features, which a recorded plan keeps inside.
        probs = state.pyramid[0].flatten(1).sum(1)[:, None, None, None] / bucket
        return StaticDetections(
            found.boxes_xyxy, found.scores, found.labels, found.counts, probs, found.finite, found.is_exact
        )


def run(cache: GraphCache, key: object, value: float, bucket: int = 64) -> tuple[float, float]:
    """Run one batch whose pixels are `value`; return its score and mask probability."""
    plan: Any = SumPlan()
    sizes = torch.tensor([[2, 2]])
    state = cache.boxes(key, plan, torch.full((1, 3, 2, 2), value), sizes, sizes)
    found = cache.masks(key, plan, state, bucket)
    assert found.mask_probs is not None
    return float(found.scores), float(found.mask_probs)


def expected(value: float, bucket: int = 64) -> tuple[float, float]:
    return 12 * value, 24 * value / bucket


def test_a_plan_is_recorded_at_its_third_batch_and_gives_the_same_results() -> None:
    capturer = FakeCapturer()
    cache = GraphCache(capturer)
    for value in (1.0, 2.0):
        assert run(cache, "a", value) == expected(value)
    assert capturer.captures == 0
    for value in (3.0, 4.0, 5.0):
        assert run(cache, "a", value) == expected(value)
        assert run(cache, "a", value, bucket=128) == expected(value, 128)
    assert capturer.captures == 3, "the box part and both buckets, once"
    assert (cache.recorded, cache.replays, cache.failures) == (1, 6, 0)


def test_results_outlive_the_next_batch() -> None:
    cache = GraphCache(FakeCapturer(), capture_at=1)
    plan: Any = SumPlan()
    sizes = torch.tensor([[2, 2]])
    results = []
    for value in (1.0, 2.0):
        state = cache.boxes("a", plan, torch.full((1, 3, 2, 2), value), sizes, sizes)
        results.append(cache.masks("a", plan, state, 64))
    assert [float(each.scores) for each in results] == [12, 24]


def test_a_recorded_plan_does_not_hold_its_features() -> None:
    cache = GraphCache(FakeCapturer(), capture_at=1)
    plan: Any = SumPlan()
    state = cache.boxes("a", plan, torch.ones(1, 3, 2, 2), torch.tensor([[2, 2]]), torch.tensor([[2, 2]]))
    assert state.pyramid == []
    assert int(state.total) == 1


def test_the_least_recently_used_plan_is_dropped() -> None:
    capturer = FakeCapturer()
    cache = GraphCache(capturer, capture_at=1, max_plans=2)
    for key in ("a", "b", "a", "c"):
        assert run(cache, key, 7.0) == expected(7.0)
    assert cache.keys == ["a", "c"]
    assert capturer.resets == 3, "what was recorded of b"
    assert run(cache, "b", 8.0) == expected(8.0)
    assert cache.keys == ["c", "b"]


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_plan_that_cannot_be_recorded_stays_eager(fails_at: int, caplog: pytest.LogCaptureFixture) -> None:
    capturer = FakeCapturer(fails_at=fails_at)
    cache = GraphCache(capturer, capture_at=2)
    with caplog.at_level(logging.WARNING):
        for value in (1.0, 2.0, 3.0, 4.0):
            assert run(cache, "the plan", value) == expected(value)
    assert capturer.captures == fails_at, "not tried again"
    assert (cache.failures, cache.recorded, cache.replays) == (1, 0, 0)
    assert capturer.resets == fails_at - 1, "what was recorded before the failure"
    (record,) = caplog.records
    assert "the plan" in record.getMessage()
    assert record.getMessage().endswith("CUDA out of memory.")
    # Others are recorded still.
    for value in (5.0, 6.0, 7.0):
        assert run(cache, "another", value) == expected(value)
    assert cache.keys == ["another"]


def test_without_a_capturer_all_is_eager() -> None:
    cache = GraphCache(None, capture_at=1)
    assert [run(cache, "a", value) for value in (1.0, 2.0)] == [expected(1.0), expected(2.0)]
    assert cache.keys == []


def test_clear_frees_every_recording() -> None:
    capturer = FakeCapturer()
    cache = GraphCache(capturer, capture_at=1)
    run(cache, "a", 1.0)
    cache.clear()
    assert capturer.resets == 3
    assert cache.keys == []
    assert run(cache, "a", 2.0) == expected(2.0)


@pytest.mark.parametrize("changes", [{}, {"has_masks": False, "semantic": False, "mask_info_flow": False}])
def test_a_real_plan_gives_the_same_detections_when_it_is_recorded(changes: dict[str, bool]) -> None:
    """A replay computes the second batch, not the first again."""
    config = lite_config(resize=ResizeConfig(long_side=96, short_side=64), rpn_proposals=20, **changes)
    fast = FastModel(untrained_model(config), "cpu", is_static=True)
    images = [reference_image()[:64, :96], reference_image()[100:164, 100:196]]
    batches = [image_batch(config, *images), image_batch(config, images[1], images[1])]
    wanted = [fast.infer(batch) for batch in batches]
    fast.graphs = GraphCache(FakeCapturer(), capture_at=1)
    found = [fast.infer(batch) for batch in batches]
    assert fast.graphs.replays == 2
    for one, other in zip(wanted, found, strict=True):
        for before, after in zip(one, other, strict=True):
            assert len(before.scores) > 0
            for name in ("boxes_xyxy", "scores", "labels", "mask_probs"):
                assert_equal(getattr(before, name), getattr(after, name))


def assert_equal(one: Tensor | None, other: Tensor | None) -> None:
    if one is None or other is None:
        assert one is other
    else:
        assert torch.equal(one, other)
