"""The squeeze-and-excitation backbones are timm's, and the challenge's preset is composed as the paper says."""

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from htc_model.config import BackboneConfig, load_preset
from htc_model.network.detector import build_model
from htc_model.network.resnet import DeformConv2d
from htc_model.network.senet import SENet


def timms(name: str) -> torch.nn.Module:
    network: torch.nn.Module = timm.create_model(name, features_only=True, pretrained=False, out_indices=(1, 2, 3, 4))
    return network


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@torch.inference_mode()
def test_the_features_are_timms() -> None:
    torch.manual_seed(0)
    ours = SENet(BackboneConfig(kind="seresnext101_32x4d")).eval()
    theirs = timms("seresnext101_32x4d").eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    for found, wanted in zip(ours(pixels), theirs(pixels), strict=True):
        assert torch.equal(found, wanted)


def test_senet_154_has_timms_layers_and_the_pyramids_sizes() -> None:
    with FakeTensorMode():
        ours = SENet(BackboneConfig(kind="senet154"))
        theirs = timms("legacy_senet154")
        assert shapes(ours) == shapes(theirs)
        pixels = torch.empty(1, 3, 64, 96)
        assert [tuple(x.shape) for x in ours(pixels)] == [tuple(x.shape) for x in theirs(pixels)]
    assert ours.channels == (256, 512, 1024, 2048)


def test_the_challenges_network() -> None:
    config = load_preset("htc_challenge")
    assert (config.interleaved, config.mask_info_flow, config.semantic, config.rpn) == (True, True, True, "guided")
    with torch.device("meta"):
        model = build_model(config)
    deformable = {name for name, module in model.backbone.named_modules() if isinstance(module, DeformConv2d)}
    assert deformable == {f"layer4.{block}.conv2" for block in range(3)}
    with FakeTensorMode(), torch.no_grad():
        pyramid = build_model(config).eval().features(torch.empty(1, 3, 64, 96))
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
