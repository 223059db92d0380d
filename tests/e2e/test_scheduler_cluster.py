"""The scheduler and a real Ray cluster: a job that outlives its scheduler, and the network on it."""

import os
import sys
from pathlib import Path

import pytest

from jobs.cluster.submit import list_jobs
from pipeline.output.results import open_results
from tests.support.builders.images import encoded, gradient
from tests.support.servers.real_cluster import htc, real_cluster
from tests.support.servers.scheduler_process import (
    finish_with_another_scheduler,
    firings,
    kill_scheduler_while_a_run_goes_on,
)


# Starting a cluster, and a job on it.
@pytest.mark.slow
def test_a_job_is_found_again_by_the_next_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    home = tmp_path / "home"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(gradient(), "PNG"))
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"input: {{uri: {tmp_path}/photos}}\noutput: {{uri: {tmp_path}/out}}\ncompute: {{workers: 1}}\n"
        "model: {preset: htc_lite0_fpn, weights: untrained, score_threshold: 0.99}\n"
    )
    # Jobs start with the `python` of the cluster.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with real_cluster(1, {"PATH": path}) as cluster:
        added = htc(
            *["schedule", "add", "nightly", str(spec), "--home", str(home)],
            *["--cron", "0 0 1 1 *", "--address", cluster.url],
        )
        assert added.code == 0, added.err
        htc("schedule", "run-now", "nightly", "--home", str(home))
        kill_scheduler_while_a_run_goes_on(home)
        said = finish_with_another_scheduler(home)
        (job,) = list_jobs(address=cluster.url)
    (firing,) = firings(home)
    assert firing.ending is not None, said
    assert (firing.ending.outcome, firing.ending.counts.get("images")) == ("complete", 1), firing.ending.reason
    assert (job.job_id, job.run, job.phase) == (firing.handle, firing.name, "succeeded")
    rows = open_results(str(tmp_path / "out")).images(None).to_pylist()
    assert [row["run"] for row in rows] == [firing.name]
