"""The conformance test finds what a run would stumble over, and passes a model that keeps to the protocol."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from htc_model.structures import FrameDetections, ImageBatch, RawDetections
from pipeline.models import check_model
from tests.support.fakes.own_models import Regions
from tests.support.htc import run_htc

MODULE = "tests.support.fakes.own_models"


def outcomes(model: object) -> dict[str, str]:
    return {each.name: each.outcome for each in check_model(model, device="cpu").checks}


def test_a_model_that_keeps_to_the_protocol_passes() -> None:
    report = check_model(Regions(), device="cpu")
    assert report.failures == []
    assert report.images_per_s is not None
    assert {each.outcome for each in report.checks if each.name != "a fresh process"} == {"pass"}


class Random(Regions):
    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        batch.pixels.uniform_()
        return super().infer(batch)


class Mixing(Regions):
    """Looks at the whole batch."""

    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        batch.pixels.sub_(batch.pixels.flip(0).roll(1, 3) * (len(batch) > 1))
        return super().infer(batch)


class Picky(Regions):
    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        if min(batch.original_sizes[0]) == 1:
            raise ValueError("an image needs two sides")
        return super().infer(batch)


class Swallowing(Regions):
    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        try:
            return super().infer(batch)
        except torch.OutOfMemoryError:
            return [self._frames(torch.zeros(size), size) for size in batch.original_sizes]


class Exiting(Regions):
    """Calls sys.exit(0) for what `check_results` does not try."""

    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        if len(batch) > 1 or min(batch.original_sizes[0]) == 1:
            sys.exit(0)
        return super().infer(batch)


class Tiring(Regions):
    """Raises from one batch on."""

    last = sys.maxsize

    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        if len(self.batch_sizes) >= self.last:
            raise RuntimeError("the licence has expired")
        return super().infer(batch)


class Unmovable(Regions):
    def to(self, device: torch.device) -> None:
        sys.exit(0)


class Empty(Regions):
    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        nothing = torch.zeros(0)
        return [FrameDetections(None, nothing, nothing.long(), nothing, False, size) for size in batch.original_sizes]


@pytest.mark.parametrize(
    ("model", "failed"),
    [
        (Random(), {"the same twice", "the same in a batch", "out of memory"}),
        (Mixing(), {"the same in a batch"}),
        (Picky(), {"all sizes"}),
        (Swallowing(), {"out of memory"}),
        (Regions(classes=["bright"]), {"results"}),
        (Exiting(), {"the same in a batch", "all sizes"}),
        (Unmovable(), {"loads"}),
        (Empty(), set()),
    ],
)
def test_what_a_run_would_stumble_over_fails(model: Regions, failed: set[str]) -> None:
    found = outcomes(model)
    assert {name for name, outcome in found.items() if outcome == "fail"} == failed


def test_a_model_that_fails_when_it_is_timed_fails() -> None:
    model = Tiring()
    assert check_model(model, device="cpu").failures == []
    tiring = Tiring()
    tiring.last = len(model.batch_sizes) - 1
    report = check_model(tiring, device="cpu")
    assert report.failures == ["once more: it raised RuntimeError: the licence has expired"]
    assert report.images_per_s is None


def test_a_model_that_exits_in_a_fresh_process_only_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "at_home.py").write_text(
        "import sys\n"
        "from tests.support.fakes.own_models import Regions\n"
        "class AtHome(Regions):\n"
        "    def infer(self, batch):\n"
        "        if 'pipeline.models.fresh_process' in getattr(sys, 'orig_argv', []): sys.exit(0)\n"
        "        return super().infer(batch)\n"
        "def load(): return AtHome()\n"
    )
    monkeypatch.chdir(tmp_path)
    report = check_model("at_home:load", device="cpu")
    (failure,) = report.failures
    assert failure.startswith("a fresh process: it fails in a fresh process, as workers are: it raised SystemExit: 0")


def test_what_has_nothing_to_compare_is_skipped() -> None:
    found = outcomes(Empty())
    assert {name for name, outcome in found.items() if outcome == "skipped"} >= {"the same twice", "masks and boxes"}


def test_the_command_writes_a_line_for_each_check_and_fails_with_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)).save(tmp_path / "a.png")
    model = f"{MODULE}:load"
    code, out, err = run_htc(capsys, "model", "check", model, "--photo", str(tmp_path / "a.png"), "--json")
    report = json.loads(out)
    assert (code, report["failures"], err) == (0, [], "")
    assert {each["name"]: each["outcome"] for each in report["checks"]}["a fresh process"] == "pass"
    code, out, err = run_htc(capsys, "model", "check", model, "--model-option", "has_frame=false")
    assert code == 1
    assert "did you mean has_frames?" in out
    assert err == ""
    code, _, err = run_htc(capsys, "model", "check", "htc_r50_fpn")
    assert code == 2
    assert "is a preset" in err
    code, _, err = run_htc(capsys, "model", "check", model, "--photo", str(tmp_path / "none.png"))
    assert code == 2
    assert "cannot be read" in err
    code, _, err = run_htc(capsys, "model", "check", model, "--model-option", "has_frames")
    assert code == 2
    assert "--model-option takes KEY=VALUE" in err
