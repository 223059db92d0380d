"""Faults of the store, through the proxy before it, and the death of the store itself."""

import time
from random import Random

from tests.chaos.checks import Expected
from tests.chaos.round import SLOW, Play, Round, inject, no_store
from tests.support.servers.fault_proxy import Fault, Kind

OWN = "/in/|/instances/|/images/"


def storm(random: Random) -> list[Fault]:
    """Return all of the store's faults, each rare enough that most requests succeed."""
    return [
        Fault("error_500", random.uniform(0, 0.06)),
        Fault("slow_down", random.uniform(0, 0.06)),
        Fault("cut", random.uniform(0, 0.04)),
        Fault("lost_answer", random.uniform(0, 0.1), ("PUT",)),
        Fault("truncated", random.uniform(0, 0.06), ("GET",)),
        Fault("wrong_length", random.uniform(0, 0.06), ("GET",)),
        Fault("forbidden", random.uniform(0, 0.05), ("GET", "PUT"), OWN, first=1),
        Fault("request_timeout", random.uniform(0, 0.05), ("GET", "PUT"), OWN),
        Fault("stall", random.uniform(0, 0.05), ("GET", "PUT"), stall_s=random.choice([0.5, 3.0])),
    ]


def store_storm(it: Round) -> Expected:
    """The store fails in every way at once, and no process dies."""
    inject(it, storm(it.random))
    it.scene.run(SLOW)
    return Expected(is_met=True)


def store_fault(kind: Kind, rate: float, *, keys: str = "", methods: tuple[str, ...] = ("GET", "PUT")) -> Play:
    """Return a fault in which the store answers some requests in this way."""

    def play(it: Round) -> Expected:
        inject(it, [Fault(kind, rate, methods, keys)])
        it.scene.run(SLOW)
        return Expected(is_met=True)

    play.__doc__ = f"{rate:.0%} of the requests are answered in this way."
    return play


def forbidden_in_the_middle(it: Round) -> Expected:
    """The store refuses some objects once, after it has granted all earlier requests."""
    fault = Fault("forbidden", 0.4, ("GET", "PUT"), OWN, first=1)
    inject(it, [fault])
    it.scene.run(SLOW)
    return Expected(is_met=True)


def stalled(it: Round) -> Expected:
    """The store takes half a minute for a few objects."""
    inject(it, [Fault("stall", 0.3, ("GET", "PUT"), "/in/|/instances/", stall_s=4 if it.is_short else 30, limit=3)])
    it.scene.run(SLOW)
    return Expected(is_met=True)


def timed_out(it: Round) -> Expected:
    """The store answers for one object later than the client's time-out of a minute."""
    inject(it, [Fault("stall", 1.0, ("GET",), "/in/", stall_s=75, limit=1)])
    it.scene.run(SLOW)
    return Expected(is_met=True)


def store_restarted(it: Round) -> Expected:
    """The store is killed as by a power cut, and started again some seconds later."""
    if it.server is None:
        raise no_store()
    it.scene.endpoint_url = it.server.endpoint_url
    it.scene.start(SLOW)
    it.scene.wait_for_log(r"images, ")
    it.server.kill()
    time.sleep(it.random.uniform(2.0, 8.0))
    it.server.start()
    it.scene.end()
    return Expected()
