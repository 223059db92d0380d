"""The status of a run from its output folder: while a driver works, after it died or ended, without a cluster."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.cluster.errors import ClusterError
from jobs.cluster.job_state import JobState
from jobs.cluster.status_command import is_output, report_status, run_lines
from jobs.results.status import find_live_driver, read_status
from pipeline.driver.progress import RunProgress
from pipeline.errors import InputError
from pipeline.maintenance.survey import survey_runs
from pipeline.output.results import open_results
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import Output
from tests.support.servers.fake_jobs import NOON, FakeJobs
from tests.support.without_torch import run_without_torch

LEASE = {"token": "t", "host": "head-1", "pid": 12, "process": "", "since": "2026-03-01T11:00:00+00:00"}
PROGRESS = RunProgress(7, 5, 1, 2.0, 90.0, 3, statuses={"ok": 4, "unreadable": 1}, failure_reasons={"it is torn": 1})


@pytest.fixture
def run_folder(output: Output) -> Path:
    return output.folder / "runs" / "night"


def at_once(seconds: float) -> None:
    """Nothing changes while it is watched."""


def never(seconds: float) -> None:
    pytest.fail(f"waited {seconds} s")


def write_lease(run_folder: Path, *, beat: datetime) -> None:
    """Write a lease, as a driver on another machine does."""
    (run_folder / "lease.json").write_text(json.dumps(LEASE | {"beat": beat.isoformat()}))


def write_progress(run_folder: Path, job: str | None = "photos-1") -> None:
    content = {"written": NOON.isoformat(), "since": NOON.isoformat(), "job": job, **asdict(PROGRESS)}
    (run_folder / "progress.json").write_text(json.dumps(content))


def test_a_running_run(output: Output, run_folder: Path) -> None:
    write_lease(run_folder, beat=NOON)
    write_progress(run_folder)
    status = read_status(output.uri, Storage(), clock=lambda: NOON + timedelta(seconds=20), sleep=never)
    assert (status.run, status.state) == ("night", "running")
    assert (status.images, status.images_done, status.workers) == (7, 5, 3)
    assert (status.images_per_s, status.eta_s) == (2.0, 90.0)
    assert status.failure_reasons == {"it is torn": 1}
    assert status.driver is not None
    assert (status.driver.host, status.driver.pid, status.driver.job) == ("head-1", 12, "photos-1")


def test_a_driver_without_heartbeats_is_dead_and_the_rows_are_counted(output: Output, run_folder: Path) -> None:
    write_lease(run_folder, beat=NOON)
    write_progress(run_folder)
    status = read_status(output.uri, Storage(), clock=lambda: NOON + timedelta(minutes=10), sleep=at_once)
    assert status.state == "incomplete"
    # Two of three shards are committed; progress.json is not used.
    assert (status.images, status.images_done, status.instances) == (7, 6, 10)
    assert status.statuses == {"ok": 5, "unreadable": 1}
    assert status.failure_reasons == {"the file is empty": 1}
    assert "without a summary" in status.reason
    assert "same command again to resume" in status.reason


@pytest.mark.parametrize(
    "off", [timedelta(days=365), timedelta(minutes=3), timedelta(minutes=-3), timedelta(days=-365)]
)
def test_a_lease_with_an_implausible_time_is_judged_by_whether_it_changes(
    output: Output, run_folder: Path, off: timedelta
) -> None:
    """A clock that was ahead once made a dead driver "running" until that date."""
    write_lease(run_folder, beat=NOON + off)
    write_progress(run_folder)
    reported: list[str] = []
    status = read_status(output.uri, Storage(), clock=lambda: NOON, sleep=at_once, report=reported.append)
    assert status.state == "incomplete"
    assert status.driver is not None
    assert not status.driver.is_alive
    assert "night" in reported[0]

    def beat(seconds: float) -> None:
        write_lease(run_folder, beat=NOON + off + timedelta(seconds=15))

    assert read_status(output.uri, Storage(), clock=lambda: NOON, sleep=beat).state == "running"


def test_a_driver_that_has_just_begun(output: Output, run_folder: Path) -> None:
    write_lease(run_folder, beat=NOON)
    status = read_status(output.uri, Storage(), clock=lambda: NOON)
    assert (status.state, status.images_done) == ("running", 6)


def test_a_run_that_ended_has_the_status_of_its_summary(output: Output, run_folder: Path) -> None:
    reported = {"status": "interrupted", "images": 7, "images_done": 6, "statuses": {"ok": 6}, "failure_reasons": {}}
    reported |= {"instances": 12, "images_per_s": 3.5, "reason": "Stopped with 1 of 7 images to go."}
    (run_folder / "summary.json").write_text(json.dumps(reported))
    status = read_status(output.uri, Storage())
    assert (status.state, status.images_done, status.instances) == ("interrupted", 6, 12)
    assert status.reason == "Stopped with 1 of 7 images to go."
    # A later session that died leaves its progress behind, and the summary is an older one's.
    write_progress(run_folder)
    later = read_status(output.uri, Storage())
    assert (later.state, later.images_done) == ("incomplete", 6)
    assert "without a summary" in later.reason


def test_an_unreadable_lease_counts_as_held_as_for_htc_runs(output: Output, run_folder: Path) -> None:
    (run_folder / "lease.json").write_text('{"token": 1}')
    status = read_status(output.uri, Storage())
    (standing,) = survey_runs(open_results(output.uri))
    assert (status.state, standing.state) == ("running", "running")
    assert "cannot be read" in dict(run_lines(status, NOON))["driver"]
    assert "cannot be read" in standing.holder
    assert json.loads(json.dumps(status.to_dict()))["driver"]["host"] is None
    assert find_live_driver(Storage(), output.uri, None) is not None
    (run_folder / "lease.json").unlink()
    assert find_live_driver(Storage(), output.uri, None) is None
    write_lease(run_folder, beat=datetime.now(UTC))
    found = find_live_driver(Storage(), output.uri, None)
    assert found is not None
    assert (found[0], found[1].host) == ("night", "head-1")


def test_unknown_runs_are_refused_by_name(output: Output, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no run day in .*; its runs are night"):
        read_status(output.uri, Storage(), run="day")
    with pytest.raises(InputError, match="holds no run of htc"):
        read_status(str(tmp_path / "empty"), Storage())


def test_the_command_needs_neither_cluster_nor_ray_nor_torch(output: Output, run_folder: Path) -> None:
    write_lease(run_folder, beat=datetime.now(UTC))
    write_progress(run_folder)
    done = run_without_torch("status", output.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert "night (running)" in done.stdout
    assert "5 of 7 images (71%): 4 ok, 1 unreadable" in done.stdout
    assert "2.00 images/s, ETA 1 min 30 s" in done.stdout
    assert "job photos-1, process 12 on head-1" in done.stdout
    assert "it is torn" in done.stdout
    reported = json.loads(run_without_torch("status", output.uri, "--json").stdout)
    assert reported["job"] is None
    assert reported["run"]["driver"]["job"] == "photos-1"
    assert reported["run"]["images_done"] == 5


def test_folders_and_jobs_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert is_output("out")
    assert is_output("s3://bucket/out")
    assert is_output("results/out")
    assert not is_output("photos-20260301-120000-aaaaaa")


def test_a_mistyped_folder_is_named_beside_the_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(address: str | None) -> FakeJobs:
        raise ClusterError("No cluster answers.")

    monkeypatch.setattr("jobs.cluster.client.connect", refuse)
    with pytest.raises(ClusterError, match=r"no folder nope here, and no cluster at .*--address"):
        report_status("nope", run=None, address=None, storage_section=StorageSection(), is_json=False)


def report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: list[JobState], *, is_json: bool = False
) -> tuple[str, str]:
    client = FakeJobs(jobs={job.job_id: job for job in jobs})
    monkeypatch.setattr("jobs.cluster.client.connect", lambda address: client)
    report_status(None, run=None, address=None, storage_section=StorageSection(), is_json=is_json)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_job_is_reported_together_with_its_output(
    output: Output, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older = JobState("photos-1", "failed", exit_code=2, output_uri="/nowhere", started=NOON)
    newest = JobState("photos-2", "running", output_uri=output.uri, started=NOON)
    out, _ = report(monkeypatch, capsys, [older, newest])
    assert "photos-2 (running)" in out
    assert "6 of 7 images" in out
    reported = json.loads(report(monkeypatch, capsys, [older, newest], is_json=True)[0])
    assert (reported["job"]["job"], reported["run"]["run"]) == ("photos-2", "night")


def test_a_job_whose_output_cannot_be_read_is_reported_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = JobState("photos-1", "failed", "runtime_env setup failed:\n no space", output_uri="/nowhere", started=NOON)
    out, err = report(monkeypatch, capsys, [failed])
    assert "photos-1 (failed, exit code 1)" in out
    assert "runtime_env setup failed: no space" in out
    assert err.startswith("Its output cannot be read from this machine yet: /nowhere holds no run of htc")
