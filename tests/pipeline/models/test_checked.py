"""Facts and results of models of one's own: what is wrong is one sentence that names the model."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from htc_model.masks.encode import encode_detections
from htc_model.structures import FrameDetections, ImageBatch, RawDetections
from pipeline.errors import ImageError, ModelError
from pipeline.models import PixelFormat
from pipeline.models.checked import CheckedModel
from tests.support.fakes.own_models import Regions

SIZE = (60, 80)
FORMAT = PixelFormat(long_side=40, short_side=40)


def checked(**values: Any) -> CheckedModel:
    return CheckedModel(Regions(name="mine", pixels=FORMAT), **values)


def raw(**values: Any) -> RawDetections:
    found = RawDetections(
        torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 30.0]]),
        torch.tensor([0.3, 0.8]),
        torch.tensor([0, 1]),
        torch.rand(2, 28, 28),
        SIZE,
    )
    return replace(found, **values)


def frames(**values: Any) -> FrameDetections:
    found = FrameDetections(
        None, torch.tensor([0.3, 0.8]), torch.tensor([0, 1]), torch.zeros(2, 30, 40, dtype=torch.bool), False, SIZE
    )
    return replace(found, **values)


def test_instances_are_sorted_cut_off_and_limited() -> None:
    found = checked().check(raw(), SIZE)
    assert found.scores.tolist() == pytest.approx([0.8, 0.3])
    assert found.labels.tolist() == [1, 0]
    assert len(checked(score_threshold=0.5).check(raw(), SIZE).scores) == 1
    assert len(checked(max_detections=1).check(frames(), SIZE).scores) == 1


@pytest.mark.parametrize("found", [raw, frames])
def test_nothing_found_is_a_result(found: Any) -> None:
    nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    masks = {"mask_probs": torch.zeros(0)} if found is raw else {"masks": torch.zeros(0)}
    boxes = {"boxes_xyxy": torch.zeros(0)} if found is raw else {}
    result = checked().check(found(**nothing, **masks, **boxes), SIZE)
    assert len(result.scores) == 0


def test_arrays_of_numpy_are_taken() -> None:
    found = checked().check(raw(scores=np.array([0.4, 0.2]), labels=np.array([1, 0], np.int32)), SIZE)
    assert found.labels.tolist() == [1, 0]
    assert found.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("found", "phrase"),
    [
        (raw(boxes_xyxy=torch.full((2, 4), float("nan"))), "boxes that are not finite numbers"),
        (raw(boxes_xyxy=torch.tensor([[9.0, 0, 3, 5], [0, 0, 1, 1]])), "the box 9, 0, 3, 5, whose end lies before"),
        (raw(boxes_xyxy=torch.zeros(3, 4)), r"boxes_xyxy of the shape \[3, 4\] for 2 scores"),
        (raw(scores=torch.tensor([0.3, float("inf")])), "scores that are not finite numbers"),
        (raw(scores=torch.tensor([30.0, 80.0])), "scores from 30 to 80, and not from 0 to 1"),
        (raw(scores=torch.zeros(2, 1)), r"scores and labels of the shapes \[2, 1\] and \[2\]"),
        (raw(labels=torch.tensor([0, 2])), r"the label 2, and has 2 classes, 0 to 1"),
        (raw(labels=torch.tensor([-1, 1])), "the label -1, and has 2 classes"),
        (raw(labels=torch.tensor([0.0, 1.0])), "labels of torch.float32, and not whole numbers"),
        (raw(mask_probs=torch.rand(2, 60, 80)), ".*masks over the whole image belong into FrameDetections"),
        (raw(mask_probs=torch.rand(2, 28, 28) * 9), "masks from .* and not from 0 to 1"),
        (raw(mask_probs=torch.full((2, 28, 28), float("nan"))), "masks that are not finite numbers"),
        (raw(original_size=(80, 60)), r"original_size \(80, 60\) for an image of \(height, width\) \(60, 80\)"),
        (frames(masks=torch.zeros(2, 40, 30, dtype=torch.bool)), "masks of 30 x 40 pixels for an image of 80 x 60"),
        (frames(masks=torch.zeros(2, 30, 48, dtype=torch.bool)), ".*padding must be cut off"),
        (frames(masks=torch.zeros(3, 30, 40, dtype=torch.bool)), r"masks of the shape \[3, 30, 40\] for 2 scores"),
        (frames(masks=torch.zeros(2, 30, 40, dtype=torch.uint8)), "masks of torch.uint8; FrameDetections have bool"),
        (frames(masks=torch.full((2, 30, 40), 3.0)), "masks from 3 to 3, and not from 0 to 1"),
        (frames(masks=torch.full((2, 30, 40), float("nan")), is_logits=True), "masks that are not finite numbers"),
        ({"boxes": []}, "a dict for an image, and neither RawDetections nor FrameDetections"),
    ],
)
def test_a_result_that_is_none_fails_its_image_with_the_model_s_name(found: object, phrase: str) -> None:
    with pytest.raises(ImageError, match=f"the model mine returned {phrase}") as caught:
        checked().check(found, SIZE)
    assert caught.value.status == "failed"
    assert "\n" not in caught.value.reason


def test_masks_of_any_scale_are_taken() -> None:
    for size in ((60, 80), (30, 40), (8, 10), (120, 160)):
        assert checked().check(frames(masks=torch.zeros(2, *size)), SIZE).masks.shape[1:] == size
    square = CheckedModel(Regions(pixels=PixelFormat(exact_size=(32, 32))))
    assert len(square.check(frames(masks=torch.zeros(2, 8, 8)), SIZE).scores) == 2


@pytest.mark.parametrize("results", [3, None, "ab", [1]])
def test_another_number_of_results_is_named(results: object) -> None:
    model = checked()
    model.model.infer = lambda batch: results  # type: ignore[method-assign, assignment, return-value]
    batch = ImageBatch(torch.zeros(2, 3, 8, 8), [(8, 8)] * 2, [(8, 8)] * 2)
    with pytest.raises(ImageError, match=r"the model mine returned (a|1 results)"):
        model.infer(batch)


def test_masks_lie_over_boxes_as_the_model_gave_them_and_boxes_are_clipped_after() -> None:
    over = raw(boxes_xyxy=torch.tensor([[-10.0, 0, 10, 10], [0, 0, 100, 60]]), mask_probs=torch.ones(2, 4, 4))
    model = checked()
    found = model.check(over, SIZE)
    assert isinstance(found, RawDetections)
    clipped = model.clip(encode_detections(found), SIZE)
    assert clipped.boxes_xyxy.tolist() == [[0, 0, 80, 60], [0, 0, 10, 10]]


@pytest.mark.parametrize(
    ("facts", "phrase"),
    [
        ({"classes": "person"}, "`classes` are not a list"),
        ({"classes": []}, "`classes` are empty"),
        ({"classes": ["a", "a"]}, "`classes` hold one twice"),
        ({"classes": ["a", 3]}, "`classes` must be texts, and hold 3"),
        ({"category_ids": [1]}, "`category_ids` are 1, and its classes 2"),
        ({"category_ids": [1, 1.5]}, "`category_ids` must be whole numbers"),
        ({"name": "two\nlines"}, "`name` is not a text of one line"),
        ({"pixels": 3}, "`pixels` is a int, and not a PixelFormat"),
        ({"pixels": PixelFormat(long_side=0)}, "`pixels` are wrong: sides must be whole numbers of pixels"),
        ({"pixels": PixelFormat(exact_size=(3, 4), long_side=9)}, "exact_size is .height, width., and excludes"),
        ({"pixels": PixelFormat(std_rgb=(1.0, 0.0, 1.0))}, "no std is 0"),
        ({"pixels": PixelFormat(dtype="int8")}, "dtype must be float32 or uint8, not 'int8'"),  # type: ignore[arg-type]
        ({"pixels": PixelFormat(dtype="uint8", interpolation="bilinear")}, "is of floats"),
        ({"infer": 3}, "`infer` is no method"),
    ],
)
def test_a_wrong_fact_is_named_when_the_model_is_made(facts: dict[str, object], phrase: str) -> None:
    model = Regions(name="mine")
    for name, value in facts.items():
        setattr(model, name, value)
    with pytest.raises(ModelError, match=phrase):
        CheckedModel(model, reference="my_models:load")


def test_facts_and_methods_that_raise_are_one_sentence() -> None:
    class Lazy(Regions):
        @property
        def classes(self) -> list[str]:  # type: ignore[override]
            raise RuntimeError("no checkpoint")

        @classes.setter
        def classes(self, value: object) -> None:
            pass

    with pytest.raises(
        ModelError, match=r"is a Lazy, whose facts cannot be read: one raised RuntimeError: no check.*py, l"
    ):
        CheckedModel(Lazy())

    class Stubborn(Regions):
        def eval(self) -> None:
            sys.exit(0)

        def to(self, device: torch.device) -> None:
            raise torch.OutOfMemoryError("another process has filled it")

    with pytest.raises(
        ModelError, match=r"^The model regions cannot be switched to evaluation: its `eval` raised System"
    ):
        CheckedModel(Stubborn())
    Stubborn.eval = lambda self: None  # type: ignore[method-assign]
    # Another process may fit: the worker is tried again.
    with pytest.raises(torch.OutOfMemoryError):
        CheckedModel(Stubborn()).to(torch.device("cpu"))
