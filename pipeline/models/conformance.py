"""The conformance test of models of one's own: `htc model check`, and `check_model` for one's own tests.

    from htc_batch import check_model

    def test_my_model():
        assert check_model("my_models:load").failures == []

Each check tries what the pipeline does with a model; the first ones decide whether the others can be tried.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

from htc_model.masks.encode import encode_detections
from htc_model.masks.frames import encode_frames
from htc_model.structures import Detections, FrameDetections, Rle
from pipeline.errors import HtcError, ImageError
from pipeline.job_spec.model import ModelSection
from pipeline.models.checked import CheckedModel
from pipeline.models.factory import make_model, search_path
from pipeline.models.foreign_code import is_ctrl_c, raised
from pipeline.models.made_images import made_images
from pipeline.text import count_of, one_line

Image = NDArray[np.uint8]
Outcome = Literal["pass", "fail", "skipped"]

# (height, width): of the images that are compared, then of those that a collection has now and then.
_SIZE = (360, 480)
_ODD_SIZES = ((1, 1), (1, 400), (333, 517), (517, 333))
# A large image is a small one, this many times beside and below itself.
_TILES = 5
_BATCH = 3
_TIMED_IMAGES = 4
# As for the fast model of a GPU (`pipeline.worker.fast_path`), of the better half of the detections: batches are summed
# up in another order, which moves the last bits, and with them what is near the thresholds.
_LEAST_MATCHED = 0.95
_IOU_MATCHED = 0.95
_MOST_SCORE_CHANGE = 0.01
_FRESH_TIMEOUT_S = 600


@dataclass(frozen=True)
class Check:
    """One check: its name, what came out, and a phrase with the numbers, or the reason."""

    name: str
    outcome: Outcome
    note: str


@dataclass(frozen=True)
class ConformanceReport:
    """What came out of all checks.

    model: its name, or how it was named where it could not be made. images_per_s: None where it was not timed.
    """

    model: str
    checks: list[Check] = field(default_factory=list)
    images_per_s: float | None = None
    device: str = ""

    @property
    def failures(self) -> list[str]:
        """The checks that failed, "name: reason"; empty for a model that may be used."""
        return [f"{each.name}: {each.note}" for each in self.checks if each.outcome == "fail"]

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "failures": self.failures}


def check_model(
    model: object,
    *,
    weights: str = "default",
    options: Mapping[str, Any] | None = None,
    image: Image | None = None,
    device: str | None = None,
) -> ConformanceReport:
    """Try everything that the pipeline does with a model; writes nothing, and takes some seconds of inferences.

    Args:
        model: how a spec names it ("package.module:function", "torchvision:NAME", a registered name), or the object.
        weights, options: of a named model, as in a spec.
        image: [H, W, 3] uint8 RGB, in which the model finds something; by default images that are computed.
        device: "cpu" or "cuda"; by default a GPU where there is one.

    Raises:
        SpecError: what names the model, weights or options is no valid spec.
    """
    section = None
    if isinstance(model, str):
        section = _section(model, weights, options or {})
    trial = _Trial(image, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    name = model if isinstance(model, str) else str(getattr(model, "name", type(model).__name__))
    made = trial.load(lambda: CheckedModel(model) if section is None else make_model(section, folders=search_path()))
    if made is None:
        return ConformanceReport(name, trial.checks, device=str(trial.device))
    if trial.run("results", partial(trial.check_results, made)):
        trial.run("the same twice", partial(trial.check_twice, made))
        trial.run("the same in a batch", partial(trial.check_batch, made))
        trial.run("all sizes", partial(trial.check_sizes, made))
        trial.run("nothing to see", partial(trial.check_empty, made))
        trial.run("masks and boxes", partial(trial.check_masks, made))
        trial.run("out of memory", partial(trial.check_memory, made))
        if section is None:
            trial.skip("a fresh process", "the model is an object; name its factory to try that")
        else:
            trial.run("a fresh process", partial(trial.check_fresh, made, section))
    report = ConformanceReport(made.name, trial.checks, None, str(trial.device))
    return report if report.failures else replace(report, images_per_s=trial.time(made))


def _section(model: str, weights: str, options: Mapping[str, Any]) -> ModelSection:
    from pipeline.job_spec.job import load_spec

    # Input and output are of no spec that runs; the sentences about a wrong model are those of `htc run`.
    values = {"input.uri": "input", "output.uri": "output", "model.factory": model, "model.weights": weights}
    return load_spec(None, {**values, "model.options": dict(options)}).model


class _Failed(Exception):  # noqa: N818 - an outcome of a check, not an error
    """A check that failed; the message is its note."""


class _Skipped(Exception):  # noqa: N818
    """A check that has nothing to try; the message is its note."""


class _Trial:
    """The checks of one model, one after the other."""

    def __init__(self, image: Image | None, device: torch.device) -> None:
        self.checks: list[Check] = []
        self.device = device
        made = made_images(_SIZE if image is None else image.shape[:2], _BATCH)
        self.images = made if image is None else [image, *made[1:]]
        self.found: list[Detections] = []

    def load(self, make: Callable[[], CheckedModel]) -> CheckedModel | None:
        """Make the model; None where that fails."""
        try:
            start = time.perf_counter()
            model = make()
            model.to(self.device)
        except HtcError as error:
            self.checks.append(Check("loads", "fail", str(error)))
            return None
        self.checks.append(Check("loads", "pass", f"in {time.perf_counter() - start:.1f} s"))
        self.checks.append(Check("facts", "pass", _facts(model)))
        return model

    def run(self, name: str, check: Callable[[], str]) -> bool:
        """Run a check, whose every exception is a failure of the model; return whether it passed."""
        outcome: Outcome = "pass"
        try:
            with torch.inference_mode():
                note = check()
        except _Skipped as reason:
            outcome, note = "skipped", str(reason)
        except (_Failed, ImageError) as error:
            outcome, note = "fail", error.reason if isinstance(error, ImageError) else str(error)
        except BaseException as error:  # the boundary of another's model, which may call sys.exit
            if is_ctrl_c(error):
                raise
            outcome, note = "fail", f"it raised {raised(error)}"
        self.checks.append(Check(name, outcome, note))
        return outcome == "pass"

    def skip(self, name: str, reason: str) -> None:
        """Record a check that was not tried."""
        self.checks.append(Check(name, "skipped", reason))

    def find(self, model: CheckedModel, images: Sequence[Image]) -> list[Detections]:
        """Take images of one size through the model."""
        return find_alone(model, images, self.device)

    def check_results(self, model: CheckedModel) -> str:
        self.found = self.find(model, self.images[:1])
        masks = "without masks" if self.found[0].masks is None else "with masks"
        return f"{count_of(len(self.found[0]), 'instance')} {masks} in one image"

    def check_twice(self, model: CheckedModel) -> str:
        again = self.find(model, self.images[:1])
        return _compare(again[0], self.found[0], "the second time")

    def check_batch(self, model: CheckedModel) -> str:
        together = self.find(model, self.images)
        alone = [self.found[0], *(self.find(model, [each])[0] for each in self.images[1:])]
        notes = [_compare(one, other, "in a batch") for one, other in zip(together, alone, strict=True)]
        return f"{count_of(len(notes), 'image')}: {notes[0]}"

    def check_sizes(self, model: CheckedModel) -> str:
        images = [made_images(size, 1)[0] for size in _ODD_SIZES]
        images.append(np.tile(made_images(_SIZE, 1)[0], (_TILES, _TILES, 1)))
        names = [f"{image.shape[1]} x {image.shape[0]}" for image in images]
        for name, image in zip(names, images, strict=True):
            try:
                self.find(model, [image])
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                reason = error.reason if isinstance(error, ImageError) else f"it raised {raised(error)}"
                raise _Failed(f"an image of {name}: {reason}") from error
        return ", ".join(names)

    def check_empty(self, model: CheckedModel) -> str:
        grey = np.full((*_SIZE, 3), 127, np.uint8)
        count = len(self.find(model, [grey])[0])
        return "no instance in a grey image" if not count else f"{count_of(count, 'instance')} in a grey image"

    def check_masks(self, model: CheckedModel) -> str:
        found = self.found[0]
        height, width = self.images[0].shape[:2]
        limits = torch.tensor([width, height, width, height])
        if bool(((found.boxes_xyxy < 0) | (found.boxes_xyxy > limits)).any()):
            raise _Failed("a box lies beyond its image")
        if found.masks is None:
            raise _Skipped("the model has no masks; its boxes lie within the image")
        if not len(found):
            raise _Skipped("nothing was found; give a photo with --photo")
        from pycocotools import mask as coco_mask

        empty = 0
        for mask in found.masks:
            pixels = coco_mask.decode(mask)
            if pixels.shape != (height, width):
                raise _Failed(f"a mask of {pixels.shape[1]} x {pixels.shape[0]} for an image of {width} x {height}")
            empty += not pixels.any()
        if empty == len(found):
            raise _Failed("every mask is empty")
        return f"within the image of {width} x {height}; {empty} of {len(found)} masks are empty"

    def check_memory(self, model: CheckedModel) -> str:
        batch = model.pixels.build(self.images[:1], self.device)
        with _MemoryLimit() as counted:
            model.infer(batch)
        if not counted.operations:
            raise _Skipped("it computes without torch, so that torch's memory cannot run out in it")
        try:
            with _MemoryLimit(counted.operations // 2 + 1):
                model.infer(batch)
        except torch.OutOfMemoryError:
            pass
        except Exception as error:
            raise _Failed(f"torch.OutOfMemoryError in it came out as {one_line(error)}; let it pass") from error
        else:
            raise _Failed("torch.OutOfMemoryError in it did not come out; let it pass, and a smaller batch follows")
        same = _compare(self.find(model, self.images[:1])[0], self.found[0], "after memory ran out")
        return f"torch.OutOfMemoryError comes out, and the next result is {same}"

    def check_fresh(self, model: CheckedModel, section: ModelSection) -> str:
        del model
        asked = {
            "section": section.model_dump(mode="json"),
            "folders": search_path(),
            "device": str(self.device),
            "shape": self.images[0].shape,
            "pixels": self.images[0].tobytes().hex(),
        }
        root = os.fspath(__file__).rsplit(os.sep, 3)[0]
        paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
        process = subprocess.run(
            [sys.executable, "-m", "pipeline.models.fresh_process"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            timeout=_FRESH_TIMEOUT_S,
            check=False,
        )
        if process.returncode:
            last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise _Failed(f"it fails in a fresh process, as workers are: {last}")
        try:
            values = json.loads(process.stdout.splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise _Failed("it ends a fresh process, as workers are, before there is a result") from error
        masks: list[Rle] | None = None
        if values["masks"] is not None:
            masks = [{"size": each["size"], "counts": each["counts"].encode()} for each in values["masks"]]
        found = Detections(
            torch.tensor(values["boxes"]).reshape(-1, 4),
            torch.tensor(values["scores"]),
            torch.tensor(values["labels"], dtype=torch.int64),
            masks,
        )
        return _compare(found, self.found[0], "in a fresh process")

    def time(self, model: CheckedModel) -> float | None:
        """Return images per second, one after the other; None, and one more check that failed, where one fails now."""
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                for number in range(_TIMED_IMAGES):
                    self.find(model, [self.images[number % len(self.images)]])
        except BaseException as error:  # the boundary of another's model, which may call sys.exit
            if is_ctrl_c(error):
                raise
            note = error.reason if isinstance(error, ImageError) else f"it raised {raised(error)}"
            self.checks.append(Check("once more", "fail", note))
            return None
        return _TIMED_IMAGES / (time.perf_counter() - start)


@torch.inference_mode()
def find_alone(model: CheckedModel, images: Sequence[Image], device: torch.device) -> list[Detections]:
    """Take images of one size through a model, as a worker does.

    Raises:
        ImageError: a result is none.
    """
    batch = model.pixels.build(images, device)
    found = [model.check(each, size) for each, size in zip(model.infer(batch), batch.original_sizes, strict=True)]
    return [
        model.clip(encode_frames(each) if isinstance(each, FrameDetections) else encode_detections(each), size)
        for each, size in zip(found, batch.original_sizes, strict=True)
    ]


class _MemoryLimit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations in the block; raises torch.OutOfMemoryError at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._fails_at = fails_at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.operations += 1
        if self.operations == self._fails_at:
            raise torch.OutOfMemoryError("the memory is full (a trial of htc model check)")
        return func(*args, **(kwargs or {}))


def _facts(model: CheckedModel) -> str:
    pixels = model.format
    if pixels.exact_size is not None:
        size = f"resized to {pixels.exact_size[1]} x {pixels.exact_size[0]}"
    elif pixels.long_side is None and pixels.short_side is None:
        size = "images as they are"
    else:
        sides = (("long", pixels.long_side), ("short", pixels.short_side))
        bounds = " and ".join(f"a {name} side of {side}" for name, side in sides if side)
        size = f"resized to {bounds} at most"
    shown = ", ".join(model.classes[:3]) + (", ..." if len(model.classes) > 3 else "")
    return f"{model.name}; {count_of(len(model.classes), 'class', 'classes')} ({shown}); {size}"


def _compare(found: Detections, wanted: Detections, when: str) -> str:
    """Return how alike two results of an image are; they must be, in the better half."""
    if (found.masks is None) != (wanted.masks is None):
        raise _Failed(f"masks are missing {when}")
    if not len(found) and not len(wanted):
        raise _Skipped("nothing was found, so that nothing can be compared; give a photo with --photo")
    if _is_equal(found, wanted):
        return "bit for bit"
    for one, other, which in ((wanted, found, "are missing"), (found, wanted, "are new")):
        upper = (len(one) + 1) // 2
        share = _matched(one, other, upper)
        if share < _LEAST_MATCHED:
            raise _Failed(f"{1 - share:.0%} of the better half of the instances {which} {when}")
    return "the same, but for the last bits"


def _is_equal(one: Detections, other: Detections) -> bool:
    pairs = ((one.boxes_xyxy, other.boxes_xyxy), (one.scores, other.scores), (one.labels, other.labels))
    return all(torch.equal(*pair) for pair in pairs) and one.masks == other.masks


def _matched(one: Detections, other: Detections, upper: int) -> float:
    """Compute the share of the first `upper` instances that `other` has too: label, box, score and mask."""
    if not upper:
        return 1.0
    if not len(other):
        return 0.0
    iou = box_iou(one.boxes_xyxy[:upper], other.boxes_xyxy)
    # Boxes without an area overlap with nothing, not even with themselves.
    is_near = (one.boxes_xyxy[:upper, None] - other.boxes_xyxy[None]).abs().amax(dim=2) < 1
    is_same = ((iou > _IOU_MATCHED) | is_near) & (one.labels[:upper, None] == other.labels)
    is_same &= (one.scores[:upper, None] - other.scores).abs() < _MOST_SCORE_CHANGE
    if one.masks is not None and other.masks is not None:
        from pycocotools import mask as coco_mask

        overlap = coco_mask.iou(one.masks[:upper], other.masks, [0] * len(other))
        areas = coco_mask.area(one.masks[:upper])
        is_same &= torch.from_numpy((np.asarray(overlap) > _IOU_MATCHED) | (np.asarray(areas) < 16)[:, None])
    return float(is_same.any(dim=1).float().mean())
