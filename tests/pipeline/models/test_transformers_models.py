"""Checkpoints of transformers find what the library's own post-processing finds, on tiny random networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from htc_model.masks.frames import encode_frames
from htc_model.masks.rle import decode_rle
from htc_model.structures import FrameDetections
from pipeline.errors import ModelError
from pipeline.models import transformers_models
from pipeline.models.pixels import FormatPixels
from tests.support.builders.tiny_transformers import CLASSES, FAMILIES, save_checkpoint
from tests.support.paths import ROOT

PHOTOS = ROOT / "examples" / "photos"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: save_checkpoint(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    with Image.open(PHOTOS / "000000079031.jpg") as image:
        return np.asarray(image.convert("RGB"))


def infer(model: Any, images: list[NDArray[np.uint8]]) -> list[FrameDetections]:
    batch = FormatPixels(model.pixels).build(images, "cpu")
    with torch.inference_mode():
        found: list[FrameDetections] = model.infer(batch)
    return found


def run_library(folder: Path, image: NDArray[np.uint8]) -> tuple[Any, Any, Any]:
    """Return the library's processor, its inputs and the network's outputs."""
    import transformers

    model = transformers_models.make(str(folder))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = processor(images=Image.fromarray(image), return_tensors="pt")
    values = {key: value for key, value in inputs.items() if key in {"pixel_values", "pixel_mask"}}
    with torch.inference_mode():
        return processor, inputs, model.network(**values)


def draw(found: FrameDetections) -> NDArray[np.bool_]:
    """Return the encoded masks of the image's size, in the order in which the model gave them."""
    ordered = FrameDetections(
        torch.zeros(len(found.scores), 4),
        torch.linspace(1, 0, len(found.scores)),
        found.labels,
        found.masks,
        found.is_logits,
        found.original_size,
    )
    masks = encode_frames(ordered).masks
    assert masks is not None
    return np.stack([decode_rle(mask) for mask in masks])


def stretch(maps: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    return (F.interpolate(maps[None].float(), size=size, mode="bilinear", align_corners=False)[0] > 0).numpy()


def ious(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> list[float]:
    return [float((x & y).sum() / max(1, (x | y).sum())) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_librarys_processor(
    family: str, checkpoints: dict[str, Path], photo: NDArray[np.uint8]
) -> None:
    model = transformers_models.make(str(checkpoints[family]))
    _, inputs, _ = run_library(checkpoints[family], photo)
    batch = FormatPixels(model.pixels).build([photo], "cpu")
    theirs = inputs["pixel_values"]
    assert batch.pixels.shape == theirs.shape
    height, width = batch.image_sizes[0]
    # Less than a hundredth of a grey level.
    assert float((batch.pixels - theirs)[:, :, :height, :width].abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_instances_are_those_of_mask_classification(
    family: str, checkpoints: dict[str, Path], photo: NDArray[np.uint8]
) -> None:
    size = photo.shape[:2]
    processor, _, outputs = run_library(checkpoints[family], photo)
    wanted = processor.post_process_instance_segmentation(
        outputs, threshold=0.01, target_sizes=[size], return_binary_maps=True
    )[0]
    found = infer(transformers_models.make(str(checkpoints[family])), [photo])[0]
    order = np.lexsort([found.labels.numpy(), -found.scores.numpy()])
    info = wanted["segments_info"]
    theirs = sorted(range(len(info)), key=lambda place: (-info[place]["score"], info[place]["label_id"]))
    assert len(info) == len(order) > 3
    np.testing.assert_allclose([info[i]["score"] for i in theirs], found.scores[order.copy()], atol=2e-5)
    assert [info[i]["label_id"] for i in theirs] == found.labels[order.copy()].tolist()
    # Theirs are stretched to 384 x 384 or not at all, then to the photo by nearest neighbours, in whole map pixels.
    least = 0.97 if family == "mask2former" else 0.85
    assert min(ious(draw(found)[order], wanted["segmentation"].numpy().astype(bool)[theirs])) > least


def test_instances_are_those_of_eomt(checkpoints: dict[str, Path], photo: NDArray[np.uint8]) -> None:
    size = photo.shape[:2]
    processor, _, outputs = run_library(checkpoints["eomt"], photo)
    wanted = processor.post_process_instance_segmentation(outputs, target_sizes=[size], threshold=0.01)[0]
    found = infer(transformers_models.make(str(checkpoints["eomt"])), [photo])[0]
    info = wanted["segments_info"]
    assert len(info) == len(found.scores) > 3
    assert [each["label_id"] for each in info] == found.labels.tolist()
    # Theirs are scored at the photo's size, which takes gigabytes for a large one; ours at the resized image's.
    np.testing.assert_allclose([each["score"] for each in info], found.scores, atol=0.01)
    # Before it paints every mask over those before it, the library has these; ours may overlap.
    inside = F.interpolate(outputs.masks_queries_logits, size=(64, 64), mode="bilinear")
    theirs = processor.unpad_image(inside, [size], {"shortest_edge": 64, "longest_edge": 64})[0] > 0
    assert min(ious(draw(found), theirs.numpy())) > 0.93


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "rf_detr"])
def test_instances_are_those_of_detr(family: str, checkpoints: dict[str, Path], photo: NDArray[np.uint8]) -> None:
    size = photo.shape[:2]
    processor, _, outputs = run_library(checkpoints[family], photo)
    wanted = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[size])[0]
    found = infer(transformers_models.make(str(checkpoints[family])), [photo])[0]
    order = found.scores.sort(descending=True, stable=True).indices
    theirs = wanted["scores"].sort(descending=True, stable=True).indices[: len(order)]
    assert len(order) == len(theirs) > 3
    torch.testing.assert_close(found.scores[order], wanted["scores"][theirs], atol=1e-5, rtol=0)
    assert found.labels[order].tolist() == wanted["labels"][theirs].tolist()
    assert found.boxes_xyxy is not None
    limits = torch.tensor([size[1], size[0], size[1], size[0]])
    clipped = wanted["boxes"].clamp(min=0).minimum(limits)
    torch.testing.assert_close(found.boxes_xyxy[order], clipped[theirs], atol=0.02, rtol=0)
    # The masks are those of the same queries, each by itself, stretched bilinearly.
    assert min(ious(draw(found), stretch(found.masks, size))) > 0.999


def test_masks_of_rf_detr_are_the_librarys(checkpoints: dict[str, Path], photo: NDArray[np.uint8]) -> None:
    size = photo.shape[:2]
    processor, _, outputs = run_library(checkpoints["rf_detr"], photo)
    wanted = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=[size], return_binary_maps=True
    )[0]
    found = infer(transformers_models.make(str(checkpoints["rf_detr"])), [photo])[0]
    drawn = draw(found)
    theirs = wanted["segmentation"].numpy().astype(bool)
    assert len(theirs) == len(drawn)
    assert (theirs == drawn).mean() > 0.9999


