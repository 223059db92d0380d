"""Every fault that one can cause on purpose: what it does during a round, and how the round should end."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from chaos_checks import Expected
from chaos_input import REPLACED, SMALLER, Store
from chaos_plan import Plan, Strike
from chaos_scene import Scene
from fault_proxy import Fault, FaultProxy, Kind
from s3_server import S3Server

# Long enough that a run has shards in every state when something happens to it.
SLOW = Plan(delay_s=0.15)
PLANNED = r"images in \d+ shards|Resuming run"
DIED = r"Worker \d+: the worker died"
PARTS = ("/instances/run=", "/images/run=")
# In the order of their writing; a driver killed there leaves a run at each of its stages.
DRIVER_WRITES = (r"/manifest/part-", r"/run\.json", *PARTS, r"/summary\.json")
MOMENTS: tuple[Literal["before", "after"], ...] = ("before", "after")


@dataclass(frozen=True)
class Round:
    """What a fault has at hand.

    scene: where the command runs. store: the input, to change it. proxy, server: before the store, and the store;
        None for local files and where there is none.
    random: the round's own dice. is_short: keep waits short.
    run_s: how long the reference run took.
    """

    scene: Scene
    store: Store
    proxy: FaultProxy | None
    server: S3Server | None
    random: Random
    is_short: bool = False
    run_s: float = 20.0


Play = Callable[[Round], Expected]


def worker_killed(it: Round) -> Expected:
    """SIGKILL to a worker, at some instant after the workers have begun."""
    it.scene.start(SLOW)
    it.scene.wait_for_log(PLANNED)
    it.scene.wait_until(lambda: not it.scene.is_running or it.scene.kill_a_worker(it.random.choice), "no worker came")
    it.scene.end()
    return Expected(says=(DIED,))


def worker_killed_at_write(it: Round) -> Expected:
    """SIGKILL to the worker that writes, before or after one of a shard's two parts."""
    it.scene.run(_plan_of_strike(it, "writer", it.random.choice(MOMENTS), it.random.choice(PARTS)))
    return Expected(says=(DIED,))


def driver_killed(it: Round) -> Expected:
    """SIGKILL to the driver at any instant, then the same command at once."""
    it.scene.start(SLOW)
    limit_s = it.random.uniform(0.0, it.run_s)
    _wait(it.scene, limit_s)
    if it.scene.is_running:
        it.scene.kill_driver()
    it.scene.run_until_done(SLOW, most=2)
    return Expected(commands=2)


def driver_killed_at_write(it: Round) -> Expected:
    """SIGKILL to the driver before or after a write of its own or of a worker's, then the same command at once."""
    plan = _plan_of_strike(it, "driver", it.random.choice(MOMENTS), it.random.choice(DRIVER_WRITES))
    it.scene.run_until_done(plan, most=2)
    return Expected(commands=2)


def disk_full(it: Round) -> Expected:
    """No space left for any write from some instant on; then there is some, and the same command."""
    mark = it.scene.folder / "full"
    plan = Plan(delay_s=SLOW.delay_s, full_disk=str(mark))
    it.scene.start(plan)
    it.scene.wait_for_log(PLANNED)
    mark.touch()
    it.scene.end()
    mark.unlink()
    it.scene.run_until_done(SLOW, most=2)
    return Expected(says=("No space left",), commands=2)


def object_deleted(it: Round) -> Expected:
    """An input object goes away after it was listed."""
    it.scene.start(SLOW)
    it.scene.wait_for_log(PLANNED)
    it.store.delete(REPLACED)
    it.scene.end()
    return Expected(changed={REPLACED: {"status": "missing", "instances": 0}})


def object_replaced(it: Round) -> Expected:
    """An input object becomes another picture after it was listed; it counts as it is now."""
    it.scene.start(SLOW)
    it.scene.wait_for_log(PLANNED)
    it.store.replace(REPLACED)
    it.scene.end()
    height, width = SMALLER
    return Expected(changed={REPLACED: {"status": "ok", "height": height, "width": width}})


def poison_segfault(it: Round) -> Expected:
    """One image kills every process that looks at it; its row says so and all others are ok."""
    it.scene.run(Plan(delay_s=0.02, poison="segfault"))
    return Expected(says=(DIED,), changed={"poison.png": {"status": "failed", "instances": 0}})


def object_store_pressure(it: Round) -> Expected:
    """Somebody fills Ray's object store beyond its size while the run goes on."""
    it.scene.run(Plan(delay_s=SLOW.delay_s, pressure_mib=320))
    return Expected()


