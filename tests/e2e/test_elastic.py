"""Nodes that come late, are drained or are lost, on a real cluster of several raylets: what it costs the run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.output.results import open_results
from tests.support.fakes.models import write_images
from tests.support.paths import PROGRAMS, ROOT
from tests.support.servers.real_cluster import COMMAND_S, RealCluster, real_cluster, wait_until

# One cluster for the file; its nodes go one after the other.
pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

IMAGES = 50


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with real_cluster(1, {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}) as running:
        yield running


@contextmanager
def running(cluster: RealCluster, folder: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    """A run of one image a shard, each of which takes a second until `ended` waits for the run."""
    write_images(folder / "in", IMAGES)
    (folder / "slow").touch()
    command = [sys.executable, str(PROGRAMS / "cluster_htc.py"), "run", str(folder / "in"), str(folder / "out")]
    weights = ["--model", "htc_lite0_fpn", "--weights", "untrained", "--shard-images", "1"]
    slow = {"HTC_DELAY_S": "1", "HTC_SLOW_WHILE": str(folder / "slow")}
    settings = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [*command, *weights, *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings, **slow},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def committed(folder: Path) -> int:
    return len(list((folder / "out" / "images").rglob("part-*.parquet")))


def ended(process: "subprocess.Popen[str]", folder: Path) -> tuple[str, Mapping[str, Any], list[int]]:
    """Wait for the run; return what it printed, its summary, and the attempts of the images that took several."""
    (folder / "slow").unlink()
    _, printed = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, printed
    (summary,) = (folder / "out" / "runs").glob("*/summary.json")
    rows = open_results(str(folder / "out")).images(None, ["status", "attempts"]).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * IMAGES
    return printed, json.loads(summary.read_text()), [row["attempts"] for row in rows if row["attempts"] > 1]


def test_workers_join_late_and_the_loss_of_half_of_the_nodes_costs_the_shards_in_flight(
    cluster: RealCluster, tmp_path: Path
) -> None:
    with running(cluster, tmp_path, "--workers", "1:2") as process:
        wait_until(lambda: committed(tmp_path) >= 2)
        node = cluster.add_node()
        wait_until(lambda: cluster.is_working(node))
        cluster.kill_node(node)
        printed, summary, attempts = ended(process, tmp_path)
    assert "its node is gone" in printed or "raylet of its node died" in printed
    assert (summary["workers_lost"], summary["statuses"]) == (1, {"ok": IMAGES})
    # At most the two shards that the lost worker held, and each once more; nothing was bisected or left out.
    assert len(attempts) <= 2
    assert set(attempts) <= {2}
    assert "left out" not in printed


def test_a_drained_node_is_left_in_time(cluster: RealCluster, tmp_path: Path) -> None:
    node = cluster.add_node()
    with running(cluster, tmp_path, "--workers", "2") as process:
        wait_until(lambda: committed(tmp_path) >= 4 and cluster.is_working(node))
        cluster.drain_node(node, seconds=60)
        # Ray ends an idle node that is drained.
        wait_until(lambda: cluster.is_gone(node))
        printed, summary, attempts = ended(process, tmp_path)
    assert "its node is being drained and goes in" in printed
    assert (summary["workers_lost"], summary["retries"]) == (0, 0)
    # The shard that was being done there was finished, and the one behind it given back before it was begun.
    assert attempts == []
