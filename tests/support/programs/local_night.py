"""Nights through the whole driver with workers in this process; as a program, a driver to be killed.

python local_night.py OVERRIDES SECONDS_PER_BATCH: the spec's overrides as JSON.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

import pipeline.driver.session
import pipeline.driver.worker_pool
from pipeline.driver.progress import LineProgress, SilentProgress
from pipeline.driver.run_job import run
from pipeline.job_spec.job import ComputeSection, load_spec
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.summary import RunSummary
from tests.support.fakes.in_process_pool import InProcessPool
from tests.support.fakes.models import Deed, LoadFake, Size


class Notes(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


@contextmanager
def one_worker(compute: ComputeSection, *, shards: int | None) -> Iterator[WorkerPlan]:
    yield WorkerPlan(1, 1.0, 0.0)


@contextmanager
def without_ray() -> Iterator[None]:
    """Do the work in this process for the time of a block."""
    with pytest.MonkeyPatch.context() as patch:
        InProcessPool.forget()
        patch.setattr(pipeline.driver.worker_pool, "WorkerPool", InProcessPool)
        patch.setattr(pipeline.driver.session, "ray_cluster", one_worker)
        yield


def run_night(overrides: Mapping[str, object], deeds: Mapping[Size, Deed] | None = None) -> tuple[RunSummary, Notes]:
    """Run one night; the model is a fake one that does some `deeds`."""
    notes = Notes()
    with without_ray():
        summary = run(load_spec(None, overrides), progress=notes, load_model=LoadFake(deeds or {}))
    return summary, notes


def main() -> int:
    """Run one night, slowly."""
    spec = load_spec(None, json.loads(sys.argv[1]))
    with without_ray():
        progress = LineProgress(sys.stdout, every_s=0.0)
        return run(spec, progress=progress, load_model=LoadFake(delay_s=float(sys.argv[2]))).exit_code


if __name__ == "__main__":
    sys.exit(main())
