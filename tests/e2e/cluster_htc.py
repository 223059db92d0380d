"""The `htc` of a cluster's image, with a model that needs no network and takes HTC_DELAY_S per batch."""

import functools
import os

from fake_models import LoadFake

from jobs.cli.main import main
from pipeline.driver import run as driver

if __name__ == "__main__":
    driver.run = functools.partial(driver.run, load_model=LoadFake(delay_s=float(os.environ.get("HTC_DELAY_S", "0"))))
    main()
