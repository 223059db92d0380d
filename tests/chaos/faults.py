"""Faults: deaths, changing input, images that kill; what each does in a round, and how the round must end."""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Literal

from tests.chaos.checks import Expected
from tests.chaos.cluster import two_nodes
from tests.chaos.input import REPLACED, SMALLER
from tests.chaos.plan import Plan, Strike
from tests.chaos.round import PLANNED, SLOW, Play, Round, inject, wait
from tests.chaos.scene import HungError
from tests.chaos.store_faults import storm
from tests.support.servers.fault_proxy import Fault

DIED = r"Worker \d+: the worker died"
PARTS = ("/instances/run=", "/images/run=")
# From the driver's last call to its workers to its end, on a busy core; a generous guess.
LAST_QUESTION_S = 3.0
MOMENTS: tuple[Literal["before", "after"], ...] = ("before", "after")
# In the order in which they are written; a driver killed there leaves a run at each of its stages.
DRIVER_WRITES = {
    "the manifest": r"/manifest/part-",
    "run.json": r"/run\.json",
    "instances": PARTS[0],
    "images": PARTS[1],
    "the summary": r"/summary\.json",
}


def worker_killed(it: Round) -> Expected:
    """SIGKILL to a worker at any instant after its process has started."""
    it.scene.start(SLOW)
    it.scene.wait_for_log(PLANNED)
    wait(it.scene, it.random.uniform(0.0, 0.6) * it.run_s)
    it.scene.wait_until(
        lambda: not it.scene.is_running or it.scene.kill_a_worker(it.random.choice), "no worker started"
    )
    it.scene.end()
    return Expected(says=(DIED,))


def worker_killed_at_write(it: Round) -> Expected:
    """SIGKILL to the worker that writes, before or after one of a shard's two parts."""
    it.scene.run(_plan_of_strike(it, "writer", it.random.choice(MOMENTS), it.random.choice(PARTS)))
    return Expected(says=(DIED,))


def driver_killed(it: Round) -> Expected:
    """SIGKILL to the driver at any instant; the same command resumes at once."""
    it.scene.start(SLOW)
    limit_s = it.random.uniform(0.0, it.run_s)
    wait(it.scene, limit_s)
    if it.scene.is_running:
        it.scene.kill_driver()
    it.scene.run_until_done(SLOW, most=2)
    return Expected(commands=2)


def driver_killed_at(moment: Literal["before", "after"], keys: str) -> Play:
    """SIGKILL to the driver before or after a certain write of the driver or of a worker; the same command resumes."""

    def play(it: Round) -> Expected:
        it.scene.run_until_done(_plan_of_strike(it, "driver", moment, keys), most=2)
        if it.scene.exit_codes[0] != -signal.SIGKILL:
            raise HungError("the driver was never killed")
        return Expected(commands=2)

    return play


DRIVER_DEATHS = {
    f"{moment} {name}": driver_killed_at(moment, keys)
    for (name, keys), moment in itertools.product(DRIVER_WRITES.items(), MOMENTS)
}


def raylet_killed(it: Round) -> Expected:
    """SIGKILL to the second node of a cluster of two, while single objects are refused once.

    The node's worker cannot be replaced, because no cores are left for it. Shards that failed on the other worker must
    be retried there. The kill comes at any instant of the work, the last shards included: the log must name the death
    each time.
    """
    if it.proxy is not None:
        it.proxy.inject([Fault("forbidden", 0.3, ("GET",), "/in/", first=1)])
    slow, it.scene.flags = Plan(delay_s=1.0), ("--batch-size", "1")
    environment = it.scene.prepare(slow)
    with two_nodes(it.scene.ray_folder, environment) as cluster:
        it.scene.environment = {**it.scene.environment, "RAY_ADDRESS": cluster.address}
        it.scene.start(slow)
        # By then both workers are working.
        it.scene.wait_for_log(r"[1-9]\d*/\d+ images, ")
        wait(it.scene, it.random.uniform(0.0, 7.0))
        os.kill(cluster.raylet_pid, signal.SIGKILL)
        killed_at = time.monotonic()
        it.scene.end()
        left_s = time.monotonic() - killed_at
    # A driver whose last shard is committed calls its workers once more, and then does not notice any death.
    return Expected(says=(r"Worker \d+: ",) if left_s > LAST_QUESTION_S else ())


