"""One round of a fault, and helpers that all faults share."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.checks import Expected
from tests.chaos.input import Store
from tests.chaos.plan import Plan
from tests.chaos.scene import Scene
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.servers.s3_server import S3Server

# Long enough that a run has shards in every state when something happens to it.
SLOW = Plan(delay_s=0.15)
# In the log once there are shards.
PLANNED = r"images in \d+ shards|Resuming run"


@dataclass(frozen=True)
class Round:
    """What a fault can use.

    scene: where the command runs. store: the input, to change it. proxy, server: before the store, and the store;
        None for local files and where there is none.
    random: the round's random numbers. is_short: keep waits short.
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


def inject(it: Round, faults: list[Fault]) -> None:
    """Let the store fail in these ways from now on."""
    if it.proxy is None:
        raise no_store()
    it.proxy.inject(faults, seed=it.random.randrange(2**31))


def no_store() -> OSError:
    """Return the error of a store's fault without a store."""
    return OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "a store's fault needs the store")


def wait(scene: Scene, seconds: float) -> None:
    """Wait, as long as the command runs."""
    end = time.monotonic() + seconds
    scene.wait_until(lambda: not scene.is_running or time.monotonic() >= end, "waiting")
