"""A worker's shards while the S3 server is killed and comes back, and while its images change."""

import io
import threading
import time

import pytest
from PIL import Image

from pipeline.driver.run_job import worker_settings
from pipeline.job_spec.job import load_spec
from pipeline.messages import Assignment, ShardResult
from pipeline.output.results import open_results
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from pipeline.worker.worker import Worker
from tests.support.fakes.models import LoadFake
from tests.support.servers.s3_server import S3Server

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.slow]
IMAGES, SHARD_IMAGES = 24, 4


def image(height: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (48, height), (height, 0, 0)).save(sink, format="PNG")
    return sink.getvalue()


def test_no_attempt_is_lost_to_a_store_that_comes_back(s3_server: S3Server, s3_bucket: str) -> None:
    files = s3_server.files()
    files.pipe({f"{s3_bucket[5:]}/in/{number:02d}.png": image(32) for number in range(IMAGES)})
    spec = load_spec(
        None,
        {
            "input.uri": f"{s3_bucket}/in",
            "output.uri": f"{s3_bucket}/out",
            "storage.endpoint_url": s3_server.endpoint_url,
            "storage.patience_s": 240.0,
            "model.preset": "htc_lite0_fpn",
            "model.weights": "untrained",
            "compute.shard_images": SHARD_IMAGES,
        },
    )
    run = open_run(spec, {"preset": "fake"}, Storage(spec.storage), run="r")
    while not run.is_planned:
        time.sleep(0.05)
    files.pipe(f"{s3_bucket[5:]}/in/{IMAGES - 2}.png", image(40))
    files.rm_file(f"{s3_bucket[5:]}/in/{IMAGES - 1}.png")
    worker = Worker(worker_settings(spec, "r", LoadFake()))
    worker.start()
    reports = [worker.run_shard(run.read_shard(0), Assignment(0, 1, False))]

    def run_the_rest() -> None:
        for index in range(1, run.shard_count):
            reports.append(worker.run_shard(run.read_shard(index), Assignment(index, 1, False)))

    # Away before the next shard is begun, so that no luck of timing lets it pass.
    s3_server.kill()
    thread = threading.Thread(target=run_the_rest)
    thread.start()
    s3_server.start()
    thread.join()
    assert [type(report) for report in reports] == [ShardResult] * (IMAGES // SHARD_IMAGES)
    rows = open_results(spec.output.uri, Storage(spec.storage)).images("r").to_pylist()
    assert [(row["status"], row["height"], row["changed"]) for row in rows] == [
        *[("ok", 32, False)] * (IMAGES - 2),
        ("ok", 40, True),
        ("missing", None, None),
    ]
