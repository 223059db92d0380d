"""The output and the exit codes of `htc submit`, `logs`, `stop` and `list`."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import program as cli
from jobs.cluster import submit_command
from jobs.cluster.errors import ClusterError
from jobs.cluster.job_commands import report_list, report_logs, report_stop
from jobs.cluster.job_state import JobState, Phase, state_from_ray
from jobs.cluster.submit_command import check_paths_are_shared, follow, read_env_vars, submit_and_report
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from tests.support.servers.fake_jobs import NOON, FakeJobs

Captured = pytest.CaptureFixture[str]
JOB = "photos-20260301-120000-aaaaaa"


@pytest.fixture
def client() -> FakeJobs:
    """A cluster in memory with one job, which ends after its log was read."""
    return FakeJobs(jobs={JOB: JobState(JOB, "running", output_uri="s3://b/out", started=NOON)})


def spec_of(folder: Path, **overrides: object) -> JobSpec:
    values: dict[str, object] = {"name": "photos", "input.uri": "s3://b/in", "output.uri": str(folder / "out")}
    return load_spec(None, values | overrides)


def submit(client: FakeJobs, spec: JobSpec, **changes: Any) -> int:
    settings: dict[str, Any] = {
        "address": None,
        "run": None,
        "fresh": False,
        "runtime_env": "image",
        "env": [],
        "is_shared": True,
        "is_waited_for": False,
        "is_json": False,
        "client": client,
    }
    return submit_and_report(spec, **{**settings, **changes})


def test_the_id_and_the_next_commands_are_printed(client: FakeJobs, tmp_path: Path, capsys: Captured) -> None:
    assert submit(client, spec_of(tmp_path), address="http://head:8265") == 0
    job_id = client.states()[0].job_id
    out = capsys.readouterr().out
    assert f"Submitted {job_id} to http://cluster:8265 (Ray 2.60.0)." in out
    for command in (f"htc status {job_id}", f"htc logs {job_id} -f", f"htc stop {job_id}"):
        assert f"{command} --address http://head:8265" in out
    assert f"htc status {tmp_path}/out" in out


def test_another_version_is_reported_and_json_has_only_json(client: FakeJobs, tmp_path: Path, capsys: Captured) -> None:
    client.note = "The cluster at u runs Ray 2.55.1, and this machine Ray 2.60.0; the job runs with the cluster's."
    submit(client, spec_of(tmp_path))
    assert client.note in capsys.readouterr().err
    submit(client, spec_of(tmp_path / "b"), is_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["job"], printed["phase"]) == (client.states()[0].job_id, "pending")


@pytest.mark.parametrize(
    ("phase", "exit_code", "code", "sentence"),
    [
        ("succeeded", 0, 0, "is complete."),
        ("failed", 2, 2, "failed with exit code 2; its last lines say why."),
        ("failed", None, 1, "failed without an exit code: runtime_env setup failed"),
        ("stopped", None, 1, "was stopped; submit it again to resume."),
    ],
)
def test_waiting_returns_the_exit_code_of_the_run(
    client: FakeJobs, tmp_path: Path, capsys: Captured, *, phase: Phase, exit_code: int | None, code: int, sentence: str
) -> None:
    def tail(job_id: str) -> Iterator[str]:
        yield "Run night: 2 images in 1 shard.\n\n2/2 images\n"
        client.end(job_id, phase, exit_code, "runtime_env setup failed:\nno space")

    client.on_tail = tail
    assert submit(client, spec_of(tmp_path), is_waited_for=True) == code
    captured = capsys.readouterr()
    assert sentence in captured.out + captured.err
    assert "Run night: 2 images in 1 shard.\n" in captured.err


def test_ctrl_c_while_waiting_does_not_stop_the_job(client: FakeJobs, tmp_path: Path, capsys: Captured) -> None:
    def tail(job_id: str) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    client.on_tail = tail
    assert submit(client, spec_of(tmp_path), is_waited_for=True) == 130
    job_id = client.states()[0].job_id
    assert client.state(job_id).phase == "pending"
    assert f"the job {job_id} continues. To stop it: htc stop {job_id}" in capsys.readouterr().err


def test_ctrl_c_while_waiting_does_not_print_stopped(
    client: FakeJobs, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tail(job_id: str) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    client.on_tail = tail
    monkeypatch.setattr(submit_command, "connect", lambda address: client)
    places = ["--input", "s3://b/in", "--output", str(tmp_path / "out"), "--runtime-env", "image", "--shared-paths"]
    with pytest.raises(SystemExit) as leaving:
        cli.main(["submit", "--wait", *places])
    assert leaving.value.code == 130
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("No longer waiting; the job htc-")


def test_a_broken_connection_is_reopened_and_no_line_is_repeated(client: FakeJobs, capsys: Captured) -> None:
    client.pieces = ["one\n", "two\n", ClusterError("gone"), "three\n"]

    def tail_to_the_end(job_id: str) -> Iterator[str]:
        yield from client.next_pieces()
        client.end(job_id, "succeeded", 0)

    client.on_tail = tail_to_the_end
    assert follow(client, JOB).phase == "succeeded"
    assert capsys.readouterr().err.split() == ["one", "two", "three"]


def test_following_a_job_gives_up_on_an_unreachable_cluster(client: FakeJobs) -> None:
    client.pieces = [ClusterError("No cluster answers."), ClusterError("No cluster answers.")]
    with pytest.raises(ClusterError, match=rf"No cluster answers\. The job {JOB} may still be running\."):
        follow(client, JOB, patience_s=0.0)


def test_local_paths_are_refused_for_another_machine(tmp_path: Path) -> None:
    remote = spec_of(tmp_path, **{"output.uri": "s3://b/out"})
    check_paths_are_shared(remote, "http://head:8265", is_shared=False)
    for spec, key in (
        (spec_of(tmp_path), "output.uri"),
        (spec_of(tmp_path, **{"output.uri": "s3://b/out", "input.uri": "photos"}), "input.uri"),
    ):
        with pytest.raises(SpecError, match=rf"^{key} is /.*, a path of this machine, .*--shared-paths"):
            check_paths_are_shared(spec, "http://head:8265", is_shared=False)
        check_paths_are_shared(spec, "http://head:8265", is_shared=True)
        # The cluster may run here; if a tunnel begins here, the job's preflight check fails.
        check_paths_are_shared(spec, "http://127.0.0.1:8265", is_shared=False)


def test_variables_get_the_given_or_the_local_value() -> None:
    here = {"AWS_REGION": "eu-west-1"}
    assert read_env_vars(["AWS_REGION", "A=b=c", "EMPTY="], here) == {
        "AWS_REGION": "eu-west-1",
        "A": "b=c",
        "EMPTY": "",
    }
    with pytest.raises(SpecError, match="--env NOPE: it is not set here; set it, or give NAME=VALUE"):
        read_env_vars(["NOPE"], here)
    with pytest.raises(SpecError, match="'1 2' is not a variable's name"):
        read_env_vars(["1 2=x"], here)


def test_stopping(client: FakeJobs, capsys: Captured) -> None:
    def stop(*, is_json: bool = False) -> int:
        return report_stop(JOB, address=None, is_waited_for=True, is_json=is_json, client=client)

    assert stop() == 0
    assert capsys.readouterr().out == f"The job {JOB} was stopped; submit it again to resume.\n"
    assert stop() == 0
    assert capsys.readouterr().out == f"The job {JOB} had already ended (stopped).\n"
    stop(is_json=True)
    assert json.loads(capsys.readouterr().out)["phase"] == "stopped"


def test_the_list(client: FakeJobs, capsys: Captured) -> None:
    client.end(JOB, "failed", 2)
    report_list(address=None, is_json=False, client=client)
    row = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert row == [JOB, "failed", "2", "2026-03-01", "12:00:00", "5", "min", "00", "s", "s3://b/out"]
    report_list(address=None, is_json=True, client=client)
    assert [job["job"] for job in json.loads(capsys.readouterr().out)] == [JOB]
    client.jobs.clear()
    report_list(address=None, is_json=False, client=client)
    assert "has no job of htc; start one with: htc submit SPEC" in capsys.readouterr().err


def test_logs_as_they_are_and_as_json(client: FakeJobs, capsys: Captured) -> None:
    client.pieces = ["one\n", "two\n"]
    report_logs(JOB, address=None, is_followed=False, is_json=False, client=client)
    assert capsys.readouterr().out == "one\ntwo\n"
    client.pieces = ["one\ntw", "o\n\nth", "ree"]
    report_logs(JOB, address=None, is_followed=True, is_json=True, client=client)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"job": JOB, "text": text} for text in ("one", "two", "", "three")]


def test_state_from_rays_job_details() -> None:
    from ray.job_submission import JobDetails

    details = JobDetails(
        type="SUBMISSION",
        submission_id=JOB,
        status="FAILED",
        entrypoint="htc run --spec job.yaml",
        message="Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nx",
        driver_exit_code=2,
        start_time=NOON.timestamp() * 1000,
        end_time=(NOON + timedelta(seconds=9)).timestamp() * 1000,
        metadata={"htc_output": "s3://b/out", "htc_storage": '{"anonymous": true}'},
    )
    state = state_from_ray(details)
    assert state is not None
    assert (state.phase, state.final_exit_code, state.storage) == ("failed", 2, {"anonymous": True})
    assert state.message == "Job entrypoint command failed with exit code 2"
    assert (state.started, state.ended) == (NOON, NOON + timedelta(seconds=9))
    # KubeRay submits without our metadata; the jobs of other programs are neither listed nor stopped.
    by_kubernetes = state_from_ray(details.model_copy(update={"metadata": {}}))
    assert by_kubernetes is not None
    assert by_kubernetes.output_uri == ""
    assert state_from_ray(details.model_copy(update={"metadata": {}, "entrypoint": "python train.py"})) is None
