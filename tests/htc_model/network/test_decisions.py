"""The comparison with MMDetection accepts another processor's rounding, and detects bugs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htc_model.network import roi_align
from htc_model.network.box_ops import boxes_to_rois
from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.detector import HTC
from htc_model.network.postprocess import select_detections, to_original
from htc_model.structures import ImageBatch, RawDetections
from tests.support.goldens.decisions import (
    Boxes,
    Candidates,
    FilterSettings,
    Side,
    collect_candidates,
    explain_both,
    far_pixels,
)
from tests.support.goldens.network import (
    DATA,
    Golden,
    Row,
    build_golden_model,
    compare_detections,
    golden_batch,
    load_golden,
    measure,
)


class Given(nn.Module):
    """A backbone or a neck whose result is given."""

    def __init__(self, result: list[Tensor]) -> None:
        super().__init__()
        self.result = result

    def forward(self, _: object) -> list[Tensor]:
        return list(self.result)


@lru_cache(maxsize=1)
def computed() -> tuple[Golden, HTC, ImageBatch]:
    """Cascade Mask R-CNN, whose score threshold decides, with its features computed once."""
    golden = load_golden(DATA / "goldens" / "cascade_mask_r50__p0_397133.npz")
    model = build_golden_model(golden["meta"]["model"])
    batch = golden_batch(golden, model)
    with torch.inference_mode():
        features = model.backbone(batch.pixels.contiguous(memory_format=torch.channels_last))
        pyramid = model.neck(features)
    model.backbone, model.neck = Given(features), Given(pyramid)
    return golden, model, batch


@pytest.fixture
def scene() -> Iterator[tuple[Golden, HTC, ImageBatch]]:
    golden, model, batch = computed()
    config, pyramid = model.config, model.neck.result
    yield golden, model, batch
    model.config, model.neck.result = config, pyramid


def wrong_rows(scene: tuple[Golden, HTC, ImageBatch]) -> list[Row]:
    return [row for row in measure(*scene) if not row.is_ok]


@pytest.mark.slow
def test_noise_as_of_another_processor_is_accepted(scene: tuple[Golden, HTC, ImageBatch]) -> None:
    """With this seed, a detection moves by a step where one sample more is taken per bin."""
    golden, model, batch = scene
    generator = torch.Generator().manual_seed(1)
    model.neck.result = [
        level + 1e-5 * level.std() * torch.randn(level.shape, generator=generator) for level in model.neck.result
    ]
    rows = list(measure(golden, model, batch))
    assert [row for row in rows if not row.is_ok] == []
    assert next(row.worst for row in rows if row.quantity == "missing at no decision") == 0


def other_levels(model: HTC, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roi_align, "FINEST_SCALE_PX", 60.0)


def masks_of_the_last_stage(model: HTC, patch: pytest.MonkeyPatch) -> None:
    heads = model.roi_head.mask_heads
    # The stages' masks are averaged: the last one thrice is the last one.
    patch.setattr(CascadeHead, "mask_heads", property(lambda _: [heads[-1]] * 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "break_it",
    [
        other_levels,
        masks_of_the_last_stage,
    ],
)
def test_a_bug_is_detected(
    scene: tuple[Golden, HTC, ImageBatch],
    break_it: Callable[[HTC, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(scene[1], monkeypatch)
    wrong = wrong_rows(scene)
    assert wrong != []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cascade_mask_r50__p0_397133", "htc_r50__e0_tiny_47x33"])
def test_other_thresholds_are_detected(name: str) -> None:
    """One golden depends on the score threshold, the other one on the overlap."""
    golden = load_golden(DATA / "goldens" / f"{name}.npz")
    model = build_golden_model(golden["meta"]["model"])
    batch = golden_batch(golden, model)
    config = model.config
    filter_settings = FilterSettings.of(config, score_margin=1e-3)
    with torch.inference_mode():
        pyramid = model.features(batch.pixels)
        proposals = model.propose(pyramid, batch)
        sizes = torch.tensor(batch.image_sizes)
        semantic_feat = model.roi_head.semantic_forward(pyramid)
        found, scores = model.roi_head.detect_boxes(pyramid, semantic_feat, boxes_to_rois(proposals), sizes)
        seen = collect_candidates(model, pyramid, batch, (torch.from_numpy(golden["prop_boxes"]), proposals[0]))

    def wrong(**changes: float) -> list[Row]:
        kept, kept_scores, labels = select_detections(found, scores, replace(config, **changes))
        kept = to_original(kept, batch.image_sizes[0], batch.original_sizes[0])
        raw = RawDetections(kept, kept_scores, labels, None, batch.original_sizes[0])
        rows = compare_detections(golden, raw, batch.image_sizes[0], filter_settings, lambda: seen)
        return [row for row in rows if not row.is_ok]

    assert wrong() == []
    assert wrong(max_detections=35) != []
    if name.startswith("cascade"):
        assert wrong(score_threshold=0.055) != []
        assert wrong(score_threshold=0.047) != []
    else:
        assert wrong(nms_iou=0.52) != []
        assert wrong(nms_iou=0.48) != []


# --- decisions one by one ----------------------------------------------------------------------------------

FILTER_SETTINGS = FilterSettings(score_threshold=0.05, nms_iou=0.5, max_detections=3, score_margin=1e-3)


def boxes(*scored: tuple[float, float]) -> Boxes:
    """Boxes of 100 px beside one another: by their left side and score."""
    left = np.array([each[0] for each in scored], float)
    corners = np.stack([left, 0 * left, left + 100, 0 * left + 100], axis=1)
    return Boxes(corners.reshape(-1, 4), np.array([each[1] for each in scored], float), np.zeros(len(scored), np.int64))


def side(detections: Boxes, candidates: Boxes, *, at_border: bool = False, is_shared: bool = True) -> Side:
    count = len(candidates)
    return Side(detections, Candidates(candidates, np.full(count, at_border), np.full(count, is_shared)))


def reasons(golden: Side, ours: Side, pairs: list[tuple[int, int]]) -> tuple[list[str], list[str]]:
    first, second = explain_both((golden, ours), pairs, FILTER_SETTINGS)
    return list(first.values()), list(second.values())


def test_a_score_at_the_threshold() -> None:
    for score, wanted in ((0.0505, ["score threshold"]), (0.06, [])):
        one = boxes((0, score))
        assert reasons(side(one, one), side(boxes(), one), []) == (wanted, [])


# Two boxes of 100 px whose overlap is r have a distance of 100 (1 - r) / (1 + r).
def apart(iou: float) -> float:
    return 100 * (1 - iou) / (1 + iou)


@pytest.mark.parametrize(("iou", "wanted"), [(0.5005, ["NMS overlap"]), (0.51, []), (0.9, [])])
def test_an_overlap_at_the_limit(iou: float, wanted: list[str]) -> None:
    both, best = boxes((0, 0.9), (apart(iou), 0.8)), boxes((0, 0.9))
    assert reasons(side(both, both), side(best, both), [(0, 0)]) == (wanted, [])


def test_two_of_one_score_that_suppress_one_another() -> None:
    both = boxes((0, 0.8), (20, 0.8005))
    one, other = boxes((0, 0.8)), boxes((20, 0.8005))
    assert reasons(side(one, both), side(other, both), []) == (["NMS order"], ["NMS order"])


def test_what_an_explained_one_suppresses_follows() -> None:
    """Ours keeps B, which the golden's A barely suppresses; C, which B suppresses, is the golden's alone."""
    three = boxes((0, 0.9), (apart(0.5), 0.8), (apart(0.5) + 20, 0.7))
    golden, ours = boxes((0, 0.9), (apart(0.5) + 20, 0.7)), boxes((0, 0.9), (apart(0.5), 0.8))
    assert reasons(side(golden, three), side(ours, three), [(0, 0)]) == (["follows another"], ["NMS overlap"])


def test_the_last_of_the_list() -> None:
    four = boxes((0, 0.9), (200, 0.8), (400, 0.7), (600, 0.6995))
    golden, ours = boxes((0, 0.9), (200, 0.8), (600, 0.6995)), boxes((0, 0.9), (200, 0.8), (400, 0.7))
    assert reasons(side(golden, four), side(ours, four), [(0, 0), (1, 1)]) == (["cut"], ["cut"])
    low = boxes((0, 0.9), (200, 0.8), (400, 0.7), (600, 0.5))
    golden = boxes((0, 0.9), (200, 0.8), (600, 0.5))
    assert reasons(side(golden, low), side(ours, low), [(0, 0), (1, 1)]) == ([], [])


def test_an_roi_at_a_border_of_the_grid() -> None:
    golden, ours = boxes((0, 0.8)), boxes((0.7, 0.81))
    assert reasons(side(golden, golden), side(ours, ours, at_border=True), []) == (["RoI grid"], ["RoI grid"])
    assert reasons(side(golden, golden), side(ours, ours), []) == ([], [])
    far = boxes((60, 0.8))
    assert reasons(side(golden, golden), side(far, far, at_border=True), []) == ([], ["RoI grid"])


def test_a_proposal_that_one_side_lacks() -> None:
    one = boxes((0, 0.8))
    assert reasons(side(one, one, is_shared=False), side(boxes(), boxes()), []) == (["proposal"], [])
    assert reasons(side(one, one), side(boxes(), boxes()), []) == ([], [])


def test_pixels_far_from_the_threshold_are_counted() -> None:
    ramp = torch.linspace(0, 1, 28).repeat(28, 1)
    box = torch.tensor([0.0, 0.0, 280.0, 280.0])
    differs = np.zeros((280, 280), bool)
    differs[100, 139:141] = True
    assert far_pixels(ramp, box, differs) == 0
    differs[100, 200] = True
    assert far_pixels(ramp, box, differs) == 1
    assert far_pixels(ramp, box, np.zeros((280, 280), bool)) == 0
