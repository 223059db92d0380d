"""A scheduler's engine with a manual clock, and a launcher whose runs last as long as the test says."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs.scheduling.engine import Engine
from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.launcher import LaunchStatus
from jobs.scheduling.schedule import Schedule, build_schedule
from jobs.scheduling.store import ScheduleStore
from pipeline.errors import HtcError

Lasts = Callable[[Firing], float]


class FakeLauncher:
    """A launcher whose runs take no real time; it outlives the schedulers, as real runs do.

    lasts: seconds that a run takes. started: the firings, as often as they were started. trouble: raised by `start`.
    """

    def __init__(self, clock: "Clock", lasts: Lasts) -> None:
        self._clock = clock
        self.lasts = lasts
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.trouble: HtcError | None = None
        self.endings: dict[str, Ending] = {}
        self._ends: dict[str, datetime] = {}

    def start(self, firing: Firing) -> str:
        if self.trouble is not None:
            raise self.trouble
        if firing.name not in self._ends:
            self.started.append(firing.name)
            self._ends[firing.name] = self._clock.now + timedelta(seconds=self.lasts(firing))
        return f"handle of {firing.name}"

    def check(self, firing: Firing) -> LaunchStatus:
        end = self._ends.get(firing.name)
        if end is None:
            return LaunchStatus("gone")
        if self._clock.now < end:
            return LaunchStatus("going")
        return LaunchStatus("ended", self.endings.get(firing.name, Ending("complete", exit_code=0)))

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        if firing.name not in self.stopped:
            self.stopped.append(firing.name)
            self._ends[firing.name] = self._clock.now + timedelta(seconds=5)
            self.endings[firing.name] = Ending("interrupted", "Stopped.", 1)

    def kill(self, name: str) -> None:
        """Let a run vanish without an ending."""
        del self._ends[name]

    def going(self) -> list[str]:
        """Return the runs in progress."""
        return [name for name, end in self._ends.items() if self._clock.now < end]


class Clock:
    """A clock that the test moves."""

    def __init__(self, start: datetime) -> None:
        self.now = start


class ScheduleBench:
    """Schedules in a folder, a scheduler that can be replaced, and a clock that the test moves."""

    def __init__(self, home: Path, start: str, lasts: float | Lasts = 10.0, local_runs: int = 10) -> None:
        self.clock = Clock(datetime.fromisoformat(start).astimezone(UTC))
        self.launcher = FakeLauncher(self.clock, lasts if callable(lasts) else lambda _: lasts)
        self.store = ScheduleStore(home)
        self.spec = home / "job.yaml"
        self.spec.write_text(f"input: {{uri: {home}/in}}\noutput: {{uri: {home}/out}}\n")
        self._local_runs = local_runs
        self.engine = self._new_engine()

    def add(self, name: str = "nightly", cron: str = "* * * * *", **keys: object) -> Schedule:
        """Add a schedule now."""
        schedule = build_schedule({"name": name, "spec": str(self.spec), "cron": cron, **keys})
        self.store.put(schedule, self.clock.now)
        return schedule

    def pass_time(self, *, minutes: float = 0, until: str | None = None, step_s: float = 5.0) -> None:
        """Let the time pass, with a scheduler that steps every few seconds."""
        end = datetime.fromisoformat(until) if until else self.clock.now + timedelta(minutes=minutes)
        while self.clock.now < end:
            self.clock.now = min(end.astimezone(UTC), self.clock.now + timedelta(seconds=step_s))
            self.engine.step()

    def be_away(self, *, minutes: float = 0, until: str | None = None) -> None:
        """Let the time pass without a scheduler, and start a new one."""
        self.clock.now = (
            datetime.fromisoformat(until).astimezone(UTC) if until else self.clock.now + timedelta(minutes=minutes)
        )
        self.engine = self._new_engine()
        self.engine.step()

    def outcomes(self, schedule: str | None = None) -> dict[str, str]:
        """Return the outcome of each firing, oldest first."""
        firings = reversed(self.store.history(schedule, 10_000))
        return {firing.name: firing.ending.outcome if firing.ending else firing.state for firing in firings}

    def minutes(self, schedule: str | None = None) -> Mapping[str, str]:
        """Return the same by the minute: {"02:30": "complete"}."""
        found = {}
        for firing in reversed(self.store.history(schedule, 10_000)):
            outcome = firing.ending.outcome if firing.ending else firing.state
            found[f"{firing.scheduled:%H:%M}"] = outcome
        return found

    def _new_engine(self) -> Engine:
        return Engine(self.store, lambda _: self.launcher, lambda: self.clock.now, local_runs=self._local_runs)
