"""Firings as jobs of a cluster: submitted once, found again, stopped, and resumed after the cluster was lost."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.cluster.errors import ClusterError, JobRunningError
from jobs.cluster.job_state import JobState
from jobs.scheduling.cluster_launcher import AGAIN_S, POLL_S, ClusterLauncher
from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.schedule import build_schedule
from pipeline.errors import RunError, SpecError, TransientStorageError
from pipeline.storage.storage import Storage
from tests.support.fakes.clock import HandClock
from tests.support.servers.fake_jobs import FakeJobs

NIGHT = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
RUN = "nightly-20261123-023000"


class Cluster:
    """A cluster in memory that can be unreachable, used through the launcher."""

    def __init__(self) -> None:
        self.jobs = FakeJobs()
        self.clock = HandClock()
        self.is_away = False
        self.asked = 0

    def connect(self) -> FakeJobs:
        self.asked += 1
        if self.is_away:
            raise ClusterError("No cluster answers.")
        return self.jobs

    def runs(self) -> ClusterLauncher:
        """Return a new launcher, as each scheduler creates one."""
        return ClusterLauncher("http://cluster:8265", connect=self.connect, clock=self.clock)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def firing(tmp_path: Path) -> Firing:
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"input: {{uri: 's3://bucket/in'}}\noutput: {{uri: {tmp_path}/out}}\nmodel: {{weights: untrained}}\n"
    )
    keys = {"name": "nightly", "spec": str(spec), "cron": "30 2 * * *", "address": "http://cluster:8265"}
    return replace(plan_firing(build_schedule(keys), NIGHT, "cron"), begun=NIGHT)


def test_a_firing_is_one_job_whose_run_has_its_name(cluster: Cluster, firing: Firing) -> None:
    job_id = cluster.runs().start(firing)
    assert job_id.startswith("nightly-20261123-023000-")
    assert cluster.jobs.jobs[job_id].run == RUN
    assert cluster.jobs.specs[job_id]["select"]["mode"] == "incremental"
    # The successor of a scheduler that died before it stored the id.
    assert cluster.runs().start(firing) == job_id
    cluster.jobs.end(job_id, "succeeded", 0)
    assert cluster.runs().start(firing) == job_id
    assert len(cluster.jobs.submitted) == 1


def test_another_users_job_at_the_output_is_refused(cluster: Cluster, firing: Firing, tmp_path: Path) -> None:
    cluster.jobs.jobs["other"] = JobState("other", "running", output_uri=f"{tmp_path}/out")
    with pytest.raises(JobRunningError, match="other"):
        cluster.runs().start(firing)


def test_an_unreachable_cluster_is_contacted_every_half_minute(cluster: Cluster, firing: Firing) -> None:
    cluster.is_away = True
    runs = cluster.runs()
    for _ in range(5):
        with pytest.raises(ClusterError):
            runs.start(firing)
    assert cluster.asked == 1
    cluster.is_away = False
    cluster.clock.now += AGAIN_S
    runs.start(firing)


def test_a_missing_spec_is_not_a_cluster_error(cluster: Cluster, firing: Firing) -> None:
    Path(str(firing.schedule.spec)).unlink()
    with pytest.raises(SpecError, match="does not exist"):
        cluster.runs().start(firing)


def test_a_spec_in_an_unreachable_store_is_retried(
    cluster: Cluster, firing: Firing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_away(*_: object) -> bytes:
        raise TransientStorageError("the store is away")

    monkeypatch.setattr(Storage, "read", be_away)
    schedule = firing.schedule.model_copy(update={"spec": "s3://bucket/job.yaml"})
    with pytest.raises(RunError, match="cannot be read: the store is away"):
        cluster.runs().start(replace(firing, schedule=schedule))


def test_a_job_is_checked_while_it_runs_and_ends_with_its_last_line(cluster: Cluster, firing: Firing) -> None:
    runs = cluster.runs()
    started = replace(firing, handle=runs.start(firing), starts=1)
    assert runs.check(started).state == "going"
    cluster.jobs.pieces = ["Run nightly\n", "The input s3://bucket/in cannot be read.\n\n"]
    cluster.jobs.end(str(started.handle), "failed", 2, "Job entrypoint command failed with exit code 2")
    # It was checked just now.
    assert runs.check(started).state == "going"
    cluster.clock.now += POLL_S
    assert runs.check(started).ending == Ending("failed", "The input s3://bucket/in cannot be read.", 2)


def test_a_job_that_never_ran_ends_with_rays_message(cluster: Cluster, firing: Firing) -> None:
    runs = cluster.runs()
    started = replace(firing, handle=runs.start(firing), starts=1)
    cluster.jobs.end(str(started.handle), "failed", None, "The runtime environment could not be set up.")
    assert runs.check(started).ending == Ending("failed", "The runtime environment could not be set up.", 1)


@pytest.mark.parametrize("phase", ["succeeded", "stopped"])
def test_other_endings(cluster: Cluster, firing: Firing, phase: str) -> None:
    runs = cluster.runs()
    started = replace(firing, handle=runs.start(firing), starts=1)
    cluster.jobs.end(str(started.handle), phase)
    expected = {"succeeded": Ending("complete", "", 0), "stopped": Ending("interrupted", "The job was stopped.", 1)}
    assert runs.check(started).ending == expected[phase]


def test_an_unreachable_cluster_leaves_the_job_unseen(cluster: Cluster, firing: Firing) -> None:
    runs = cluster.runs()
    started = replace(firing, handle=runs.start(firing), starts=1)
    cluster.is_away = True
    status = runs.check(started)
    assert (status.state, status.problem) == ("unseen", "No cluster answers.")
    runs.stop(started, is_forced=False)


def test_a_job_lost_with_its_cluster_is_gone_and_resumed_by_another(cluster: Cluster, firing: Firing) -> None:
    runs = cluster.runs()
    started = replace(firing, handle=runs.start(firing), starts=1)
    cluster.jobs.jobs.clear()
    assert runs.check(started).state == "gone"
    again = replace(started, begun=NIGHT.replace(hour=3))
    assert runs.start(again) != started.handle
    assert [each["metadata"]["htc_run"] for each in cluster.jobs.submitted] == [RUN, RUN]


@pytest.mark.parametrize("knows_id", [True, False])
def test_a_job_is_stopped_even_if_its_id_was_not_stored(cluster: Cluster, firing: Firing, knows_id: bool) -> None:
    job_id = cluster.runs().start(firing)
    runs = cluster.runs()
    going = replace(firing, handle=job_id if knows_id else None)
    assert runs.check(going).state == "going"
    runs.stop(going, is_forced=False)
    cluster.clock.now += POLL_S
    assert runs.check(going).ending.outcome == "interrupted"


def test_a_job_that_was_never_submitted_is_gone(cluster: Cluster, firing: Firing) -> None:
    assert cluster.runs().check(firing).state == "gone"


def test_the_runtime_environment_is_the_schedules(cluster: Cluster, firing: Firing) -> None:
    keys = {**firing.schedule.to_dict(), "runtime_env": "image"}
    cluster.runs().start(replace(firing, schedule=build_schedule(keys)))
    (submitted,) = cluster.jobs.submitted
    assert "py_modules" not in submitted["runtime_env"]