def store_fault(kind: Kind, rate: float, *, keys: str = "", methods: tuple[str, ...] = ("GET", "HEAD", "PUT")) -> Play:
    """The store answers some requests in this way."""

    def play(it: Round) -> Expected:
        _inject(it, [Fault(kind, rate, methods, keys)])
        it.scene.run(SLOW)
        return Expected()

    play.__doc__ = f"{rate:.0%} of the requests meet this at the store."
    return play


def forbidden_in_the_middle(it: Round) -> Expected:
    """The store refuses some objects once, after it has granted all before."""
    fault = Fault("forbidden", 0.15, ("GET", "PUT"), "/in/|/instances/|/images/", first=1)
    _inject(it, [fault])
    it.scene.run(SLOW)
    return Expected()


def stalled(it: Round) -> Expected:
    """The store takes half a minute over a few objects."""
    _inject(it, [Fault("stall", 0.3, ("GET", "PUT"), "/in/|/instances/", stall_s=4 if it.is_short else 30, limit=3)])
    it.scene.run(SLOW)
    return Expected()


def timed_out(it: Round) -> Expected:
    """The store answers one object later than the client's patience of a minute."""
    _inject(it, [Fault("stall", 1.0, ("GET",), "/in/", stall_s=75, limit=1)])
    it.scene.run(SLOW)
    return Expected()


def store_restarted(it: Round) -> Expected:
    """The store is killed as by a power cut, and started again."""
    if it.server is None:
        raise _no_store()
    it.scene.endpoint_url = it.server.endpoint_url
    it.scene.start(SLOW)
    it.scene.wait_for_log(r"images, ")
    it.server.kill()
    it.server.start()
    it.scene.end()
    return Expected()


def everything(it: Round) -> Expected:
    """Workers and drivers die at random while the store fails in every way."""
    if it.proxy is not None:
        _inject(it, list(storm(it.random)))
    strike = None
    if it.random.random() < 0.5:
        victim: Literal["driver", "writer"] = it.random.choice(["driver", "writer"])
        strike = _strike(it, victim, it.random.choice(MOMENTS), it.random.choice(DRIVER_WRITES))
    plan = Plan(SLOW.delay_s, strike=strike, pressure_mib=it.random.choice([0, 0, 0, 320]))
    it.scene.start(plan)
    if it.random.random() < 0.6:
        _wait(it.scene, it.random.uniform(0.3, 1.0) * it.run_s)
        it.scene.kill_a_worker(it.random.choice)
    if it.random.random() < 0.6:
        _wait(it.scene, it.random.uniform(0.0, 0.6) * it.run_s)
        if it.scene.is_running:
            it.scene.kill_driver()
    if it.scene.is_running or len(it.scene.exit_codes) == 0:
        it.scene.end()
    if it.scene.exit_codes[-1] != 0:
        it.scene.run_until_done(plan, most=4)
    return Expected(commands=4)


def storm(random: Random) -> list[Fault]:
    """All of the store's faults at once, each seldom enough that most requests pass."""
    own = "/in/|/instances/|/images/"
    return [
        Fault("error_500", random.uniform(0, 0.06)),
        Fault("slow_down", random.uniform(0, 0.06)),
        Fault("cut", random.uniform(0, 0.04)),
        Fault("lost_answer", random.uniform(0, 0.1), ("PUT",)),
        Fault("truncated", random.uniform(0, 0.06), ("GET",)),
        Fault("wrong_length", random.uniform(0, 0.06), ("GET",)),
        Fault("forbidden", random.uniform(0, 0.05), ("GET", "PUT"), own, first=1),
        Fault("request_timeout", random.uniform(0, 0.05), ("GET", "PUT"), own),
        Fault("stall", random.uniform(0, 0.05), ("GET", "PUT"), stall_s=random.choice([0.5, 3.0])),
    ]


def _inject(it: Round, faults: list[Fault]) -> None:
    if it.proxy is None:
        raise _no_store()
    it.proxy.inject(faults, seed=it.random.randrange(2**31))


def _no_store() -> OSError:
    return OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "a store's fault needs the store")


def _wait(scene: Scene, seconds: float) -> None:
    end = time.monotonic() + seconds
    scene.wait_until(lambda: not scene.is_running or time.monotonic() >= end, "waiting")


def _plan_of_strike(
    it: Round, victim: Literal["driver", "writer"], moment: Literal["before", "after"], keys: str
) -> Plan:
    return Plan(SLOW.delay_s, strike=_strike(it, victim, moment, keys))


def _strike(it: Round, victim: Literal["driver", "writer"], moment: Literal["before", "after"], keys: str) -> Strike:
    return Strike(victim, moment, keys, str(Path(it.scene.folder) / "struck"))
