"""Random histories of two drivers of one run: never do both commit, never is the run locked for long.

The world's time is counted by hand. The first driver may be suspended, cut off from its store, or die; both drivers'
wall clocks are wrong by anything between nothing and decades, and may jump.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError, StorageError
from pipeline.runs import lease as leases
from pipeline.runs.lease import Lease, LeaseHolder, RunHeldError, take_lease
from pipeline.storage.cas_file import CasFile
from pipeline.storage.storage import Storage

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
STEP_S = 5.0
FOREVER = 1e9
Span = tuple[float, float]
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A store that fails is logged at each heartbeat."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class CutOffStore(Storage):
    """The first driver's connection to the store; the second driver has its own."""

    is_cut = False

    def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
        if self.is_cut:
            raise StorageError("the store is away")
        return super().read(uri, offset, length)


@dataclass
class World:
    """True time, and a first driver that holds the lease from the beginning.

    asleep, cut: when it is suspended, and cut off from its store. dies: when it is gone.
    clock_jumps: seconds by which its wall clock is wrong, from when on.
    """

    dies: float
    asleep: list[Span]
    cut: list[Span]
    clock_jumps: list[Span]
    now: float = 0.0
    commits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uri = f"memory://lease-history-{next(_numbers)}"
        self.storage = CutOffStore()
        file = CasFile(self.storage, f"{self.uri}/runs/night/lease.json")
        beat = self.wall_clock().isoformat()
        holder = LeaseHolder("first", "far-away", 4711, "", beat, beat)
        assert file.create(holder.encode()) is not None
        self.lease = Lease(file, holder, self.wall_clock, seconds=lambda: self.now)
        self.next_beat = leases.HEARTBEAT_EVERY_S

    def wall_clock(self) -> datetime:
        """Return the time by the first driver's clock."""
        wrong_by = 0.0
        for since, seconds in self.clock_jumps:
            if since <= self.now:
                wrong_by = seconds
        return NOON + timedelta(seconds=self.now + wrong_by)

    def advance(self, seconds: float) -> None:
        """Let time pass; the first driver renews its lease and commits when it can."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + STEP_S)
            if self.now >= self.dies or _is_within(self.now, self.asleep):
                continue
            self.storage.is_cut = _is_within(self.now, self.cut)
            # After a sleep, the commit may come before the heartbeat.
            self.commit()
            if self.now >= self.next_beat:
                self.next_beat = self.now + leases.HEARTBEAT_EVERY_S
                self.lease.renew()

    def commit(self) -> None:
        """Commit as the first driver, if it still counts on its lease."""
        try:
            self.lease.check()
        except RunError:
            return
        self.commits.append(self.now)


def _is_within(moment: float, spans: list[Span]) -> bool:
    return any(begin <= moment < begin + length for begin, length in spans)


def spans(longest_s: float) -> st.SearchStrategy[list[Span]]:
    return st.lists(st.tuples(st.floats(0, 900), st.floats(0, longest_s)), max_size=3)


# By a minute; by a wrong time zone; by decades.
WRONG_BY = st.one_of(st.floats(-90, 90), st.floats(-50_000, 50_000), st.floats(-6e8, 6e8))
JUMPS = st.lists(st.tuples(st.floats(0, 900), WRONG_BY), max_size=3).map(sorted)


def ask_until_taken(
    world: World, sleep: Callable[[float], None], wrong_by: float, until: float, watch_s: float | None = None
) -> float | None:
    """Ask for the lease as a second driver until it is taken; return when that was."""
    while world.now <= until:
        try:
            lease = take_lease(
                Storage(),
                world.uri,
                "night",
                sleep=sleep,
                report=lambda _: None,
                clock=lambda: NOON + timedelta(seconds=world.now + wrong_by),
                seconds=lambda: world.now,
                watch_s=watch_s,
            )
        except RunHeldError:
            continue
        lease.check()
        had = world.now
        # The first driver, as long as it might still be at work.
        world.advance(800)
        lease.release()
        return had
    return None


@st.composite
def histories(draw: st.DrawFn) -> tuple[World, float, float, list[float]]:
    """A world, when the second driver asks, by how much its clock is wrong, and its machine's naps."""
    dies = draw(st.one_of(st.floats(0, 600), st.just(FOREVER)))
    world = World(dies, draw(spans(700)), draw(spans(400)), draw(JUMPS))
    return world, draw(st.floats(0, 600)), draw(WRONG_BY), draw(st.lists(st.floats(0, 60), max_size=10))


@settings(deadline=None, max_examples=settings.default.max_examples // 2)
@given(history=histories())
def test_never_do_two_drivers_commit_and_never_is_a_run_locked_for_long(
    history: tuple[World, float, float, list[float]],
) -> None:
    world, asks, wrong_by, naps = history
    world.advance(asks)
    left = list(naps)

    def sleep(seconds: float) -> None:
        # The second driver's machine may be suspended too, for a little.
        world.advance(seconds + (left.pop() if left else 0.0))

    had = ask_until_taken(world, sleep, wrong_by, until=1600)
    if had is not None:
        assert [moment for moment in world.commits if moment > had] == []
    event("taken over" if had is not None else "kept")
    if world.dies < FOREVER:
        # Plus a heartbeat that was read late, and the poll that was in progress.
        assert had is not None
        assert had <= max(world.dies, asks) + leases.WATCH_S + 2 * leases.POLL_EVERY_S + sum(naps) + STEP_S


@settings(deadline=None, max_examples=settings.default.max_examples // 5)
@given(clock_jumps=JUMPS, wrong_by=WRONG_BY, asks=st.floats(0, 600), cut=st.floats(0, 60), since=st.floats(0, 600))
def test_a_live_driver_keeps_its_run(
    clock_jumps: list[Span], wrong_by: float, asks: float, cut: float, since: float
) -> None:
    """Also while its store fails for a minute."""
    world = World(FOREVER, [], [(since, cut)], clock_jumps)
    world.advance(asks)
    assert ask_until_taken(world, world.advance, wrong_by, until=1000) is None
    assert len(world.commits) >= 1000 / STEP_S - 2
    world.lease.check()


def test_the_simulation_detects_a_watch_that_is_too_short() -> None:
    """With a watch of 20 s, both simulated drivers commit."""
    world = World(FOREVER, [], [(10.0, 110.0)], [])
    world.advance(30)
    had = ask_until_taken(world, world.advance, 0.0, until=1600, watch_s=20.0)
    assert had is not None
    assert [moment for moment in world.commits if moment > had] != []
