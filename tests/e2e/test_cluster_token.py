"""A cluster that requires a token; a job with its own code and weights, and one that may not read its input."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from htc_model.weights.model_zoo import bundled_weights
from pipeline.output.results import open_results
from tests.support.fakes.models import write_images
from tests.support.servers.real_cluster import RealCluster, htc, real_cluster
from tests.support.servers.s3_server import WRONG, S3Server

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.slow]
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
    assert wrong.err == f"The cluster at {cluster.url} does not accept this machine's token: {advice}\n"


def test_a_job_brings_its_own_code_and_never_shows_the_token(cluster: RealCluster, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    # As trained on a laptop: the file is sent with the job, and names its network.
    weights = shutil.copy(bundled_weights(), tmp_path / "mine.safetensors")
    model = ["--weights", str(weights)]
    done = htc("submit", "--address", cluster.url, *places, *model, "--wait", environment=TOKEN)
    assert done.code == 0, done.err
    assert "python -m jobs.entrypoints.cluster_job run --spec job.yaml" in done.err
    assert TOKEN["RAY_AUTH_TOKEN"] not in done.out + done.err
    rows = open_results(str(tmp_path / "out")).images(None, ["status"]).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"]
    (job,) = json.loads(htc("list", "--address", cluster.url, "--json", environment=TOKEN).out)
    assert (job["phase"], job["exit_code"]) == ("succeeded", 0)
    again = htc("submit", "--address", cluster.url, *places, *model, "--wait", environment=TOKEN)
    assert again.code == 0
    assert "is complete already; nothing to do." in again.err


def test_a_bucket_that_the_cluster_may_not_read_is_reported_before_a_worker_starts(
    cluster: RealCluster, tmp_path: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    places = ["--input", s3_bucket, "--output", str(tmp_path / "out"), "--endpoint-url", s3_server.endpoint_url]
    key = [flag for name, value in WRONG.environment().items() for flag in ("--env", f"{name}={value}")]
    refused = htc("submit", "--address", cluster.url, *places, *key, "--wait", environment=TOKEN)
    assert refused.code == 2
    (sentence,) = [line for line in refused.err.splitlines() if line.startswith("On the cluster's node ")]
    assert f"the input cannot be listed: No permission to list {s3_bucket}" in sentence
    assert WRONG.secret not in refused.err + refused.out
    # There is neither a run nor a folder for one.
    assert not (tmp_path / "out").exists()
