"""`htc model check` of what is no model of one's own."""

import pytest

from tests.support.htc import run_htc


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("demo", "demo is a word for weights of a preset, not a model; `htc plan --weights demo`"),
        ("htc_r50_fpn", "htc_r50_fpn is a preset"),
    ],
)
def test_a_preset_and_its_weights_are_no_model_of_ones_own(
    capsys: pytest.CaptureFixture[str], model: str, words: str
) -> None:
    code, out, err = run_htc(capsys, "model", "check", model)
    assert (code, out) == (2, "")
    assert words in err
