"""A driver process to kill: python fake_run.py FOLDER SECONDS_PER_BATCH."""

import sys
from pathlib import Path

from pipeline.driver.progress import LineProgress
from pipeline.driver.run_job import run
from tests.support.builders.e2e_specs import spec_with
from tests.support.fakes.models import LoadFake


def main() -> int:
    folder, delay_s = Path(sys.argv[1]), float(sys.argv[2])
    summary = run(
        spec_with(folder, retry__max_error_rate=0.0, model__semantic=True, model__panoptic=True),
        progress=LineProgress(sys.stdout, every_s=1.0),
        load_model=LoadFake(delay_s=delay_s),
    )
    sys.stdout.write(f"{summary.status}: {summary.reason}\n")
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main())
