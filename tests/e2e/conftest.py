"""The local Ray that the tests of a file share."""

import os
from collections.abc import Iterator

import pytest

from pipeline.cluster.connection import ray_cluster
from pipeline.job_spec.job import ComputeSection
from tests.support.paths import ROOT


@pytest.fixture(scope="session", autouse=True)
def _fakes_are_importable_by_workers() -> Iterator[None]:
    """Workers inherit the environment of the process that starts Ray, and unpickle the fakes by name."""
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), former]))
    yield
    if former is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = former


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One local Ray for a module: starting it takes longer than the runs do."""
    with ray_cluster(ComputeSection(workers=2, cpus_per_worker=1.0), shards=2):
        yield
