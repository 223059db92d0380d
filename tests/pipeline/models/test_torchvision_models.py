"""torchvision's models through the adapter: the detections are those of torchvision itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from htc_model.structures import Detections
from htc_model.weights.openmmlab import WeightsError
from pipeline.errors import ModelError
from pipeline.job_spec.model import ModelSection
from pipeline.messages import ImageFailure
from pipeline.models.factory import make_model
from pipeline.models.torchvision_models import TorchvisionModel, TorchvisionPixels, make
from pipeline.models.torchvision_models import list_models as list_adapted
from pipeline.worker.segmenter import DecodedImage, Segmenter
from tests.support.paths import ROOT

SMALL = {"min_size": 64, "max_size": 96, "box_detections_per_img": 20, "rpn_post_nms_top_n_test": 100}
SSD = "ssdlite320_mobilenet_v3_large"
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))[:2]


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def found_by(network: nn.Module, pixels: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    """What torchvision's own model finds."""
    with torch.inference_mode():
        found: dict[str, torch.Tensor] = network([torch.tensor(pixels).permute(2, 0, 1) / 255])[0]
    return found


def segmented(model: Any, images: list[NDArray[np.uint8]], *, batch_size: int = 1) -> list[Detections]:
    segmenter = Segmenter(model, torch.device("cpu"), batch_size=batch_size)
    found = []
    for place, pixels in enumerate(images):
        for _, outcome in segmenter.segment([DecodedImage(place, f"{place}.jpg", pixels)]):
            assert not isinstance(outcome, ImageFailure)
            found.append(segmenter.encode(outcome))
    return found


def checked(name: str, **values: Any) -> Any:
    return make_model(ModelSection.model_validate({"factory": f"torchvision:{name}", "score_threshold": 0.0, **values}))


@pytest.fixture(scope="module")
def mask_rcnn() -> Iterator[Any]:
    return checked("maskrcnn_resnet50_fpn", weights="untrained", options=SMALL)


def test_detections_are_torchvision_s_own(mask_rcnn: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, **SMALL).eval()
    images = [pixels_of(path) for path in PHOTOS]
    for pixels, found in zip(images, segmented(mask_rcnn, images), strict=True):
        wanted = found_by(own, pixels)
        assert len(found) == len(wanted["scores"]) > 10
        torch.testing.assert_close(found.scores, wanted["scores"])
        torch.testing.assert_close(found.boxes_xyxy, wanted["boxes"], atol=1e-3, rtol=1e-5)
        assert found.labels.tolist() == (wanted["labels"] - 1).tolist()
        assert found.masks is not None
        drawn = np.stack([coco_mask.decode(mask) for mask in found.masks]).astype(bool)
        pasted = (wanted["masks"][:, 0] >= 0.5).numpy()
        # Values of 0.5 to the last bits; the masks of untrained weights are full of them.
        assert (drawn != pasted).sum() <= 0.002 * pasted.sum()


def test_its_classes_are_coco_s_and_its_ids_coco_s_numbers(mask_rcnn: Any) -> None:
    named = dict(zip(mask_rcnn.classes, mask_rcnn.category_ids, strict=True))
    assert (named["person"], named["toothbrush"], len(named)) == (1, 90, 90)
    assert mask_rcnn.name == "torchvision:maskrcnn_resnet50_fpn"


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 517), (1, 5000), (1000, 1000)])
def test_sizes_are_those_of_torchvision_s_transform(size: tuple[int, int]) -> None:
    transform = detection.transform.GeneralizedRCNNTransform(800, 1333, [0.5] * 3, [0.2] * 3)
    if min(size) > 1:
        images, _ = transform([torch.zeros(3, *size)])
        assert TorchvisionPixels(long_side=1333, short_side=800).resized_size(*size) == images.image_sizes[0]
    else:
        assert min(TorchvisionPixels(long_side=1333, short_side=800).resized_size(*size)) == 1


def test_a_box_only_model_has_no_masks() -> None:
    (found,) = segmented(checked(SSD, weights="untrained"), [pixels_of(PHOTOS[0])])
    assert found.masks is None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = get_model(SSD, weights=None, weights_backbone=None).eval()
    wanted = found_by(own, pixels_of(PHOTOS[0]))
    torch.testing.assert_close(found.boxes_xyxy, wanted["boxes"][: len(found)], atol=1e-3, rtol=1e-5)


def test_untrained_weights_are_the_same_each_time() -> None:
    torch.manual_seed(1)
    one, other = make(SSD, weights="untrained"), make(SSD, weights="untrained")
    for key, values in one.network.state_dict().items():
        assert torch.equal(values, other.network.state_dict()[key])


def test_default_weights_are_torchvision_s_own_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _refuse)
    with pytest.raises(ModelError, match=r"could not be downloaded .*; download https://.* and copy it to"):
        make(SSD)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        own = get_model(SSD, weights=None, weights_backbone=None)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    file = get_model_weights(SSD).DEFAULT.url.rpartition("/")[2]
    torch.save(own.state_dict(), tmp_path / "checkpoints" / file)
    model = make(SSD)
    assert torch.equal(*(each.state_dict()["backbone.features.0.0.0.weight"] for each in (own, model.network)))


def _refuse(*arguments: object, **keywords: object) -> None:
    raise OSError("Network is unreachable")


def test_a_file_of_other_classes_sets_their_number(tmp_path: Path) -> None:
    own = get_model(SSD, weights=None, weights_backbone=None, num_classes=3)
    torch.save({"model": own.state_dict(), "epoch": 4}, tmp_path / "own.pth")
    model = make(SSD, weights=tmp_path / "own.pth")
    assert (model.classes, model.category_ids) == (["class 1", "class 2"], [1, 2])
    named = make(SSD, weights=tmp_path / "own.pth", classes=["cat", "dog"], category_ids=[5, 6])
    assert (named.classes, named.category_ids) == (["cat", "dog"], [5, 6])
    torch.save(dict(list(own.state_dict().items())[1:]), tmp_path / "half.pth")
    with pytest.raises(WeightsError, match="does not fit SSD: 1 keys are missing"):
        make(SSD, weights=tmp_path / "half.pth", num_classes=3)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ModelError, match=r"takes no option scre_thresh; did you mean score_thresh\?"):
        make(SSD, weights="untrained", scre_thresh=1)
    with pytest.raises(ModelError, match="cannot be built with these options"):
        make(SSD, weights="untrained", num_classes="two")


def test_every_detection_model_of_torchvision_is_listed() -> None:
    assert [name for name, _ in list_adapted()] == list_models(module=detection)
    assert dict(list_adapted())["maskrcnn_resnet50_fpn_v2"] == "masks"
    assert isinstance(make(SSD, weights="untrained"), TorchvisionModel)
