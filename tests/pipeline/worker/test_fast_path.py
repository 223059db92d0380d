"""A fast model is used only when it computes what the network does; one that lies or fails is switched off."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from htc_model.config import load_preset
from htc_model.inference.fast_model import FastModel
from htc_model.network.detector import HTC, build_model
from htc_model.structures import ImageBatch, RawDetections
from htc_model.weights.untrained import untrained_state
from pipeline.worker.fast_path import choose_fast_model
from pipeline.worker.segmenter import DecodedImage, Segmenter
from tests.support.fakes.models import FakeModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> HTC:
    config = load_preset("htc_lite0_fpn")
    small = replace(
        config,
        resize=replace(config.resize, short_side=64, long_side=96),
        rpn_proposals=40,
        max_detections=10,
        score_threshold=0.05,
    )
    model = build_model(small).eval()
    model.load_state_dict(untrained_state(model.state_dict()))
    return model


class Lying:
    """The network, with its results changed."""

    def __init__(self, network: HTC, change: Callable[[RawDetections], RawDetections]) -> None:
        self.config = network.config
        self.calls = 0
        self._network = network
        self._change = change

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        self.calls += 1
        return [self._change(raw) for raw in self._network.infer(batch)]


def shifted(raw: RawDetections) -> RawDetections:
    sides = raw.boxes_xyxy[:, 2:] - raw.boxes_xyxy[:, :2]
    return replace(raw, boxes_xyxy=raw.boxes_xyxy + 0.3 * sides.repeat(1, 2))


def none_of(raw: RawDetections) -> RawDetections:
    return replace(raw, **{name: getattr(raw, name)[:0] for name in FIELDS})


def thrice(raw: RawDetections) -> RawDetections:
    tripled = {name: torch.cat([getattr(raw, name)] * 3) for name in FIELDS}
    tripled["labels"] += torch.arange(3).repeat_interleave(len(raw.labels))
    return replace(raw, **tripled)


def inverted(raw: RawDetections) -> RawDetections:
    assert raw.mask_probs is not None
    return replace(raw, mask_probs=1 - raw.mask_probs)


FIELDS = ("boxes_xyxy", "scores", "labels", "mask_probs")
LIES: dict[str, Callable[[RawDetections], RawDetections]] = {
    "shifted boxes": shifted,
    "other labels": lambda raw: replace(raw, labels=raw.labels + 1),
    "other scores": lambda raw: replace(raw, scores=raw.scores * 0.5),
    "nothing found": none_of,
    "too much found": thrice,
    "inverted masks": inverted,
    "no masks": lambda raw: replace(raw, mask_probs=None),
    "NaN": lambda raw: replace(raw, scores=raw.scores * torch.nan),
}


def test_the_fast_model_agrees_and_is_used(network: HTC) -> None:
    made: list[FastModel] = []

    def build(model: HTC) -> FastModel:
        made.append(FastModel(model, CPU))
        return made[-1]

    choice = choose_fast_model(network, CPU, "fp32", build=build)
    assert choice.note == "on"
    assert choice.model is made[1]
    # The one that was compared finds more than the spec asks for.
    assert made[0].config.score_threshold < network.config.score_threshold == made[1].config.score_threshold


@pytest.mark.parametrize("lie", LIES)
def test_one_that_lies_is_switched_off_with_one_line(network: HTC, lie: str, caplog: pytest.LogCaptureFixture) -> None:
    choice = choose_fast_model(network, CPU, "fp32", build=lambda model: Lying(model, LIES[lie]))
    assert choice.model is None
    assert choice.note.startswith("off (")
    assert [record.message for record in caplog.records] == [f"the fast path is off: {choice.note[5:-1]}"]


def test_one_that_lies_only_in_a_later_run_or_only_on_batches_is_caught(network: HTC) -> None:
    """As a graph may that is recorded at the third run, or a batch with an empty slot."""

    class Late(Lying):
        def infer(self, batch: ImageBatch) -> list[RawDetections]:
            found = super().infer(batch)
            return found if self.calls < self.first_lie else [LIES["shifted boxes"](raw) for raw in found]

    for first_lie, where in ((4, "one image"), (5, "a batch")):
        Late.first_lie = first_lie  # type: ignore[attr-defined]
        choice = choose_fast_model(network, CPU, "fp32", build=lambda model: Late(model, lambda raw: raw))
        assert where in choice.note


def test_one_that_fails_is_switched_off(network: HTC, caplog: pytest.LogCaptureFixture) -> None:
    def broken(model: HTC) -> FastModel:
        raise RuntimeError("no kernel image is available\nfor this card")

    choice = choose_fast_model(network, CPU, "fp32", build=broken)
    assert choice.model is None
    assert choice.note == "off (it fails: RuntimeError: no kernel image is available for this card)"
    assert len(caplog.records) == 1


def test_soft_nms_runs_the_network_itself_and_says_so(network: HTC) -> None:
    soft = copy.copy(network)
    soft.config = replace(network.config, suppression="soft_linear")
    choice = choose_fast_model(soft, CPU, "fp32", build=lambda model: FastModel(model, CPU))
    assert choice.model is None
    assert choice.note == "off (soft-NMS takes boxes one by one, each time the best of changed scores)"


def test_a_network_without_a_fast_way_says_nothing(network: HTC, caplog: pytest.LogCaptureFixture) -> None:
    other = FakeModel(load_preset("htc_lite0_fpn"))
    for model in (other, network):
        choice = choose_fast_model(model, CPU, "fp32")
        assert (choice.model, choice.note) == (None, "")
    assert not caplog.records


def test_the_segmenter_uses_the_fast_model_and_halves_its_batches(network: HTC) -> None:
    config = network.config
    fast, slow = FakeModel(config, max_batch=2), FakeModel(config)
    choice = replace(choose_fast_model(slow, CPU, "fp32"), model=fast, note="on")
    segmenter = Segmenter(slow, CPU, batch_size=4, fast=choice)
    images = [DecodedImage(number, "", torch.zeros(32, 48, 3, dtype=torch.uint8).numpy()) for number in range(4)]
    found = [outcome for _, outcome in segmenter.segment(images)]
    assert all(isinstance(outcome, RawDetections) for outcome in found)
    assert (fast.batch_sizes, slow.batch_sizes) == ([4, 2, 2], [])
