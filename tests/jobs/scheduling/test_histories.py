"""Random histories of schedulers that die between any two lines, runs that vanish and clusters that go away."""

import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError
from tests.support.fakes.schedule_bench import ScheduleBench

EVENTS = st.one_of(
    st.tuples(st.just("pass"), st.integers(1, 8)),
    st.tuples(st.just("away"), st.integers(1, 5)),
    # Which of the scheduler's next writes it dies at, before or after it is written.
    st.tuples(st.just("die before"), st.integers(1, 6)),
    st.tuples(st.just("die after"), st.integers(1, 6)),
    st.tuples(st.just("kill the run"), st.just(0)),
    st.tuples(st.just("cluster away"), st.just(0)),
    st.tuples(st.just("cluster back"), st.just(0)),
)
WRITES = ("decide", "update")


class DeathError(Exception):
    """The scheduler dies here."""


class History:
    """A bench on which events happen, with the invariants that must always hold."""

    def __init__(self, folder: Path, overlap: str, catch_up: str, run_s: float) -> None:
        self.bench = ScheduleBench(folder, "2026-11-23T00:00:00+00:00", lasts=run_s)
        self.bench.add(overlap=overlap, catch_up=catch_up)
        self.kills: dict[str, int] = {}

    def happen(self, event: str, amount: int) -> None:
        bench = self.bench
        if event == "pass":
            self._pass(amount)
        elif event == "away":
            bench.be_away(minutes=amount)
        elif event.startswith("die"):
            self._die(event, amount)
        elif event == "kill the run":
            for name in bench.launcher.going():
                bench.launcher.kill(name)
                self.kills[name] = self.kills.get(name, 0) + 1
        else:
            bench.launcher.trouble = RunError("No cluster answers.") if event == "cluster away" else None
        assert len(bench.launcher.going()) <= 1

    def end(self) -> None:
        """Let all firings end."""
        self.bench.launcher.trouble = None
        schedule = self.bench.store.schedules()[0].schedule
        self.bench.store.put(schedule.model_copy(update={"is_paused": True}), self.bench.clock.now)
        # There may be dozens of caught-up firings, of five minutes each.
        for _ in range(600):
            if not self.bench.store.open_firings():
                break
            self.bench.pass_time(minutes=1, step_s=30)

    def _pass(self, minutes: int) -> None:
        for _ in range(minutes * 2):
            self.bench.pass_time(minutes=0.5, step_s=30)
            assert len(self.bench.launcher.going()) <= 1

    def _die(self, event: str, at_write: int) -> None:
        store = self.bench.store
        left = [at_write]

        def dying(write: Any) -> Any:
            def write_or_die(*arguments: object, **keys: object) -> None:
                left[0] -= 1
                if left[0] == 0 and event == "die before":
                    raise DeathError
                write(*arguments, **keys)
                if left[0] == 0:
                    raise DeathError

            return write_or_die

        for name in WRITES:
            setattr(store, name, dying(getattr(store, name)))
        try:
            self._pass(4)
        except DeathError:
            pass
        finally:
            for name in WRITES:
                delattr(store, name)
        self.bench.be_away(minutes=0.1)


@settings(max_examples=settings.default.max_examples * 3 // 10, deadline=None)
@given(
    events=st.lists(EVENTS, min_size=3, max_size=10),
    overlap=st.sampled_from(["skip", "queue", "replace"]),
    catch_up=st.sampled_from(["none", "last", "all"]),
    run_s=st.sampled_from([5.0, 100.0, 300.0]),
)
def test_no_run_is_doubled_and_none_is_left_open(
    events: list[tuple[str, int]], overlap: str, catch_up: str, run_s: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder), overlap, catch_up, run_s)
        bench = history.bench
        with closing(bench.store):
            for event, amount in events:
                history.happen(event, amount)
            decided = bench.store.schedules()[0].decided_until
            history.end()
            outcomes = bench.outcomes()
        assert "running" not in outcomes.values()
        assert {"due", "waiting", "starting", "stopping"}.isdisjoint(outcomes.values())
        for name in set(bench.launcher.started):
            assert bench.launcher.started.count(name) <= 1 + history.kills.get(name, 0)
        if overlap == "queue" and catch_up == "all":
            minutes = round((decided - bench.clock.now.replace(hour=0, minute=0)) / timedelta(minutes=1))
            assert len(outcomes) >= minutes
            assert set(outcomes.values()) <= {"complete", "lost", "skipped", "failed"}
