"""A cluster that asks for a token: no word without it, and with it a job that brings its own code along."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_models import write_images
from real_cluster import RealCluster, htc, real_cluster

from pipeline.tables import open_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with real_cluster(0, TOKEN) as running:
        yield running


def test_the_wrong_token_and_none_are_one_sentence(cluster: RealCluster) -> None:
    none = htc("list", "--address", cluster.url)
    wrong = htc("list", "--address", cluster.url, environment={**TOKEN, "RAY_AUTH_TOKEN": "f" * 64})
    advice = "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in ~/.ray/auth_token."
    assert (none.code, none.out) == (1, "")
    assert none.err == f"The cluster at {cluster.url} asks for a token: {advice}\n"
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err == f"The cluster at {cluster.url} does not take this machine's token: {advice}\n"


def test_a_job_brings_its_own_code_and_no_word_of_the_token(cluster: RealCluster, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    model = ["--model", "htc_lite0_fpn", "--weights", "untrained"]
    done = htc("submit", "--address", cluster.url, *places, *model, "--wait", environment=TOKEN)
    assert done.code == 0, done.err
    assert "python -m jobs.cluster_start run --spec job.yaml" in done.err
    assert TOKEN["RAY_AUTH_TOKEN"] not in done.out + done.err
    rows = open_results(str(tmp_path / "out")).images(None, ["status"]).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"]
    (job,) = json.loads(htc("list", "--address", cluster.url, "--json", environment=TOKEN).out)
    assert (job["phase"], job["exit_code"]) == ("succeeded", 0)
    again = htc("submit", "--address", cluster.url, *places, *model, "--wait", environment=TOKEN)
    assert again.code == 0
    assert "is complete already; nothing to do." in again.err
