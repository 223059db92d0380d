"""The `htc` of a cluster's image, with a model that needs no network.

It takes HTC_DELAY_S per batch; where HTC_SLOW_WHILE names a file, only while there is one.
"""

import functools
import os

from jobs.cli.program import main
from pipeline.driver import run_job as driver
from tests.support.fakes.models import LoadFake

if __name__ == "__main__":
    load_model = LoadFake(
        delay_s=float(os.environ.get("HTC_DELAY_S", "0")), slow_while=os.environ.get("HTC_SLOW_WHILE", "")
    )
    driver.run = functools.partial(driver.run, load_model=load_model)
    main()
