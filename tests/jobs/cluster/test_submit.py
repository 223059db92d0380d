"""Submission: what the cluster gets, and that no run gets two jobs."""

import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from jobs.cluster.errors import JobRunningError
from jobs.cluster.job_state import JobState
from jobs.cluster.submit import new_job_id, submit_job
from pipeline.driver.progress import RunProgress
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.runs.lease import RunHeldError, take_lease
from pipeline.storage.storage import Storage
from tests.support.servers.fake_jobs import NOON, FakeJobs

# Uploads are tested in test_package.py; here it is the spec alone.
submit = partial(submit_job, runtime_env="image")


def spec_in(folder: Path, **overrides: object) -> JobSpec:
    values: dict[str, object] = {"name": "photos", "input.uri": str(folder / "in"), "output.uri": str(folder / "out")}
    return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


def test_a_job_has_the_spec_and_metadata(tmp_path: Path) -> None:
    client, spec = FakeJobs(), spec_in(tmp_path, storage__anonymous=True)
    job_id = submit(spec, client=client, now=NOON, env_vars={"AWS_REGION": "eu-west-1"})
    assert re.fullmatch(r"photos-20260301-120000-[0-9a-f]{6}", job_id)
    (submitted,) = client.submitted
    assert submitted["entrypoint"] == "htc run --spec job.yaml"
    assert client.specs[job_id]["input"]["uri"] == str(tmp_path / "in")
    # The output names the job that works on it.
    assert submitted["runtime_env"]["env_vars"]["HTC_JOB"] == job_id
    assert submitted["runtime_env"]["env_vars"]["AWS_REGION"] == "eu-west-1"
    assert client.state(job_id).storage == {"anonymous": True}


def test_a_fresh_run_is_named_so_that_the_job_started_twice_begins_it_once(tmp_path: Path) -> None:
    client = FakeJobs()
    job_id = submit(spec_in(tmp_path), client=client, fresh=True, now=NOON)
    assert client.submitted[0]["entrypoint"] == f"htc run --spec job.yaml --run {job_id}"
    assert client.state(job_id).run == job_id
    with pytest.raises(SpecError, match="leave it out to begin or resume the run night"):
        submit(spec_in(tmp_path), client=client, fresh=True, run="night")


def test_invalid_run_names_are_refused_before_submission(tmp_path: Path) -> None:
    client = FakeJobs()
    with pytest.raises(SpecError, match="A run's name is made of letters"):
        submit(spec_in(tmp_path), client=client, run="a b; rm -rf /")
    assert client.submitted == []


def test_ids_differ_between_submissions_only(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    assert new_job_id(spec, None, NOON) == new_job_id(spec, None, NOON)
    assert new_job_id(spec, "a", NOON) != new_job_id(spec, None, NOON)
    assert new_job_id(spec_in(tmp_path, input__limit=3), None, NOON) != new_job_id(spec, None, NOON)
    assert new_job_id(replace_name(spec), None, datetime(2026, 3, 1, 13, 0, tzinfo=UTC)).startswith("htc-20260301-1300")


def replace_name(spec: JobSpec) -> JobSpec:
    return spec.model_copy(update={"name": None})


@pytest.mark.parametrize(
    ("first", "second", "is_refused"),
    [
        (None, None, True),
        ("a", "a", True),
        ("a", None, True),
        (None, "a", True),
        ("a", "b", False),
    ],
)
def test_one_run_has_one_job(tmp_path: Path, first: str | None, second: str | None, is_refused: bool) -> None:
    client, spec = FakeJobs(), spec_in(tmp_path)
    job_id = submit(spec, client=client, run=first, now=NOON)
    again = replace_limit(spec)
    if not is_refused:
        submit(again, client=client, run=second, now=NOON)
        return
    with pytest.raises(JobRunningError, match=f"htc stop {job_id}") as caught:
        submit(again, client=client, run=second, now=NOON)
    assert caught.value.job_id == job_id
    assert caught.value.exit_code == 1
    assert len(client.submitted) == 1
    # A job on another output, or one that has ended, does not conflict.
    submit(spec_in(tmp_path, output__uri=str(tmp_path / "other")), client=client, now=NOON)
    client.end(job_id, "failed", 1)
    submit(again, client=client, run=second, now=NOON)


def replace_limit(spec: JobSpec) -> JobSpec:
    return spec.model_copy(update={"input": spec.input.model_copy(update={"limit": 5})})


def test_the_later_of_two_simultaneous_submissions_is_stopped(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    rival = JobState("photos-20260301-115959-aaaaaa", "running", output_uri=spec.output.uri, started=NOON)
    client = FakeJobs(rivals=[rival])
    with pytest.raises(JobRunningError, match=rival.job_id):
        submit(spec, client=client, now=NOON)
    phases = {state.job_id: state.phase for state in client.states()}
    assert sorted(phases.values()) == ["running", "stopped"]
    assert phases[rival.job_id] == "running"
    # The rival was first, and continues.
    other = FakeJobs(rivals=[replace(rival, started=NOON.replace(hour=13))])
    assert other.state(submit(spec, client=other, now=NOON)).phase == "pending"


def test_a_run_that_another_driver_holds_is_refused_before_submission(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    lease = take_lease(Storage(), spec.output.uri, "night")
    try:
        client = FakeJobs()
        with pytest.raises(RunHeldError, match="is working on the run night"):
            submit(spec, client=client, run="night")
        progress = tmp_path / "out" / "runs" / "night" / "progress.json"
        known = {"written": NOON.isoformat(), "since": NOON.isoformat(), "job": "photos-1"}
        progress.write_text(json.dumps(known | asdict(RunProgress(1, 0, 0, 0.0, None, 0))))
        with pytest.raises(RunHeldError, match=r"^The job photos-1 \(host "):
            submit(spec, client=client, run="night")
        assert client.submitted == []
        # A dead driver does not hold the run.
        path = tmp_path / "out" / "runs" / "night" / "lease.json"
        holder = json.loads(path.read_text())
        path.write_text(json.dumps(holder | {"process": holder["process"].rpartition(" ")[0] + " 1"}))
        submit(spec, client=client, run="night")
        assert len(client.submitted) == 1
    finally:
        lease.release()
