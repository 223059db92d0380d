"""The EfficientNet-Lite0 backbone and its preset, the only one that needs timm."""

import subprocess
import sys

import pytest
import torch

from htc_model.config import load_preset
from htc_model.preprocess import padded_size
from tests.support.builders.networks import assert_wellformed, image_batch, reference_image, untrained_model

CONFIG = load_preset("htc_lite0_fpn")


def test_fewer_than_twelve_million_parameters() -> None:
    assert sum(p.numel() for p in untrained_model(CONFIG).parameters()) <= 12_000_000


def test_it_is_a_whole_htc_on_small_images() -> None:
    assert CONFIG.interleaved
    assert CONFIG.mask_info_flow
    assert CONFIG.semantic
    assert CONFIG.num_stages == 3
    assert min(padded_size(3000, 4000, CONFIG.resize)) <= 384


def test_backbone_has_strides_4_to_32() -> None:
    with torch.inference_mode():
        features = untrained_model(CONFIG).backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape) for x in features] == [
        (1, 24, 16, 24),
        (1, 40, 8, 12),
        (1, 112, 4, 6),
        (1, 320, 2, 3),
    ]


def test_backbone_is_timms() -> None:
    """Same keys and same numbers as timm's own feature extractor."""
    timm = pytest.importorskip("timm", reason="timm is a dependency, but this is about timm itself")
    reference = timm.create_model(
        "tf_efficientnet_lite0", features_only=True, pretrained=False, out_indices=(1, 2, 3, 4)
    )
    ours = untrained_model(CONFIG).backbone
    reference.load_state_dict(ours.state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for wanted, found in zip(reference.eval()(pixels), ours(pixels), strict=True):
            torch.testing.assert_close(found, wanted)


def test_detects_on_a_photo() -> None:
    (raw,) = untrained_model(CONFIG).infer(image_batch(CONFIG, reference_image()))
    assert_wellformed(raw, CONFIG)


def test_timm_is_imported_only_for_it() -> None:
    code = (
        "import sys, torch; from htc_model.network.detector import build_model\n"
        "with torch.device('meta'): build_model('mask_rcnn_r50_fpn')\n"
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
