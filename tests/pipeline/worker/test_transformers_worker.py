"""Checkpoints of transformers in a worker without Ray: their rows, memory that runs out, weights that compute NaN."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from htc_model.structures import Detections
from pipeline.job_spec.model import ModelSection
from pipeline.messages import ImageFailure
from pipeline.models.factory import make_model
from pipeline.worker.segmenter import DecodedImage, Segmenter
from tests.support.builders.tiny_transformers import CLASSES, save_checkpoint
from tests.support.fakes.models import write_image
from tests.support.fakes.shard_bench import Bench
from tests.support.paths import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("detr", tmp_path_factory.mktemp("checkpoint") / "tiny")


def load(folder: Path, **options: object) -> Any:
    section = {"factory": f"transformers:{folder}", "options": options, "score_threshold": 0.01}
    return make_model(ModelSection.model_validate(section))


def images(*sizes: tuple[int, int]) -> list[DecodedImage]:
    rng = np.random.default_rng(0)
    return [
        DecodedImage(place, f"{place}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for place, size in enumerate(sizes)
    ]


def segmented(segmenter: Segmenter, decoded: list[DecodedImage]) -> list[Detections | ImageFailure]:
    return [
        outcome if isinstance(outcome, ImageFailure) else segmenter.encode(outcome)
        for _, outcome in segmenter.segment(decoded)
    ]


def test_batches_are_halved_and_the_detections_are_those_of_a_larger_batch(checkpoint: Path) -> None:
    model = load(checkpoint, pad_multiple=32)
    # Of several sizes, in batches of one padded shape.
    decoded = images((96, 140), (96, 130), (95, 142), (95, 140))
    segmenter = Segmenter(model, CPU, batch_size=4)
    assert len({segmenter.padded_shape(image) for image in decoded}) == 1
    wanted = segmented(segmenter, decoded)

    forward, sizes = model.model.network.forward, []

    def crowded(**inputs: Any) -> Any:
        sizes.append(len(inputs["pixel_values"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(**inputs)

    model.model.network.forward = crowded
    found = segmented(Segmenter(model, CPU, batch_size=4), decoded)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, Detections)
        assert isinstance(other, Detections)
        assert len(one) == len(other) > 0
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, atol=0.01, rtol=0)


def test_rows_of_photos(checkpoint: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, load(checkpoint))
    bench.process([write_image(tmp_path / f"{width}.png", (60, width)) for width in (80, 80, 120)])
    rows = bench.instance_rows()
    assert {row["category"] for row in rows} <= set(CLASSES.values())
    assert {row["category_id"] for row in rows} <= {1, 1001, 18}
    assert {tuple(row["mask"]["size"]) for row in rows} == {(60, 80), (60, 120)}
    assert all(row["area"] is not None for row in rows)


def test_weights_that_compute_nan_fail_the_images_and_name_the_model(checkpoint: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.safetensors"
    state = load_file(checkpoint / "model.safetensors")
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    save_file(state, spoilt)
    section = {"factory": f"transformers:{checkpoint}", "weights": str(spoilt)}
    model = make_model(ModelSection.model_validate(section))
    (failure,) = segmented(Segmenter(model, CPU), images((64, 64)))
    assert isinstance(failure, ImageFailure)
    assert failure.status == "failed"
    assert "tiny" in failure.reason
    assert "not finite numbers" in failure.reason


def test_transformers_is_imported_by_its_users_only() -> None:
    """It takes a second or two: neither the commands' help nor the worker of a preset pay for it."""
    code = (
        "import sys, contextlib, io\n"
        "import pipeline.worker.worker, pipeline.models.factory, pipeline.models.adapters\n"
        "from jobs.cli import program\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    program.main(['run', '--help'])\n"
        "print('transformers' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.split()[0] == "False"
