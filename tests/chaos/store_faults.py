"""Every way in which a store can fail, through the proxy before it; and the store's own death."""

import time
from random import Random

from tests.chaos.checks import Expected
from tests.chaos.round import SLOW, Play, Round, inject, no_store
from tests.support.servers.fault_proxy import Fault, Kind

OWN = "/in/|/instances/|/images/"


def storm(random: Random) -> list[Fault]:
    """All of the store's faults at once, each seldom enough that most requests pass."""
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
    """The store fails in every way at once, and nobody dies."""
    inject(it, storm(it.random))
    it.scene.run(SLOW)
    return Expected(is_met=True)


def store_fault(kind: Kind, rate: float, *, keys: str = "", methods: tuple[str, ...] = ("GET", "PUT")) -> Play:
    """The store answers some requests in this way."""

    def play(it: Round) -> Expected:
        inject(it, [Fault(kind, rate, methods, keys)])
        it.scene.run(SLOW)
        return Expected(is_met=True)

    play.__doc__ = f"{rate:.0%} of the requests meet this at the store."
    return play


def forbidden_in_the_middle(it: Round) -> Expected:
    """The store refuses some objects once, after it has granted all before."""
    fault = Fault("forbidden", 0.4, ("GET", "PUT"), OWN, first=1)
    inject(it, [fault])
    it.scene.run(SLOW)
    return Expected(is_met=True)


def stalled(it: Round) -> Expected:
    """The store takes half a minute over a few objects."""
    inject(it, [Fault("stall", 0.3, ("GET", "PUT"), "/in/|/instances/", stall_s=4 if it.is_short else 30, limit=3)])
    it.scene.run(SLOW)
    return Expected(is_met=True)


def timed_out(it: Round) -> Expected:
    """The store answers one object later than the client's patience of a minute."""
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