@pytest.mark.parametrize("family", FAMILIES)
def test_an_images_result_does_not_depend_on_its_batch(
    family: str, checkpoints: dict[str, Path], photo: NDArray[np.uint8]
) -> None:
    """Images of several sizes share a batch where they are padded to the same size."""
    model = transformers_models.make(str(checkpoints[family]), pad_multiple=32)
    others = [np.ascontiguousarray(photo[: len(photo) - cut, ::-1]) for cut in (0, 3, 12)]
    pixels = FormatPixels(model.pixels)
    images = [
        photo,
        *(each for each in others if pixels.padded_size(*each.shape[:2]) == pixels.padded_size(*photo.shape[:2])),
    ]
    assert len(images) > 1
    alone, together = infer(model, [photo])[0], infer(model, images)[0]
    torch.testing.assert_close(alone.scores, together.scores, atol=1e-4, rtol=1e-4)
    assert alone.labels.tolist() == together.labels.tolist()
    torch.testing.assert_close(alone.masks, together.masks, atol=1e-3, rtol=1e-3)


def test_padding_is_told_to_the_network(checkpoints: dict[str, Path], photo: NDArray[np.uint8]) -> None:
    model = transformers_models.make(str(checkpoints["detr"]), pad_multiple=64)
    batch = FormatPixels(model.pixels).build([photo], "cpu")
    height, width = batch.image_sizes[0]
    assert batch.pixels.shape[-1] > width
    mask = transformers_models.pixel_mask(batch)
    assert mask.sum() == height * width
    assert mask[0, :height, :width].all()


def test_classes_and_category_ids() -> None:
    name_classes = transformers_models.name_classes
    assert name_classes({0: "person", 1: "Dog"}) == (("person", "Dog"), (1, 18))
    assert name_classes({0: "hat", 1: "coat"}) == (("hat", "coat"), (0, 1))
    # 12 and 26 are no ids of COCO's, as in DETR's checkpoints; names that occur twice get their numbers.
    assert name_classes({0: "N/A", 1: "person", 2: "N/A"}) == (("N/A 0", "person", "N/A 2"), (0, 1, 2))
    # Label 1 has the number that COCO gave to "person".
    assert name_classes({0: "person", 1: "hat"}) == (("person", "hat"), (1, 1001))
    assert name_classes({0: "a", 2: ""})[0] == ("a", "label 1", "label 2")


def test_facts_of_a_checkpoint(checkpoints: dict[str, Path]) -> None:
    model = transformers_models.make(str(checkpoints["detr"]))
    assert (model.name, model.classes) == ("detr", tuple(CLASSES.values()))
    assert [path.name for path in transformers_models.default_files(str(checkpoints["detr"]))] == [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ]


def test_weights_of_ones_own_and_untrained_ones(
    checkpoints: dict[str, Path], photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = checkpoints["rf_detr"]
    own = infer(transformers_models.make(str(folder)), [photo])[0]
    other = save_checkpoint("rf_detr", tmp_path / "other", seed=5)
    for weights in (other, other / "model.safetensors"):
        found = infer(transformers_models.make(str(folder), weights=weights), [photo])[0]
        assert not torch.equal(found.scores, own.scores)
        torch.testing.assert_close(found.scores, infer(transformers_models.make(str(other)), [photo])[0].scores)
    first, second = (infer(transformers_models.make(str(folder), weights="untrained"), [photo])[0] for _ in range(2))
    assert torch.equal(first.scores, second.scores)
    with pytest.raises(ModelError, match=r"lacks \d+ of the tensors of rf_detr.*another network"):
        transformers_models.make(str(folder), weights=checkpoints["detr"] / "model.safetensors")
    with pytest.raises(ModelError, match="pad_multiple"):
        transformers_models.make(str(folder), pad_multiple=0)
