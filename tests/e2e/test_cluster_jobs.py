"""Jobs on a real cluster of a head and three nodes: one outlives a node, one is stopped and resumed."""

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.results.status import RunStatus, read_status
from pipeline.errors import InputError
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from tests.support.fakes.models import write_images
from tests.support.paths import PROGRAMS, ROOT
from tests.support.servers.real_cluster import Done, RealCluster, htc, real_cluster, wait_until

# One cluster for the file, which takes longer to start than its jobs to end.
pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """The cluster's `htc` is tests/support/programs/cluster_htc.py."""
    bin_folder = tmp_path_factory.mktemp("bin")
    script = bin_folder / "htc"
    program = PROGRAMS / "cluster_htc.py"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"\n')
    script.chmod(0o755)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}
    with real_cluster(3, environment) as running:
        yield running


def write_spec(folder: Path, images: int) -> str:
    write_images(folder / "in", images)
    spec = {
        "name": "photos",
        "input": {"uri": str(folder / "in")},
        "output": {"uri": str(folder / "out")},
        "model": {"preset": "htc_lite0_fpn", "weights": "untrained"},
        "compute": {"shard_images": 1},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    return str(folder / "job.yaml")


def submit(cluster: RealCluster, spec: str, *flags: str) -> Done:
    return htc("submit", spec, "--runtime-env", "image", "--address", cluster.url, *flags)


def job_of(submitted: Done) -> str:
    assert submitted.code == 0, submitted.err
    return str(json.loads(submitted.out)["job"])


def status_of(folder: Path) -> RunStatus | None:
    try:
        return read_status(str(folder / "out"), Storage())
    except InputError:
        return None


def committed(folder: Path) -> int:
    return len(list((folder / "out" / "images").rglob("part-*.parquet")))


def rows_by_name(folder: Path) -> Counter[str]:
    rows = open_results(str(folder / "out")).images(None, ["uri", "status"]).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    return Counter(Path(row["uri"]).name for row in rows)


def test_a_job_outlives_a_node_and_is_not_started_twice(cluster: RealCluster, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, 24)
    job = job_of(submit(cluster, spec, "--env", "HTC_DELAY_S=1", "--json"))
    again = submit(cluster, spec)
    assert again.code == 1
    assert job in again.err
    wait_until(lambda: committed(tmp_path) >= 4)
    status = status_of(tmp_path)
    assert status is not None
    assert status.driver is not None
    assert (status.state, status.driver.job) == ("running", job)
    cluster.kill_node(0)
    followed = htc("logs", job, "-f", "--address", cluster.url)
    assert followed.code == 0
    assert "(complete)" in followed.out
    assert "Shards to be done again" in followed.out
    # The driver reports it in one line; Ray's page of advice is not shown.
    assert "Raylet is terminated" not in followed.out
    assert rows_by_name(tmp_path) == {f"image-{number:03d}.png": 1 for number in range(24)}
    reported = json.loads(htc("status", job, "--address", cluster.url, "--json").out)
    assert (reported["job"]["phase"], reported["job"]["exit_code"], reported["run"]["state"]) == (
        "succeeded",
        0,
        "complete",
    )
    assert not (tmp_path / "out" / "runs" / reported["run"]["run"] / "progress.json").exists()


def test_a_job_that_is_stopped_is_resumed_by_the_same_submission(cluster: RealCluster, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, 12)
    job = job_of(submit(cluster, spec, "--env", "HTC_DELAY_S=1", "--json"))
    wait_until(lambda: committed(tmp_path) >= 2)
    stopped = htc("stop", job, "--address", cluster.url)
    assert (stopped.code, stopped.out) == (0, f"The job {job} was stopped; submit it again to resume.\n")
    status = status_of(tmp_path)
    assert status is not None
    assert status.state == "interrupted"
    assert 0 < status.images_done < 12
    resumed = submit(cluster, spec, "--wait")
    assert resumed.code == 0, resumed.err
    assert f"Resuming run {status.run}: " in resumed.err
    assert rows_by_name(tmp_path) == {f"image-{number:03d}.png": 1 for number in range(12)}
    listed = json.loads(htc("list", "--address", cluster.url, "--json").out)
    phases = [each["phase"] for each in listed if each["output"] == str(tmp_path / "out")]
    assert phases == ["succeeded", "stopped"]
