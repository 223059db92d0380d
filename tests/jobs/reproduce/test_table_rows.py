"""Which rows a command asks for."""

from pathlib import Path

import pytest

from htc_model.weights.model_zoo import PUBLISHED
from jobs.reproduce.table_rows import TABLE1, choose_rows
from pipeline.errors import SpecError


def test_by_default_the_rows_of_the_papers_table() -> None:
    rows = choose_rows([], [])
    assert [row.name for row in rows] == list(TABLE1)
    assert [row.name for row in rows if not row.has_weights] == ["panet_r50_fpn"]
    assert all(row.published is None or row.published.mask_ap is not None for row in rows)


def test_presets_mean_their_best_published_weights() -> None:
    rows = choose_rows(["htc_r50_fpn, htc_r50_fpn_1x", "htc_r50_fpn_20e"], [])
    assert [row.name for row in rows] == ["htc_r50_fpn_20e", "htc_r50_fpn_1x"]
    assert {row.preset for row in rows} == {"htc_r50_fpn"}
    assert len(choose_rows(["all"], [])) == len(PUBLISHED)


def test_own_weights_replace_the_published_ones_or_add_a_row(tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.touch()
    rows = choose_rows(["htc_r50_fpn"], [f"htc_r50_fpn={own}", "htc_lite0_fpn=demo", "panet_r50_fpn=untrained"])
    assert [(row.name, row.weights) for row in rows] == [
        ("htc_r50_fpn_20e", str(own)),
        ("htc_lite0_fpn", "demo"),
        ("panet_r50_fpn", "untrained"),
    ]


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (["htc_r5_fpn"], [], "did you mean 'htc_r50_fpn'"),
        ([" , "], [], "names nothing"),
        (["panet_r50_fpn"], [], "--weights panet_r50_fpn=FILE"),
        ([], ["demo"], "PRESET=FILE"),
        ([], ["htc_r50_fpn="], "PRESET=FILE"),
        ([], ["htc_r50_fpn=coco"], "leave it out"),
        ([], ["htc_r50_fpn=/no/such.pth"], r"no weights file /no/such\.pth"),
        ([], ["nothing=demo"], "no preset"),
    ],
)
def test_what_cannot_be_is_refused(names: list[str], given: list[str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        choose_rows(names, given)
