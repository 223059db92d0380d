"""Models of one's own in a worker without Ray: their rows, their faults, and memory that runs out."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from htc_model.structures import Detections
from pipeline.driver.run_job import worker_settings
from pipeline.errors import ModelError
from pipeline.messages import ImageFailure, WorkerFailure, WorkerReady
from pipeline.models import PixelFormat
from pipeline.models.checked import CheckedModel
from pipeline.worker.any_model import load_any_model
from pipeline.worker.batch_encoding import BatchEncoder
from pipeline.worker.segmenter import DecodedImage, Segmenter
from pipeline.worker.worker import Worker
from tests.support.fakes.models import write_image
from tests.support.fakes.own_models import SPOILT_WIDTH, Regions, call_exit
from tests.support.fakes.shard_bench import Bench, spec_for

CPU = torch.device("cpu")
# All images have one padded size, so that those with a fault share their batch with others.
FORMAT = PixelFormat(exact_size=(32, 32))
FAULTS = {
    "raises": "the model regions raised RuntimeError: the licence server does not answer",
    "label": "the model regions returned the label 91, and has 2 classes, 0 to 1",
    "score": "the model regions returned scores that are not finite numbers (NaN or infinity)",
    "mask size": "the model regions returned masks of 20 x 32 pixels for an image of 48 x 40 (resized: 32 x 32), which",
    "boxes": "the model regions returned boxes that are not finite numbers (NaN or infinity)",
    "exits": "the model regions raised SystemExit: 0 (which ends a program), in ",
    "interrupts": "the model regions raised KeyboardInterrupt, in ",
    "leaves": "the model regions raised GeneratorExit, in ",
    "is cancelled": "the model regions raised CancelledError, in ",
}


def decoded(*widths: int) -> list[DecodedImage]:
    rng = np.random.default_rng(0)
    return [
        DecodedImage(place, f"{place}.png", rng.integers(0, 256, (40, width, 3), dtype=np.uint8))
        for place, width in enumerate(widths)
    ]


def segmented(segmenter: Segmenter, images: list[DecodedImage]) -> list[Detections | ImageFailure]:
    return [
        outcome if isinstance(outcome, ImageFailure) else segmenter.encode(outcome)
        for _, outcome in segmenter.segment(images)
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_image_only_and_names_the_model(fault: str) -> None:
    model = Regions(fault, has_frames=fault != "boxes", pixels=FORMAT)
    segmenter = Segmenter(CheckedModel(model), CPU, batch_size=8)
    # As in a worker: on the main thread, KeyboardInterrupt is Ctrl-C.
    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(segmented, segmenter, decoded(64, SPOILT_WIDTH, 80)).result()
    failure = outcomes[1]
    assert isinstance(failure, ImageFailure)
    assert failure.status == "failed"
    assert failure.reason.startswith(FAULTS[fault])
    assert [isinstance(outcome, Detections) for outcome in outcomes] == [True, False, True]


def test_ctrl_c_is_not_an_image_s_fault() -> None:
    segmenter = Segmenter(CheckedModel(Regions("interrupts")), CPU)
    with pytest.raises(KeyboardInterrupt):
        segmented(segmenter, decoded(SPOILT_WIDTH))


@pytest.mark.parametrize("has_frames", [True, False])
def test_masks_over_images_and_over_boxes_become_rle(has_frames: bool) -> None:
    model = CheckedModel(Regions(has_frames=has_frames))
    for encoder in (None, BatchEncoder(CPU)):
        (found,) = segmented(Segmenter(model, CPU, encoder=encoder), decoded(64))
        assert isinstance(found, Detections)
        assert found.masks is not None
        assert [mask["size"] for mask in found.masks] == [[40, 64]] * 2
        assert int(coco_mask.area(found.masks).sum()) >= 40 * 64
        assert float(found.boxes_xyxy.min()) >= 0
        assert float(found.boxes_xyxy[:, 2].max()) == 64


def test_batches_are_halved_until_they_fit_the_memory() -> None:
    model = Regions(max_batch=2, pixels=FORMAT)
    outcomes = segmented(Segmenter(CheckedModel(model), CPU, batch_size=8), decoded(*[64] * 8))
    assert len(outcomes) == 8
    assert not any(isinstance(outcome, ImageFailure) for outcome in outcomes)
    assert model.batch_sizes == [8, 4, 2, 2, 4, 2, 2]
    failed = segmented(Segmenter(CheckedModel(Regions(max_batch=0)), CPU), decoded(64))[0]
    assert isinstance(failed, ImageFailure)
    assert "ran out of memory on this 64 x 40 image alone" in failed.reason


def test_its_rows_have_its_classes_and_ids(tmp_path: Path) -> None:
    model = Regions()
    model.category_ids = [7, 9]  # type: ignore[attr-defined]
    bench = Bench(tmp_path, CheckedModel(model))  # type: ignore[arg-type]
    bench.process([write_image(tmp_path / "a.png", (40, 60)), write_image(tmp_path / "b.png", (40, SPOILT_WIDTH))])
    rows = bench.instance_rows()
    assert {(row["category"], row["category_id"]) for row in rows} <= {("bright", 7), ("dark", 9)}
    assert rows
    assert all(row["area"] for row in rows)


def test_the_caller_s_own_load_model_may_return_such_a_model() -> None:
    section = spec_for(Path("x")).model.model_copy(update={"score_threshold": 0.85})
    model = load_any_model(section, load_model=lambda section: Regions())
    assert isinstance(model, CheckedModel)
    assert model.score_threshold == 0.85
    with pytest.raises(ModelError, match=r"^load_model \(.*<lambda>\) returned a int, which has no `name`"):
        load_any_model(section, load_model=lambda section: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(
        ModelError, match=r"^load_model \(.*:call_exit\) raised SystemExit: 0 .*, in .*own_models\.py, line"
    ):
        load_any_model(section, load_model=call_exit)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raise_error", "raised RuntimeError: no licence, in "),
        ("call_exit", r"raised SystemExit: 0 \(which ends a program\), in "),
        ("need_a_package", "needs the package a_package_that_is_not_there"),
        ("laod", r"did you mean load\?"),
    ],
)
def test_a_factory_that_fails_ends_the_run_before_any_image(tmp_path: Path, function: str, reason: str) -> None:
    spec = spec_for(tmp_path)
    model = spec.model.model_validate({"factory": f"tests.support.fakes.own_models:{function}"})
    failure = Worker(worker_settings(spec.model_copy(update={"model": model}), "run")).start()
    assert isinstance(failure, WorkerFailure)
    assert (failure.is_permanent, failure.exit_code, failure.traceback) == (True, 2, None)
    assert re.search(reason, failure.reason)


def test_a_worker_loads_the_factory_s_model(tmp_path: Path) -> None:
    spec = spec_for(tmp_path)
    model = spec.model.model_validate({"factory": "tests.support.fakes.own_models:load", "precision": "auto"})
    ready = Worker(worker_settings(spec.model_copy(update={"model": model}), "run")).start()
    assert isinstance(ready, WorkerReady)
    assert ready.precision.startswith("fp32")
