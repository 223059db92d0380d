"""How many workers a machine gets, and what a death is called."""

import subprocess
import sys

import pytest
from ray import exceptions

from pipeline.cluster import describe_death, plan_workers, was_preempted, worker_deaths
from pipeline.config import ComputeSection
from pipeline.errors import RunError


@pytest.mark.parametrize(
    ("compute", "cpus", "gpus", "shards", "expected"),
    [
        (ComputeSection(), 8, 0, 100, (8, 1, 0)),
        (ComputeSection(), 8, 0, 3, (3, 1, 0)),
        (ComputeSection(cpus_per_worker=4), 9, 0, 100, (2, 4, 0)),
        (ComputeSection(cpus_per_worker=0.5), 2, 0, 100, (4, 0.5, 0)),
        (ComputeSection(cpus_per_worker=16), 8, 0, 100, (1, 16, 0)),
        (ComputeSection(workers=5), 2, 0, 100, (5, 1, 0)),
        (ComputeSection(), 32, 4, 100, (4, 8, 1)),
        (ComputeSection(), 6, 4, 100, (4, 1, 1)),
        (ComputeSection(gpus_per_worker=0.5), 16, 2, 100, (4, 4, 0.5)),
        (ComputeSection(gpus_per_worker=0.0), 16, 2, 100, (16, 1, 0)),
        (ComputeSection(), 16, 1, 1, (1, 8, 1)),
    ],
)
def test_workers_sit_on_gpus_when_there_are_any_else_on_cores(
    compute: ComputeSection, cpus: int, gpus: int, shards: int, expected: tuple[int, float, float]
) -> None:
    plan = plan_workers(compute, cpus=cpus, gpus=gpus, shards=shards)
    assert (plan.workers, plan.cpus, plan.gpus) == expected


def test_gpus_that_are_not_there_are_refused_with_the_way_out() -> None:
    with pytest.raises(RunError, match="there are 0 GPUs here; leave it out"):
        plan_workers(ComputeSection(gpus_per_worker=1.0), cpus=8, gpus=0, shards=1)


def test_every_way_to_die_is_named() -> None:
    deaths = worker_deaths()
    for error in (
        exceptions.ActorDiedError(),
        exceptions.NodeDiedError("gone"),
        exceptions.WorkerCrashedError(),
        exceptions.OutOfMemoryError("node is full"),
    ):
        assert isinstance(error, deaths)
    assert was_preempted(exceptions.NodeDiedError("gone"))
    assert not was_preempted(exceptions.ActorDiedError())


def test_a_death_is_described_in_one_line() -> None:
    text = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) ..."
    )
    assert describe_death(RuntimeError(text)) == (
        "the worker died: Worker unexpectedly exits with a connection error code 2. End of file"
    )


def test_the_driver_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import pipeline.driver, pipeline.fleet, pipeline.session, pipeline.tally\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
