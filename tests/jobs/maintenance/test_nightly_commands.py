"""Incremental runs on the command line: plan, flags, and that neither torch nor Ray is needed."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cli.options import load_job_spec
from jobs.running.plan import report_plan
from pipeline.errors import InputError, SpecError
from tests.support.builders.planned_runs import FINGERPRINT, OTHER_MODEL, IncrementalRuns
from tests.support.without_torch import run_without_torch


@pytest.fixture
def nights(tmp_path: Path) -> IncrementalRuns:
    """Three images done by a first run; then one changes, one is removed, one is added."""
    nights = IncrementalRuns(tmp_path)
    nights.put("a.jpg", "b.jpg", "c.jpg")
    nights.night()
    nights.put("b.jpg", content="other")
    nights.put("d.jpg")
    nights.remove("c.jpg")
    return nights


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def plan(
    nights: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any] = FINGERPRINT, **more: object
) -> int:
    """Return what `htc plan` prints; the model's file is not available."""
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: model)
    spec = nights.spec(model__weights="untrained", **more)
    return report_plan(spec, run=None, fresh=False, is_model_timed=False)


def test_plan_reports_what_an_incremental_run_would_do_and_writes_nothing(
    nights: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(nights.folder)
    assert plan(nights, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "3 images listed, 2 of them to be done (1 new, 1 changed); 1 unchanged." in out
    assert "1 image not listed any more" in out
    assert "to do    2 images, 6 bytes" in out
    assert "a new run" in out
    where = "SELECT uri FROM images WHERE uri LIKE '%a.jpg'"
    plan(nights, monkeypatch, OTHER_MODEL, select__where=where)
    assert "3 of them to be done (1 new, 1 changed, 1 of another model)" in capsys.readouterr().out
    with pytest.raises(InputError, match="1 of the 3 images"):
        plan(nights, monkeypatch, select__max_deleted_share=0.2)
    with pytest.raises(SpecError, match=r"select\.where cannot be used"):
        plan(nights, monkeypatch, select__where="SELECT")
    assert snapshot(nights.folder) == before


def test_plan_of_an_incremental_run_with_nothing_to_do(
    nights: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.night()
    assert plan(nights, monkeypatch) == 0
    assert "3 images listed, none of them to be done; 3 unchanged." in capsys.readouterr().out


def test_plan_of_an_unfinished_incremental_run(
    nights: IncrementalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = nights.open(compute__shard_images=1, model__weights="untrained")
    nights.commit(run, shards=1)
    plan(nights, monkeypatch, compute__shard_images=1)
    assert f"resumes {run.name}: 1 of 2 shards to go" in capsys.readouterr().out


def test_incremental_runs_are_planned_without_torch_and_ray(nights: IncrementalRuns) -> None:
    folders = [str(nights.folder / "in"), str(nights.folder / "out")]
    done = run_without_torch("plan", *folders, "--incremental", "--weights", "untrained", "--no-model")
    assert done.returncode == 0, done.stderr
    assert "3 of them to be done (1 new, 1 changed, 1 of another model)" in done.stdout
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
    select = load_job_spec({"input_uri": "/in", "output_uri": "/out", "incremental": False, **flags}).select
    assert (select.mode, select.retry, select.where) == selected


def test_no_share_of_deleted_images_is_a_share() -> None:
    flags = {"input_uri": "/in", "output_uri": "/out", "incremental": True, "max_deleted_share": 0.0}
    assert load_job_spec(flags).select.max_deleted_share == 0.0
