"""`htc`, its workers with a model without a network: `htc_with_a_fake_model.py MARKS ARGUMENT...`.

An image of 33 x 48 kills its worker once, and one of 40 x 40 raises an error that nothing foresees.
"""

import functools
import sys
import warnings

from jobs.cli.program import main
from pipeline.driver import run_job
from tests.support.fakes.models import LoadFake


def _run_with_noise(*arguments: object, **keywords: object) -> object:
    warnings.warn("a library warns", stacklevel=1)
    sys.stderr.write("a library writes\n")
    return _run(*arguments, **keywords)


if __name__ == "__main__":
    marks = sys.argv.pop(1)
    load_model = LoadFake(deeds={(33, 48): "kill_once", (40, 40): "raise"}, marks=marks)
    _run = functools.partial(run_job.run, load_model=load_model)
    run_job.run = _run_with_noise  # type: ignore[assignment]
    main()
