"""Two processes train like one with a batch of twice the size; needs Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.connection import ray_cluster
from pipeline.errors import RunError, SpecError
from pipeline.job_spec.job import ComputeSection
from pipeline.training.run import train
from pipeline.training.spec import load_training_spec
from tests.support.builders.small_photos import write_training_folder

pytestmark = [
    # One process starts Ray for all of them, once.
    pytest.mark.xdist_group("ray-train"),
    # Ray Train's own warnings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("ray_session"),
]
# Losses that divide by a count that is the same in both images.
LOSSES = ("loss_rpn_cls", "loss_rpn_bbox", "s0.loss_cls", "loss_semantic_seg")


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests here: starting it takes longer than they do."""
    with ray_cluster(ComputeSection(workers=2, cpus_per_worker=1.0), shards=2):
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of 32 pixels, so small that every anchor and proposal is taken and nothing is sampled.

    The boxes lie alike and the backgrounds differ: the losses then divide by the same counts in both photos.
    """
    monkeypatch.chdir(tmp_path)
    write_training_folder(tmp_path, images=2)
    document = json.loads((tmp_path / "coco.json").read_text())
    for number, shade in enumerate((20, 220)):
        pixels = np.full((32, 32, 3), shade, np.uint8)
        pixels[8:24, 6:22] = (200, 120, 40)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        document["images"][number] |= {"width": 32, "height": 32}
        corners = [6, 8, 22, 8, 22, 24, 6, 24]
        document["annotations"][number] |= {"bbox": [6, 8, 16, 16], "segmentation": [corners], "area": 256}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    return tmp_path


def curve(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if "losses" in line]


def settings(output: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "output": output,
        "evaluate": [],
        "epochs": 3,
        "model": {"initial": "none", "short_side": 32, "long_side": 32},
        "sampling": {"rois": 512, "proposals": 8},
        "augmentation": {"flip": 0.0},
        "optimiser": {"warmup_steps": 0, "learning_rate": 1e-4},
        "gpus_per_worker": 0,
    }
    return values | changes


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one_with_a_doubled_batch(folder: Path) -> None:
    alone = train(load_training_spec("spec.yaml", settings("alone", batch_size=2)))
    seen: list[int] = []
    scored: list[int] = []
    # Patience has all workers ask the first one, which alone evaluates.
    sets = {"evaluate": [{"annotations": "coco.json", "images": "photos"}], "patience": 9}
    spec = load_training_spec("spec.yaml", settings("joint", batch_size=1, workers=2, **sets))
    joint = train(
        spec,
        on_step=lambda step, steps, losses: seen.append(step),
        on_evaluation=lambda line: scored.append(line["epoch"]),
    )
    assert scored == [0, 1, 2]
    assert joint.name == alone.name
    assert joint.exists()
    assert seen[-1] == 3
    expected, found = curve(folder / "alone"), curve(folder / "joint")
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    assert [path.name for path in (folder / "joint").iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_a_workers_error_reaches_the_caller_unchanged(folder: Path) -> None:
    (folder / "coco.json").write_text("{")
    with pytest.raises(SpecError, match=r"coco\.json is not JSON"):
        train(load_training_spec("spec.yaml", settings("joint", workers=2)))


def test_more_gpus_than_available_are_refused(folder: Path) -> None:
    with pytest.raises(RunError, match="need 2, but there are 0; lower workers or gpus_per_worker"):
        train(load_training_spec("spec.yaml", settings("joint", workers=2, gpus_per_worker=1)))
