"""Runs through the whole driver with workers in this process; as a program, a driver to kill.

python local_run.py OVERRIDES SECONDS_PER_BATCH: the spec's overrides as JSON.
"""

import json
import sys
from collections.abc import Mapping

from pipeline.driver.progress import LineProgress, SilentProgress
from pipeline.driver.run_job import run
from pipeline.job_spec.job import load_spec
from pipeline.runs.summary import RunSummary
from tests.support.fakes.in_process_pool import in_process
from tests.support.fakes.models import Deed, LoadFake, Size


class Notes(SilentProgress):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


def run_locally(overrides: Mapping[str, object], deeds: Mapping[Size, Deed] | None = None) -> tuple[RunSummary, Notes]:
    """Run one job; the model is a fake one that does some `deeds`."""
    notes = Notes()
    spec = load_spec(None, overrides)
    return run(spec, progress=notes, load_model=LoadFake(deeds or {}), open_pool=in_process()), notes


def main() -> int:
    """Run one job slowly."""
    spec = load_spec(None, json.loads(sys.argv[1]))
    load_model = LoadFake(delay_s=float(sys.argv[2]))
    progress = LineProgress(sys.stdout, every_s=0.0)
    return run(spec, progress=progress, load_model=load_model, open_pool=in_process()).exit_code


if __name__ == "__main__":
    sys.exit(main())
