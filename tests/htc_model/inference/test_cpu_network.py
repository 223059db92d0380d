"""The network of a CPU gives the network's features and detections, and is within MMDetection's tolerances."""

from typing import Any

import pytest
import torch
from torch import Tensor

from htc_model.config import BackboneConfig, load_preset
from htc_model.inference import cpu_network
from htc_model.inference.cpu_conv import WinogradConv2d, is_supported
from htc_model.inference.cpu_network import optimise_for_cpu
from htc_model.inference.precision import PrecisionChoice
from htc_model.network.detector import HTC, build_model
from htc_model.weights.load import load_into, load_weights
from htc_model.weights.model_zoo import bundled_weights
from pipeline.job_spec.model import ModelSection
from pipeline.weights.fingerprint import resolve_config
from pipeline.worker.segmenter import prepare_for_cpu
from tests.htc_model.inference.test_fold import BACKBONES, assert_close, heads, model_of
from tests.support.builders.networks import image_batch, lite_config, untrained_model
from tests.support.goldens.network import DATA, build_golden_model, golden_batch, load_golden, measure

pytestmark = pytest.mark.skipif(not is_supported(), reason="this PyTorch lacks oneDNN's fused operators")
FP32 = PrecisionChoice("fp32", "by default")


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
@torch.inference_mode()
def test_the_same_features_and_the_model_untouched(backbone: BackboneConfig) -> None:
    model = model_of(backbone)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(optimise_for_cpu(model).features(pixels), model.features(pixels), strict=True):
        assert_close(found, wanted)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("changes", [{}, {"has_class_specific_boxes": True, "box_stds": ((0.1, 0.1, 0.2, 0.2),)}])
@torch.inference_mode()
def test_heads_give_the_same_predictions(changes: dict[str, Any]) -> None:
    model = model_of(BACKBONES["lite0"], **changes)
    x = torch.randn(3, 64, 7, 7, generator=torch.Generator().manual_seed(2)).to(memory_format=torch.channels_last)
    ours = heads(optimise_for_cpu(model))
    for name, head in heads(model).items():
        for found, wanted in zip(ours[name](x), head(x), strict=True):
            assert_close(found, wanted, 1e-5)


@torch.inference_mode()
def test_an_image_without_detections() -> None:
    model = untrained_model(lite_config(score_threshold=1.0))
    (raw,) = optimise_for_cpu(model).infer(image_batch(model.config))
    assert raw.mask_probs is not None
    assert raw.mask_probs.shape == (0, 28, 28)


@pytest.mark.slow
def test_winograd_is_where_the_multiplications_are() -> None:
    """All wide 3x3 convolutions of stride 1: layer3, layer4, pyramid, proposals, semantic branch, masks."""
    with torch.device("meta"):
        model = build_model(load_preset("htc_r50_fpn"))
    network = optimise_for_cpu(model.to_empty(device="cpu").eval())
    names = {name.split(".convs")[0] for name, each in network.named_modules() if isinstance(each, WinogradConv2d)}
    blocks = {f"backbone.layer3.{block}.conv2" for block in range(1, 6)} | {
        f"backbone.layer4.{block}.conv2" for block in (1, 2)
    }
    heads_with = {"roi_head.semantic_head", *(f"roi_head.mask_head.{stage}" for stage in range(3))}
    assert names == blocks | heads_with | {f"neck.fpn_convs.{level}" for level in range(4)} | {"rpn_head.shared_conv"}


@torch.inference_mode()
def test_the_bundled_network_detects_the_same() -> None:
    model = build_model(resolve_config(ModelSection(preset="htc_lite0_fpn"), bundled_weights())).eval()
    load_into(model, load_weights(bundled_weights()))
    batch = image_batch(model.config)
    (wanted,), (found,) = model.infer(batch), optimise_for_cpu(model).infer(batch)
    # With a low threshold the last ones may change places; those that users look at may not.
    count = int((wanted.scores > 0.3).sum())
    assert count > 0
    assert torch.equal(found.labels[:count], wanted.labels[:count])
    torch.testing.assert_close(found.scores[:count], wanted.scores[:count], rtol=0, atol=1e-3)
    torch.testing.assert_close(found.boxes_xyxy[:count], wanted.boxes_xyxy[:count], rtol=0, atol=0.1)


class Subclass(HTC):
    """A caller's network, which may compute anything."""

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Compute P2..P6 of half the brightness."""
        return super().features(pixels / 2)


def test_which_models_a_worker_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained_model(lite_config())
    assert isinstance(prepare_for_cpu(model, FP32), HTC)
    assert prepare_for_cpu(model, FP32) is not model
    assert prepare_for_cpu(model, PrecisionChoice("bf16", "as asked for")) is model
    training = build_model(lite_config())
    assert prepare_for_cpu(training, FP32) is training
    other = Subclass(lite_config()).eval()
    assert prepare_for_cpu(other, FP32) is other
    monkeypatch.setattr(cpu_network, "is_supported", lambda: False)
    assert prepare_for_cpu(model, FP32) is model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["htc_r50__p0_397133", "cascade_mask_r50__p0_397133"])
@torch.inference_mode()
def test_goldens(name: str) -> None:
    """benchmarks/parity.py --for-cpu has all of them."""
    golden = load_golden(DATA / "goldens" / f"{name}.npz")
    model = optimise_for_cpu(build_golden_model(golden["meta"]["model"]))
    rows = list(measure(golden, model, golden_batch(golden, model)))
    assert {"C5", "P2", "score", "box", "mask IoU, mean", "fixed_mask0"} <= {row.quantity for row in rows}
    assert [row for row in rows if not row.is_ok] == []
