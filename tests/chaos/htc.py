"""The `htc` command with a model that needs no network, sabotaged as CHAOS_PLAN says: python htc.py run ..."""

import functools
import os
import threading
import time
from typing import Any

from jobs.cli.program import main
from pipeline.driver import run_job as driver
from tests.chaos.model import LoadContentModel
from tests.chaos.plan import ENVIRONMENT_NAME, Plan
from tests.chaos.sabotage import sabotage

BLOCK_MIB = 16


def press(pressure_mib: int) -> None:
    """Fill Ray's object store as soon as there is one, and keep the objects."""
    import numpy as np
    import ray

    while not ray.is_initialized():
        time.sleep(0.05)
    held: list[Any] = []
    for number in range(pressure_mib // BLOCK_MIB):
        held.append(ray.put(np.full(BLOCK_MIB * 2**20, number % 251, np.uint8)))
    threading.Event().wait()


if __name__ == "__main__":
    plan = Plan.from_json(os.environ[ENVIRONMENT_NAME])
    sabotage(plan, os.getpid())
    driver.run = functools.partial(driver.run, load_model=LoadContentModel(plan, os.getpid()))
    if plan.pressure_mib:
        threading.Thread(target=press, args=[plan.pressure_mib], daemon=True).start()
    main()
