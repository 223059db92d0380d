"""The report at the end of `htc run`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.running.run import report_summary, run_and_report
from pipeline.driver import run_job
from pipeline.job_spec.job import load_spec
from pipeline.messages import ImageFailure
from pipeline.runs.bottleneck import find_bottleneck
from pipeline.runs.summary import RunSummary

SUMMARY = RunSummary(
    run="night",
    status="complete",
    exit_code=0,
    reason="",
    images=1204,
    images_done=1204,
    statuses={"ok": 1202, "unreadable": 2},
    error_rate=2 / 1204,
    max_error_rate=0.05,
    instances=9000,
    session_images=1204,
    seconds=602.0,
    images_per_s=2.0,
    stage_shares={"infer": 0.9, "read": 0.1, "write": 0.0},
    worker_time_s=(TIMES := {"infer": 360.0, "read": 240.0, "write": 0.0}),
    bottleneck=find_bottleneck(TIMES),
    failure_reasons={"the file is empty": 1, "cut off after [12] bytes": 1},
    failure_examples=(ImageFailure("/in/[red]a.jpg", "unreadable", "the file is empty"),),
    device="cpu",
)


def said(summary: RunSummary, capsys: pytest.CaptureFixture[str], output: str = "/masks") -> tuple[str, str]:
    spec = load_spec(None, {"input.uri": "/in", "output.uri": output, "model.weights": "untrained"})
    report_summary(summary, spec)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_complete_run(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(SUMMARY, capsys)
    assert "night (complete)" in out
    assert "1,204 images: 1,202 ok, 2 unreadable" in out
    assert "9,000" in out
    assert "2.00 images/s" in out
    assert "model busy 60%, waiting for reads 40%\n" in out
    assert "The model waited 40% of the time for reads: raise storage.read_concurrency" in out
    # Busy seconds of stages that overlap blamed the wrong stage.
    assert "infer 90%" not in out
    # Names and reasons are printed unchanged: square brackets are not markup.
    assert "unreadable  /in/[red]a.jpg  the file is empty" in out
    assert "cut off after [12] bytes" in out
    assert "htc show /masks --to overlays" in out
    assert err == ""


def test_a_precision_that_was_chosen_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "fp32, TF32 off; auto: no record of the precision gate for these weights on cuda sm_90"
    assert f"cuda ({reason})" in " ".join(said(replace(SUMMARY, device="cuda", precision=reason), capsys)[0].split())
    assert "cpu (bf16" in said(replace(SUMMARY, precision="bf16, TF32 off; as the spec says"), capsys)[0]
    assert "TF32" not in said(replace(SUMMARY, precision="fp32, TF32 off; auto: ..."), capsys)[0]


def test_an_interrupted_run_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "Stopped with 204 of 1204 images to go; run the same command again to resume."
    summary = replace(SUMMARY, status="interrupted", exit_code=1, reason=reason, images_done=1000, is_trained=False)
    out, err = said(summary, capsys)
    assert "night (interrupted)" in out
    assert "1,000 of 1,204 images" in out
    assert "the masks mean nothing" in out
    assert err == f"{reason}\n"


def test_the_printed_budget_is_the_applied_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the error budget allows 5.00%)" in said(SUMMARY, capsys)[0]
    small = replace(
        SUMMARY, images=4, images_done=4, statuses={"ok": 3, "unreadable": 1}, error_rate=0.25, max_errors=5
    )
    assert "allows 5.00% and in any case 2 images)" in said(small, capsys)[0]
    # The minimum number of allowed errors does not apply if no image is ok.
    junk = replace(small, status="over_error_budget", exit_code=1, statuses={"unreadable": 4}, error_rate=1.0)
    assert "(100.00% of the images; the error budget allows 5.00%)" in said(junk, capsys)[0]
    again = replace(small, repeated_errors=3, statuses={"ok": 0, "unreadable": 4})
    assert "3 failed before as well and do not count; the others are 25.00%" in said(again, capsys)[0]


def test_commands_are_ready_to_paste(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = said(SUMMARY, capsys, output="my masks")
    assert "htc show 'my masks' --to overlays" in out


def test_a_run_without_images_reports_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    times = dict.fromkeys(("read", "infer"), 0.0)
    idle = replace(
        SUMMARY,
        images=0,
        images_done=0,
        session_images=0,
        stage_shares=times,
        worker_time_s=times,
        bottleneck=find_bottleneck(times),
    )
    out, _ = said(idle, capsys)
    assert "workers' time" not in out
    assert "bottleneck" not in out
    assert "workers' time" in said(SUMMARY, capsys)[0]


def test_how_busy_the_stages_were_is_extra(capsys: pytest.CaptureFixture[str]) -> None:
    spec = load_spec(None, {"input.uri": "/in", "output.uri": "/masks", "model.weights": "untrained"})
    report_summary(SUMMARY, spec, is_verbose=True)
    assert "Busy time of the stages, which run side by side: infer 90%, read 10%\n" in capsys.readouterr().out


def test_the_outcome_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run_job, "run", lambda *arguments, **options: SUMMARY)
    spec = load_spec(None, {"input.uri": "/in", "output.uri": "/masks", "model.weights": "untrained"})
    assert run_and_report(spec, run=None, fresh=False, is_json=True) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(json.dumps(SUMMARY.to_dict()))
    assert captured.err == ""
