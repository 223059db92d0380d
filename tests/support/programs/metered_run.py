"""A run on a Ray of its own whose agent collects metrics twice a second: `metered_run.py INPUT OUTPUT MARKS`.

Prints the port that Prometheus would scrape, then runs; the second of two sizes kills its worker once.
"""

import sys

import ray

from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.job_spec.job import load_spec
from tests.support.fakes.models import LoadFake


def main(source: str, target: str, marks: str) -> int:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 500},
    )
    print(ray.nodes()[0]["MetricsExportPort"], flush=True)
    given = {
        "input.uri": source,
        "output.uri": target,
        "model.weights": "untrained",
        "model.preset": "htc_lite0_fpn",
        "compute.workers": 1,
        "compute.shard_images": 4,
        "compute.batch_size": 2,
        "retry.max_error_rate": 1.0,
    }
    load_model = LoadFake(deeds={(33, 48): "kill_once"}, delay_s=0.5, marks=marks)
    summary = run(load_spec(None, given), run="metered", progress=SilentProgress(), load_model=load_model)
    # Waits until the last numbers are collected.
    sys.stdin.readline()
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
