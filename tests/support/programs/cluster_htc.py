"""The `htc` of a cluster's image, with a model that needs no network.

It takes HTC_DELAY_S per batch; where HTC_SLOW_WHILE names a file, only while there is one.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from htc_model.structures import ImageBatch, RawDetections
from jobs.cli.program import main
from pipeline.driver import run_job as driver
from pipeline.job_spec.job import ModelSection
from tests.support.fakes.models import FakeModel, LoadFake


@dataclass(frozen=True)
class LoadSlow:
    """Loads a model that is slow while a file is there."""

    path: str
    delay_s: float

    def __call__(self, section: ModelSection) -> FakeModel:
        slow, fast = (LoadFake(delay_s=seconds)(section) for seconds in (self.delay_s, 0.0))
        path = Path(self.path)

        class Model(FakeModel):
            def infer(self, batch: ImageBatch) -> list[RawDetections]:
                return (slow if path.exists() else fast).infer(batch)

        return Model(fast.config)


def load_model(environment: Mapping[str, str]) -> LoadSlow | LoadFake:
    """Return what the variables ask for."""
    delay_s = float(environment.get("HTC_DELAY_S", "0"))
    path = environment.get("HTC_SLOW_WHILE")
    return LoadSlow(path, delay_s) if path else LoadFake(delay_s=delay_s)


if __name__ == "__main__":
    driver.run = functools.partial(driver.run, load_model=load_model(os.environ))
    main()
