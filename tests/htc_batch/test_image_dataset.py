"""ImageDataset: pixels and instances of a run as torchvision's detection models take them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import htc_batch
from tests.support.builders.incremental_runs import WrittenRun, write_runs
from tests.support.builders.outputs import Output, ellipse_mask, make_output_folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return make_output_folder(tmp_path_factory.mktemp("dataset"))


def pairs(batch: list[Any]) -> list[Any]:
    return batch


def test_a_sample_is_the_image_and_its_instances(output: Output) -> None:
    results = htc_batch.open(output.uri)
    dataset = results.dataset()
    rows = results.images(status="ok").to_pylist()
    # Of the seven images one is broken, and one is of a shard that is not committed.
    assert len(dataset) == len(rows) == 5
    assert set(dataset.categories) == {1}
    pixels, target = dataset[1]
    row = rows[1]
    with Image.open(row["uri"]) as image:
        assert (pixels.permute(1, 2, 0).numpy() == np.asarray(image.convert("RGB"))).all()
    assert pixels.dtype == torch.uint8
    expected = ellipse_mask(row["height"], row["width"])
    assert target["masks"].shape == (2, row["height"], row["width"])
    assert (target["masks"].numpy() == expected).all()
    bbox = results.instances(image=row)["bbox"][0].as_py()
    corners = [bbox["x"], bbox["y"], bbox["x"] + bbox["width"], bbox["y"] + bbox["height"]]
    assert target["boxes"].tolist() == [corners, corners]
    assert target["labels"].tolist() == [1, 1]
    assert target["scores"].tolist() == pytest.approx([0.9, 0.25])
    assert target["area"].tolist() == [expected.sum()] * 2
    assert (target["image_id"], target["uri"], target["run"]) == (row["image_id"], row["uri"], "night")
    with pytest.raises(IndexError):
        dataset[5]
    assert "5 images" in repr(dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_it(output: Output, workers: int) -> None:
    dataset = htc_batch.open(output.uri).dataset(min_score=0.5, transform=name_and_count)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=pairs)
    found = [each for batch in loader for each in batch]
    assert [(name, count) for name, count in found] == [
        (Path(row["uri"]).name, 1) for row in htc_batch.open(output.uri).images(status="ok").to_pylist()
    ]


def name_and_count(pixels: torch.Tensor, target: dict[str, Any]) -> tuple[str, int]:
    """A transform that survives pickling."""
    return Path(target["uri"]).name, len(target["boxes"])


def test_images_without_a_chosen_instance(output: Output) -> None:
    results = htc_batch.open(output.uri)
    dataset = results.dataset(min_score=0.95)
    assert len(dataset) == 5
    _, target = dataset[0]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape[0] == len(target["labels"]) == 0
    assert len(results.dataset(category="dog", is_sparse=True)) == 5
    with pytest.raises(htc_batch.HtcError, match="no such image"):
        results.dataset(min_score=0.95, is_sparse=True)


def test_an_image_that_is_gone_or_changed_is_an_error(tmp_path: Path) -> None:
    output = make_output_folder(tmp_path)
    dataset = htc_batch.open(output.uri).dataset()
    first, second = (Path(dataset[number][1]["uri"]) for number in (0, 1))
    shutil.copy(second, first)
    second.unlink()
    with pytest.raises(htc_batch.HtcError, match="has changed since run night"):
        dataset[0]
    with pytest.raises(htc_batch.HtcError, match="does not exist"):
        dataset[1]


def test_a_model_without_masks_has_boxes_only(tmp_path: Path) -> None:
    write_runs(tmp_path / "out", [WrittenRun({"a": "ok"})])
    results = htc_batch.open(str(tmp_path / "out"))
    target = results.dataset()._target(results.images().to_pylist()[0] | {"height": 5, "width": 5})
    assert target["boxes"].tolist() == [[0, 0, 1, 1]]
    assert "masks" not in target