def object_deleted(it: Round) -> Expected:
    """An input object is deleted after it was listed."""
    it.scene.start(SLOW)
    it.scene.wait_for_log(PLANNED)
    it.store.delete(REPLACED)
    it.scene.end()
    return Expected(changed={REPLACED: {"status": "missing", "instances": 0}})


def object_replaced(it: Round) -> Expected:
    """An input object is replaced by another image after it was listed; its row is that of the new one."""
    it.scene.start(SLOW)
    it.scene.wait_for_log(PLANNED)
    it.store.replace(REPLACED)
    it.scene.end()
    height, width = SMALLER
    return Expected(changed={REPLACED: {"status": "ok", "height": height, "width": width, "changed": True}})


def poison_segfault(it: Round) -> Expected:
    """One image kills every process that segments it; its row has the reason and all others are ok."""
    it.scene.run(Plan(delay_s=0.02, poison="segfault"))
    return Expected(says=(DIED,), changed={"poison.png": {"status": "failed", "instances": 0}})


def poison_hang(it: Round) -> Expected:
    """One image hangs in the model; its worker is ended, its row has the reason and all others are ok."""
    spec = it.scene.folder / "spec.yaml"
    it.scene.folder.mkdir(parents=True, exist_ok=True)
    spec.write_text("retry: {image_timeout_s: 8.0}\n")
    it.scene.flags = ("--spec", str(spec))
    it.scene.run(Plan(delay_s=0.02, poison="hang"))
    return Expected(changed={"poison.png": {"status": "failed", "instances": 0}})


def object_store_pressure(it: Round) -> Expected:
    """Ray's object store is filled beyond its size during the run."""
    it.scene.run(Plan(delay_s=SLOW.delay_s, pressure_mib=320))
    return Expected()


def everything(it: Round) -> Expected:
    """Workers and drivers die at random while the store fails in every way."""
    if it.proxy is not None:
        inject(it, storm(it.random))
    strike = None
    if it.random.random() < 0.5:
        victim: Literal["driver", "writer"] = it.random.choice(["driver", "writer"])
        strike = _strike(it, victim, it.random.choice(MOMENTS), it.random.choice([*DRIVER_WRITES.values()]))
    plan = Plan(SLOW.delay_s, strike=strike, pressure_mib=it.random.choice([0, 0, 0, 320]))
    it.scene.start(plan)
    if it.random.random() < 0.6:
        wait(it.scene, it.random.uniform(0.3, 1.0) * it.run_s)
        it.scene.kill_a_worker(it.random.choice)
    if it.random.random() < 0.6:
        wait(it.scene, it.random.uniform(0.0, 0.6) * it.run_s)
        if it.scene.is_running:
            it.scene.kill_driver()
    if it.scene.is_running or len(it.scene.exit_codes) == 0:
        it.scene.end()
    if it.scene.exit_codes[-1] != 0:
        it.scene.run_until_done(plan, most=4)
    return Expected(commands=4)


def _plan_of_strike(
    it: Round, victim: Literal["driver", "writer"], moment: Literal["before", "after"], keys: str
) -> Plan:
    return Plan(SLOW.delay_s, strike=_strike(it, victim, moment, keys))


def _strike(it: Round, victim: Literal["driver", "writer"], moment: Literal["before", "after"], keys: str) -> Strike:
    return Strike(victim, moment, keys, str(Path(it.scene.folder) / "struck"))
