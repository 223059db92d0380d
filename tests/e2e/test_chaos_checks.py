"""The checks of the chaos suite detect everything that a fault could do to the tables or the folder."""

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checks import Tables, compare, leftovers
from tests.chaos.scene import Scene

PARTS = ("images/run=r/part-00000.parquet", "instances/run=r/part-00000.parquet")
SOUND = (*PARTS, "runs/r/run.json", "runs/r/summary.json", "runs/r/manifest/part-00000.parquet")


def tables(**changes: Any) -> Tables:
    row = {"uri": "a.png", "status": "ok", "error": None, "instances": 1, "width": 48}
    return Tables({"a.png": row | changes, "b.png": row | {"uri": "b.png"}}, {"a.png": [{"mask": "x"}], "b.png": []})


def scene_with(folder: Path, *names: str) -> Scene:
    for name in names:
        path = folder / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Scene(folder, str(folder / "in"), str(folder / "out"))


def test_equal_tables_are_equal() -> None:
    assert compare(tables(), tables(), {}) == []


def test_a_changed_row_is_reported_with_its_reason() -> None:
    complaints = compare(tables(status="failed", error="why"), tables(), {})
    assert complaints == ["a.png: status 'failed' for 'ok', error 'why' for None (why)"]


def test_a_changed_mask_is_reported() -> None:
    other = Tables(tables().images, {"a.png": [{"mask": "y"}], "b.png": []})
    assert compare(other, tables(), {}) == ["a.png has other instances"]


def test_missing_and_surplus_rows_are_reported() -> None:
    whole, less = tables(), Tables({"a.png": tables().images["a.png"]}, tables().instances)
    assert compare(less, whole, {}) == ["no row for b.png"]
    assert compare(whole, less, {}) == ["a row too many, b.png"]


def test_what_a_fault_must_change_must_have_changed() -> None:
    changed = {"a.png": {"status": "missing"}}
    assert compare(tables(status="missing", width=None), tables(), changed) == []
    assert compare(tables(), tables(), changed) == ["a.png: status 'ok' for 'missing'"]


def test_a_valid_folder_has_no_complaints(tmp_path: Path) -> None:
    assert leftovers(scene_with(tmp_path, *SOUND), "") == []


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ((*SOUND, "images/run=r/.part-00001.parquet.17-ab.htc-tmp"), ".htc-tmp was left behind"),
        ((*SOUND, "instances/run=r/part-00001.parquet"), "half a shard, /run=r/part-00001.parquet"),
        ((*SOUND, "runs/r2/manifest/part-00000.parquet"), "2 runs instead of one"),
        ((*SOUND, "runs/r/lease.json"), "runs/r/lease.json was left behind"),
        (SOUND[:3] + SOUND[4:], "no summary.json"),
    ],
)
def test_what_is_left_behind_is_reported(tmp_path: Path, names: tuple[str, ...], complaint: str) -> None:
    (reported,) = leftovers(scene_with(tmp_path, *names), "")
    assert complaint in reported
