"""Incremental runs on the command line: plan, flags, and that neither torch nor Ray is needed."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cli.options import JobFlags, load_job_spec
from jobs.running.plan import report_plan
from pipeline.errors import InputError, SpecError
from tests.support.builders.planned_runs import FINGERPRINT, OTHER_MODEL, IncrementalRuns
from tests.support.without_torch import run_without_torch


@pytest.fixture
def runs(tmp_path: Path) -> IncrementalRuns:
    """Three images done by a first run; then one changes, one is removed, one is added."""
    runs = IncrementalRuns(tmp_path)
    runs.put("a.jpg", "b.jpg", "c.jpg")
    runs.run_again()
    runs.put("b.jpg", content="other")
    runs.put("d.jpg")
    runs.remove("c.jpg")
    return runs


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def plan(
    runs: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any] = FINGERPRINT, **more: object
) -> int:
    """Return what `htc plan` prints; the model's file is not available."""
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: model)
    spec = runs.spec(model__weights="untrained", **more)
    return report_plan(spec, run=None, fresh=False, is_model_timed=False)


def test_plan_reports_what_an_incremental_run_would_do_and_writes_nothing(
    runs: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(runs.folder)
    assert plan(runs, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "3 images listed, 2 of them to be done (1 new, 1 changed); 1 unchanged." in out
    assert "1 image not listed any more" in out
    assert "to do    2 images, 6 bytes" in out
    assert "a new run" in out
    where = "SELECT uri FROM images WHERE uri LIKE '%a.jpg'"
    plan(runs, monkeypatch, OTHER_MODEL, select__where=where)
    assert "3 of them to be done (1 new, 1 changed, 1 of another model or other settings)" in capsys.readouterr().out
    with pytest.raises(InputError, match="1 of the 3 images"):
        plan(runs, monkeypatch, select__max_deleted_share=0.2)
    with pytest.raises(SpecError, match=r"select\.where cannot be used"):
        plan(runs, monkeypatch, select__where="SELECT")
    assert snapshot(runs.folder) == before


def test_plan_of_an_incremental_run_with_nothing_to_do(
    runs: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.run_again()
    assert plan(runs, monkeypatch) == 0
    assert "3 images listed, none of them to be done; 3 unchanged." in capsys.readouterr().out


def test_plan_of_an_unfinished_incremental_run(
    runs: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.open(compute__shard_images=1, model__weights="untrained")
    runs.commit(run, shards=1)
    plan(runs, monkeypatch, compute__shard_images=1)
    assert f"resumes {run.name}: 1 of 2 shards to go" in capsys.readouterr().out


def test_incremental_runs_are_planned_without_torch_and_ray(runs: IncrementalRuns) -> None:
    folders = [str(runs.folder / "in"), str(runs.folder / "out")]
    done = run_without_torch("plan", *folders, "--incremental", "--weights", "untrained", "--no-model")
    assert done.returncode == 0, done.stderr
    assert "3 of them to be done (1 new, 1 changed, 1 of another model or other settings)" in done.stdout
    sql = "SELECT parse_filename(uri) AS name FROM current ORDER BY 1"
    done = run_without_torch("query", folders[1], sql, "--format", "csv")
    assert (done.stdout, done.stderr) == ("name\na.jpg\nb.jpg\nc.jpg\n", "")


@pytest.mark.parametrize(
    ("flags", "selected"),
    [
        ({}, ("full", "transient", None)),
        ({"incremental": True}, ("incremental", "transient", None)),
        ({"retry_failed": True}, ("incremental", "failed", None)),
        ({"incremental": True, "where": "SELECT 1 AS image_id"}, ("incremental", "transient", "SELECT 1 AS image_id")),
    ],
)
def test_flags_select(flags: dict[str, Any], selected: tuple[str, str, str | None]) -> None:
    select = load_job_spec(None, JobFlags(**flags), input_uri="/in", output_uri="/out").select
    assert (select.mode, select.retry, select.where) == selected


def test_no_share_of_deleted_images_is_a_share() -> None:
    flags = JobFlags(incremental=True, max_deleted_share=0.0)
    assert load_job_spec(None, flags, input_uri="/in", output_uri="/out").select.max_deleted_share == 0.0
