"""`htc reproduce table1`: rows are fetched, run, scored, continued; failures are named."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.reproduce import ReproduceRequest, report_table1
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec
from pipeline.runs.summary import RunSummary
from tests.support.htc import run_htc

pytestmark = pytest.mark.usefixtures("published")


def request_of(coco: Path, **values: Any) -> ReproduceRequest:
    asked: dict[str, Any] = {"presets": ["htc_r50_fpn"], **values}
    return ReproduceRequest(coco=str(coco), work=str(coco.parent / "work"), **asked)


def test_a_row_is_fetched_run_and_set_beside_the_published_figures(
    coco: Path, fake_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_table1(request_of(coco), run=fake_run) == 0
    (spec,) = fake_run.specs
    assert spec.model.score_threshold == 0.001
    assert (spec.model.max_detections, spec.model.precision) == (100, "fp32")
    shown = capsys.readouterr().out
    box, mask = (next(line for line in shown.splitlines() if f" {kind} " in line).split() for kind in ("box", "mask"))
    assert box[:5] == ["htc_r50_fpn_1x", "box", "100.0", "42.3", "+57.7*"]
    assert mask[:4] == ["mask", "100.0", "37.4", "+62.6*"]
    assert "5.8" in box
    assert "not comparable: the annotations list 4 images" in shown
    assert (coco.parent / "work" / "htc_r50_fpn_1x" / "images").is_dir()


def test_a_row_that_is_done_is_not_run_again(coco: Path, fake_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_table1(request_of(coco), run=fake_run) == 0
    before = capsys.readouterr().out

    def refuse(spec: JobSpec) -> RunSummary:
        raise AssertionError(spec.output.uri)

    assert report_table1(request_of(coco), run=refuse) == 0
    assert capsys.readouterr().out == before


def test_a_row_that_fails_is_named_and_the_others_go_on(
    coco: Path, fake_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"presets": ["mask_rcnn_r50_fpn,htc_r50_fpn"]}
    assert report_table1(request_of(coco, **both), run=fake_run) == 1
    captured = capsys.readouterr()
    assert "mask_rcnn_r50_fpn_1x failed, the other rows go on" in captured.err
    assert "- mask_rcnn_r50_fpn_1x: " in captured.out
    assert "htc weights verify" in captured.out
    assert len(fake_run.specs) == 1
    own = tmp_path / "own.pth"
    own.write_bytes(b"others")
    repaired = request_of(coco, **both, weights=[f"mask_rcnn_r50_fpn={own}"])
    assert report_table1(repaired, run=fake_run) == 0
    assert [spec.model.preset for spec in fake_run.specs] == ["htc_r50_fpn", "mask_rcnn_r50_fpn"]
    assert fake_run.specs[1].model.score_threshold == 0.05
    assert f"the weights are {own}, not the published file" in capsys.readouterr().out


def test_a_stopped_row_is_continued(coco: Path, fake_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(spec: JobSpec) -> RunSummary:
        summary: RunSummary = fake_run(spec)
        return replace(summary, status="interrupted", exit_code=1, reason="Stopped with some to go.")

    both = request_of(coco, weights=["htc_lite0_fpn=untrained"])
    assert report_table1(both, run=stopped) == 1
    captured = capsys.readouterr()
    assert "Run the same command again" in captured.err
    assert "htc_lite0_fpn: not done yet" in captured.out
    assert len(fake_run.specs) == 1
    assert report_table1(replace(both, output_format="json"), run=fake_run) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["state"] for row in rows] == ["done", "done"]
    # The first session did the images.
    assert rows[0]["speed"]["images"] == 4


def test_a_run_over_its_error_budget_is_a_failure(
    coco: Path, fake_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for photo in (coco / "val2017").iterdir():
        photo.write_bytes(b"no image")
    assert report_table1(request_of(coco), run=fake_run) == 1
    assert "- htc_r50_fpn_1x: " in capsys.readouterr().out


def test_a_trial_says_so_beside_the_numbers_and_keeps_its_folder(
    coco: Path, fake_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = request_of(coco, limit=2, output_format="json")
    assert report_table1(trial, run=fake_run) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["images"], row["annotated"], row["is_comparable"]) == (2, 4, False)
    assert row["caveats"][0] == "--limit 2: 2 of 4 annotated images"
    assert row["metrics"]["mask"]["AP"] == pytest.approx(100)
    assert row["difference"]["box"] == pytest.approx(57.7)
    assert row["published"]["images_per_s"] == 5.8
    with pytest.raises(SpecError, match="made with --limit 2, and not with no --limit"):
        report_table1(replace(trial, limit=None), run=fake_run)


def test_other_weights_in_the_same_folder_are_refused(
    coco: Path, fake_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_table1(request_of(coco), run=fake_run) == 0
    own = tmp_path / "own.pth"
    own.write_bytes(b"others")
    assert report_table1(request_of(coco, weights=[f"htc_r50_fpn={own}"]), run=fake_run) == 1
    assert "made with other weights" in capsys.readouterr().err
    assert len(fake_run.specs) == 1


def test_csv_has_a_line_for_each_row_and_kind(coco: Path, fake_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_table1(request_of(coco, output_format="csv"), run=fake_run) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["row"], line["kind"]) for line in lines] == [("htc_r50_fpn_1x", "box"), ("htc_r50_fpn_1x", "mask")]
    assert float(lines[1]["AP"]) == pytest.approx(100)
    assert (lines[1]["published_AP"], lines[1]["is_comparable"]) == ("37.4", "false")
    assert lines[1]["APs"] == ""


def test_bad_input_is_one_sentence(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_htc(capsys, "reproduce", "table1", "--coco", str(coco / "none"), "--presets", "htc_r50_fpn")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "val2017.zip" in err
    assert run_htc(capsys, "reproduce", "table1")[0] == 2
