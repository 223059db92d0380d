"""A spread ensemble on Ray: the rows of one worker, also when a member's process is killed meanwhile."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from shutil import copy

import psutil
import pytest

from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.job_spec.job import JobSpec
from tests.support.builders.e2e_specs import image_rows, instance_rows, spec_with, stable
from tests.support.fakes.in_process_pool import in_process
from tests.support.paths import PHOTOS
from tests.support.processes import command_of
from tests.support.servers.real_cluster import wait_until

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]
NO_NETWORK = {"model.preset": None, "model.weights": None}
MEMBERS = ["demo", "htc_lite0_fpn=untrained*0.5"]


def spec_of(folder: Path, **options: object) -> JobSpec:
    if not (folder / "in").exists():
        (folder / "in").mkdir()
        for photo in sorted(PHOTOS.glob("*.jpg"))[:4]:
            copy(photo, folder / "in")
    keys = NO_NETWORK | {"model.ensemble.members": MEMBERS, "output.uri": str(folder / "out")}
    return spec_with(folder, **(keys | options), compute__workers=1, compute__shard_images=2)


def member_processes() -> list[psutil.Process]:
    """Those of this test's own Ray: descendants of its raylet have this process's folder in their environment."""
    found = []
    for process in psutil.process_iter():
        # A process may end between two questions.
        with suppress(psutil.Error):
            if (
                command_of(process).startswith("ray::MemberActor")
                and os.environ["RAY_TMPDIR"] in process.environ().values()
            ):
                found.append(process)
    return found


def test_spread_members_give_the_rows_of_one_worker_also_when_one_is_killed(tmp_path: Path) -> None:
    wanted = spec_of(tmp_path, **{"output.uri": str(tmp_path / "wanted")})
    assert run(wanted, progress=SilentProgress(), open_pool=in_process()).exit_code == 0
    spec = spec_of(tmp_path, **{"model.ensemble.spread": True})
    killed: list[int] = []
    is_over = threading.Event()

    def kill_one() -> None:
        while not is_over.is_set() and not killed:
            # Once members have worked, their names are those of the step.
            for process in member_processes():
                if "step" in command_of(process):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        killed.append(process.pid)
                    break
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        summary = run(spec, progress=SilentProgress())
    finally:
        is_over.set()
        killer.join()
    assert killed
    assert (summary.status, summary.exit_code, summary.workers_lost) == ("complete", 0, 1)
    assert stable(image_rows(spec)) == stable(image_rows(wanted))
    assert stable(instance_rows(spec)) == stable(instance_rows(wanted))
    wait_until(lambda: not member_processes())
