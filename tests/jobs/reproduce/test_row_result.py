"""A row's result: when it can be compared, and its speed."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.reproduce.row_result import (
    RowResult,
    Speed,
    load_result,
    result_uri,
    speed_of,
    to_percent,
    write_result,
)
from jobs.reproduce.table_rows import choose_rows
from pipeline.errors import DamagedFileError
from pipeline.runs.summary import RunSummary
from pipeline.storage.storage import Storage

FULL = RowResult(
    name="htc_r50_fpn_20e",
    preset="htc_r50_fpn",
    weights="htc.pth",
    weights_sha256="0" * 64,
    run="run-1",
    speed=Speed(5000, 100.0, 50.0, None, "a GPU", "cuda", "fp32"),
    limit=None,
    metrics={"box": {"AP": 43.5}, "mask": {"AP": 38.0, "APs": None}},
    images=5000,
    annotated=5000,
    classes=80,
    is_published=True,
)


def test_all_of_val2017_with_the_published_file_is_comparable() -> None:
    (row,) = choose_rows(["htc_r50_fpn"], [])
    assert FULL.caveats() == []
    assert FULL.difference(row, "box") == pytest.approx(0.2)
    assert FULL.difference(row, "mask") == pytest.approx(-0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limit": 10, "images": 10}, "--limit 10: 10 of 5,000"),
        ({"images": 4990}, "4,990 of 5,000"),
        ({"images": 8, "annotated": 8}, "list 8 images"),
        ({"failed": 2}, "2 images failed"),
        ({"classes": 1}, "1 class of COCO's 80"),
        ({"is_published": False}, "not the published file"),
    ],
)
def test_what_else_is_not(change: dict[str, Any], words: str) -> None:
    (caveat,) = replace(FULL, **change).caveats()
    assert words in caveat


def test_a_result_is_read_back_and_a_damaged_one_named(tmp_path: Any) -> None:
    storage, work = Storage(), str(tmp_path)
    assert load_result(storage, work, FULL.name) is None
    write_result(storage, work, FULL)
    assert load_result(storage, work, FULL.name) == FULL
    storage.write(result_uri(work, FULL.name), b'{"name": "x"}')
    with pytest.raises(DamagedFileError, match=r"htc_r50_fpn_20e\.json is damaged"):
        load_result(storage, work, FULL.name)


def test_the_speed_is_of_the_session_that_did_most() -> None:
    summary = RunSummary(
        *("run-1", "complete", 0, "", 100, 100, {"ok": 100}, 0.0, 0.05, 3, 80, 20.0, 4.0), worker_use={"busy_s": 10.0}
    )
    first = speed_of(summary, None)
    assert first is not None
    assert (first.images_per_s, first.images_per_worker_s) == (4.0, 8.0)
    assert speed_of(replace(summary, session_images=20), first) == first
    assert speed_of(replace(summary, session_images=0), None) is None


def test_what_there_is_not_is_not_minus_one() -> None:
    assert to_percent({"box": {"AP": 0.5, "APs": -1.0}}) == {"box": {"AP": 50.0, "APs": None}}
