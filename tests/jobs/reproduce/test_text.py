"""The table as text: figures of rows that can be compared, and HTC's gain."""

from dataclasses import replace

import pytest

from jobs.reproduce.row_result import METRICS, RowResult, Speed
from jobs.reproduce.table_rows import choose_rows
from jobs.reproduce.text import write_text


def result(name: str, mask_ap: float, *, limit: int | None = None) -> RowResult:
    figures: dict[str, float | None] = dict.fromkeys(METRICS, mask_ap)
    return RowResult(
        name=name,
        preset=name,
        weights="file.pth",
        weights_sha256="0" * 64,
        run="run-1",
        speed=Speed(5000, 100.0, 50.0, 25.04, "a GPU", "cuda", "fp32"),
        limit=limit,
        metrics={"box": figures, "mask": figures},
        images=5000,
        annotated=5000,
        classes=80,
        is_published=True,
    )


def test_a_full_table_has_no_marks_and_shows_the_gain(capsys: pytest.CaptureFixture[str]) -> None:
    rows = choose_rows(["cascade_mask_rcnn_r50_fpn", "htc_r50_fpn_1x"], [])
    results = {row.name: result(row.name, 36.0 + number) for number, row in enumerate(rows)}
    write_text(rows, results, {})
    shown = capsys.readouterr().out
    assert "*" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["htc_r50_fpn_1x", "box", "37.0", "42.3", "-5.3", *["37.0"] * 5, "50.0", "25.0", "5.8", "5,000"] in lines
    assert ["ResNet-50", *(row.name for row in rows), "+1.0", "+1.5", "+1.5"] in lines
    assert "Measured on a GPU, fp32." in shown


def test_the_gain_of_a_trial_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    rows = choose_rows(["cascade_mask_rcnn_r50_fpn", "htc_r50_fpn_1x"], [])
    write_text(rows, {row.name: result(row.name, 36.0, limit=50) for row in rows}, {})
    assert "+0.0*" in capsys.readouterr().out


def test_a_row_without_a_result_or_masks(capsys: pytest.CaptureFixture[str]) -> None:
    rows = choose_rows(["cascade_rcnn_r50_fpn", "htc_r101_fpn"], [])
    boxes = replace(result(rows[0].name, 40.0), metrics={"box": {"AP": 40.0}})
    write_text(rows, {rows[0].name: boxes}, {})
    shown = capsys.readouterr().out
    assert shown.count(" mask ") == 1
    assert "- htc_r101_fpn_20e: not done yet." in shown
    assert "paper (test-dev)" not in shown
