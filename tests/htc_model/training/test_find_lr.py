"""The range test: rates rise until the loss explodes, and the suggestion is below the lowest loss."""

import json

import pytest

from htc_model.training.coco_reader import read_annotations
from htc_model.training.find_lr import judge
from htc_model.training.loop import TrainingStoppedError
from htc_model.training.run import find_rate
from tests.support.builders.training_data import draw_image, small_document, small_spec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss() -> None:
    found = judge([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], [5.0, 4.8, 3.0, 2.5, 9.0], has_diverged=True)
    assert found.suggestion == pytest.approx(1e-3)
    assert found.steepest == 1e-4
    only = judge([1e-5], [3.0], has_diverged=False)
    assert (only.suggestion, only.steepest) == (pytest.approx(1e-6), 1e-5)


@pytest.mark.slow
def test_a_test_writes_its_curve_and_no_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("htc_model.training.find_lr.find_learning_rate.__kwdefaults__", {"steps": 4, "on_step": None})
    seen = []
    found = find_rate(
        small_spec(str(tmp_path), augmentation={}),
        read_annotations(small_document(2)),
        draw_image,
        load_state=lambda name: {},
        on_step=lambda done, steps, losses: seen.append((done, steps)),
    )
    assert seen[-1][1] == 4
    assert found.rates[0] == 1e-6
    assert json.loads((tmp_path / "find_lr.json").read_text())["suggestion"] == found.suggestion
    assert (tmp_path / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["find_lr.json", "find_lr.png"]


def test_a_network_that_never_has_a_finite_loss_is_refused(tmp_path, monkeypatch) -> None:
    def diverge(*_arguments, **_settings):
        raise TrainingStoppedError("The loss is nan.")

    monkeypatch.setattr("htc_model.training.find_lr.take_step", diverge)
    with pytest.raises(TrainingStoppedError):
        find_rate(
            small_spec(str(tmp_path)), read_annotations(small_document(2)), draw_image, load_state=lambda name: {}
        )
