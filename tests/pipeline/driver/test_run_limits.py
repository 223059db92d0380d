"""A run stops at its deadline and at its largest cost, by a clock that the test moves, and resumes."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pipeline.driver.run_job
from pipeline.driver.events import Event
from pipeline.driver.forecast import LateRunError
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.driver.run_limits import LOOK_S, RunLimits
from pipeline.driver.worker_time import ROUNDS, WorkerTime
from pipeline.job_spec.budget import BudgetSection
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.planning.estimate import WorkerRate
from pipeline.runs.cost import RunCost, cost_uri, read_cost, write_cost
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary
from pipeline.storage.storage import Storage
from tests.support.fakes.clock import HandClock
from tests.support.fakes.in_process_pool import InProcessPool, in_process
from tests.support.fakes.models import LoadFake, write_images

BEGAN = datetime(2026, 11, 26, 22, 0, tzinfo=UTC)
SHARD_S = 0.25
CLOCK = HandClock()


class TimedPool(InProcessPool):
    """Each step of a worker takes a quarter of a second."""

    def events(self, timeout_s: float) -> list[Event]:
        CLOCK.now += SHARD_S
        return super().events(timeout_s)


def now() -> datetime:
    return BEGAN + timedelta(seconds=CLOCK.now)


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK.now = 0.0
    InProcessPool.forget()

    def open_limits(budget: BudgetSection, run: RunHandle, storage: Storage, *, began: datetime) -> RunLimits:
        before = read_cost(storage, run.output_uri, run.name)

        def record(cost: RunCost) -> None:
            write_cost(storage, run.output_uri, run.name, cost, currency=budget.currency)

        return RunLimits(budget, began=now(), before=before, record=record, time=WorkerTime(CLOCK), now=now)

    monkeypatch.setattr(pipeline.driver.run_job, "open_limits", open_limits)


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


def spec_of(folder: Path, **budget: object) -> JobSpec:
    keys = {f"budget.{key}": value for key, value in budget.items()}
    values = {"input.uri": str(folder / "in"), "output.uri": str(folder / "out"), "model.preset": "htc_lite0_fpn"}
    return load_spec(None, {**values, "model.weights": "untrained", "compute.shard_images": 1, **keys})


def segment(spec: JobSpec, *, workers: int = 2, notes: Notes | None = None) -> RunSummary:
    return run(spec, progress=notes, load_model=LoadFake(), open_pool=in_process(TimedPool, workers=workers))


def test_a_run_stops_before_it_costs_more_and_resumes_with_a_higher_bound(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    first = segment(spec_of(tmp_path, price_per_hour=3600, max_cost=12, currency="EUR"))
    assert (first.status, first.exit_code, first.stopped_by) == ("interrupted", 1, "max_cost")
    assert "largest cost" in first.reason
    assert "12.00 EUR" in first.reason
    assert "higher --max-cost" in first.reason
    # Two workers at one EUR a second: not above the bound, and less than two looks below it.
    spent = first.cost["amount"]
    assert isinstance(spent, float)
    assert 12 - 2 * (LOOK_S + 2 * SHARD_S) <= spent <= 12
    assert 0 < first.images_done < 40
    # Nothing has changed: no worker is started, and nothing more is spent.
    InProcessPool.forget()
    again = segment(spec_of(tmp_path, price_per_hour=3600, max_cost=12, currency="EUR"))
    assert (again.status, again.cost["amount"], InProcessPool.starts) == ("interrupted", spent, 0)
    # What earlier sessions have spent counts.
    third = segment(spec_of(tmp_path, price_per_hour=3600, max_cost=16, currency="EUR"))
    assert (third.stopped_by, third.images_done > first.images_done) == ("max_cost", True)
    assert isinstance(third.cost["amount"], float)
    assert spent < third.cost["amount"] <= 16
    last = segment(spec_of(tmp_path, price_per_hour=3600, max_cost=1000, currency="EUR"))
    assert (last.status, last.exit_code, last.stopped_by) == ("complete", 0, "")
    assert isinstance(last.cost["amount"], float)
    assert last.cost["amount"] > third.cost["amount"]
    (written,) = (tmp_path / "out" / "runs").glob("*/summary.json")
    assert json.loads(written.read_text())["cost"] == last.cost


def test_a_driver_that_is_killed_leaves_what_it_has_spent(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    write_cost(storage, output, "r", RunCost(7200.0, 20.0), currency="EUR")
    assert read_cost(storage, output, "r") == RunCost(7200.0, 20.0)
    limits = RunLimits(BudgetSection(price_per_hour=10, max_cost=19), before=read_cost(storage, output, "r"))
    reached = limits.reached()
    assert reached is not None
    assert reached.limit == "max_cost"
    (tmp_path / "runs" / "r" / "cost.json").write_text("{")
    assert read_cost(storage, output, "r") == RunCost()
    assert cost_uri(output, "r").endswith("runs/r/cost.json")


def test_sessions_without_a_price_count_at_the_present_one(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 20)
    free = segment(spec_of(tmp_path, deadline="2s"))
    assert free.cost["amount"] is None
    assert not list((tmp_path / "out" / "runs").glob("*/cost.json"))
    hours = free.cost["worker_hours"]
    assert isinstance(hours, float)
    assert hours > 0
    CLOCK.now += 100
    priced = segment(spec_of(tmp_path, price_per_hour=3600, max_cost=hours * 3600 + 3))
    assert priced.stopped_by == "max_cost"
    assert isinstance(priced.cost["amount"], float)
    assert hours * 3600 < priced.cost["amount"] <= hours * 3600 + 3


def test_a_run_stops_at_its_deadline_and_resumes(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    stopped = segment(spec_of(tmp_path, deadline="5s"))
    assert (stopped.status, stopped.exit_code, stopped.stopped_by) == ("interrupted", 1, "deadline")
    assert "Stopped at its deadline" in stopped.reason
    assert f"with {40 - stopped.images_done} of 40 images to go" in stopped.reason
    assert 0 < stopped.images_done < 40
    assert stopped.deadline == (BEGAN + timedelta(seconds=5)).isoformat()
    CLOCK.now += 3600
    later = segment(spec_of(tmp_path, deadline="1h"))
    assert (later.status, later.is_late) == ("complete", False)


def test_a_deadline_that_has_passed_starts_no_worker(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 4)
    summary = segment(spec_of(tmp_path, deadline="2026-11-26T21:59:00+00:00"))
    assert (summary.status, summary.stopped_by, InProcessPool.starts) == ("interrupted", "deadline", 0)


def test_a_deadline_that_only_warns_stops_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    summary = segment(spec_of(tmp_path, deadline="3s", on_deadline="warn"))
    assert (summary.status, summary.exit_code, summary.is_late, summary.stopped_by) == ("complete", 0, True, "")


def test_no_shard_begins_that_cannot_end_in_time() -> None:
    limits = RunLimits(BudgetSection(deadline="60s"), began=BEGAN, now=now)
    CLOCK.now = 45
    assert limits.closing() is None
    limits.shard_ended(20)
    closing = limits.closing()
    assert closing is not None
    assert limits.reached() is None
    assert "about 20 s" in limits.closing_note(closing)


def paced(looks: int, images_at: Callable[[int], int]) -> WorkerTime:
    clock = HandClock()
    time = WorkerTime(clock)
    time.record(running=2, ready=0, busy=0, images_done=0)
    clock.now += 30
    for number in range(looks + 1):
        time.record(running=2, ready=2, busy=2, images_done=images_at(number))
        clock.now += 0.25
    return time


def test_a_workers_throughput_counts_while_it_has_a_shard() -> None:
    time = paced(4000, lambda number: number)
    assert time.busy_s == pytest.approx(2000)
    assert time.running_s == pytest.approx(2060)
    rates = time.images_per_s()
    assert len(rates) == ROUNDS
    # Four images a second by two workers.
    assert rates == pytest.approx([2.0] * ROUNDS, rel=0.02)
    slowing = paced(4000, lambda number: min(number, 2000)).images_per_s()
    assert slowing[0] == pytest.approx(2.0, rel=0.02)
    assert slowing[-1] == pytest.approx(0.0, abs=0.02)
    assert WorkerTime().images_per_s() == []


def late_spec(folder: Path, **budget: object) -> JobSpec:
    """A spec whose run of 40 images is expected to take 20 s with two workers."""
    spec = spec_of(folder, **budget)
    return spec.model_copy(update={"compute": spec.compute.model_copy(update={"workers": 2})})


@pytest.fixture
def _one_image_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = WorkerRate(1.0, None, None, "run", "run yesterday", start_up_s=0.0)
    monkeypatch.setattr(pipeline.driver.run_job, "rate_before", lambda *_, **__: rate)


@pytest.mark.usefixtures("_one_image_a_second")
def test_a_run_that_cannot_end_in_time_says_so_before_it_starts(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    # The forecast compares with the true clock.
    soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    notes = Notes()
    segment(late_spec(tmp_path, deadline=soon, on_deadline="warn"), notes=notes)
    (late,) = [sentence for sentence in notes.sentences if "after its deadline" in sentence]
    assert "it takes about 20 s" in late
    assert "run yesterday" in late


@pytest.mark.usefixtures("_one_image_a_second")
def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    with pytest.raises(LateRunError, match="Nothing was started") as refused:
        segment(late_spec(tmp_path, deadline=soon, refuse_late=True))
    assert refused.value.exit_code == 2
    assert InProcessPool.starts == 0
    assert not list((tmp_path / "out" / "runs").rglob("*.json"))
    assert segment(late_spec(tmp_path, deadline="1h", refuse_late=True)).status == "complete"


@pytest.mark.usefixtures("_one_image_a_second")
def test_a_run_that_would_cost_too_much_says_so_before_it_starts(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 40)
    notes = Notes()
    segment(late_spec(tmp_path, price_per_hour=3600, max_cost=30, currency="EUR"), notes=notes)
    assert any("largest cost, 30.00 EUR: all of it costs about 40.00 EUR" in each for each in notes.sentences)


def test_a_run_that_becomes_late_is_reported_once() -> None:
    CLOCK.now = 0.0
    time = WorkerTime(CLOCK)
    budget = BudgetSection(deadline="10m", price_per_hour=3600, max_cost=2000, currency="EUR")
    limits = RunLimits(budget, began=BEGAN, time=time, now=now)
    time.record(running=2, ready=2, busy=2, images_done=0)
    CLOCK.now = 60
    time.record(running=2, ready=2, busy=2, images_done=10)
    # The first minutes say little.
    assert limits.late_note(6000.0) == ""
    CLOCK.now = 120
    time.record(running=2, ready=2, busy=2, images_done=20)
    assert limits.late_note(None) == ""
    assert limits.late_note(470.0) == ""
    late = limits.late_note(900.0)
    assert "7 min 00 s after its deadline" in late
    assert "about 2,040.00 EUR of at most 2,000.00 EUR" in late
    assert limits.late_note(900.0) == ""


def test_a_store_that_hangs_delays_neither_the_run_nor_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.driver.run_limits.CLOSE_S", 0.05)
    released = threading.Event()
    recorded: list[RunCost] = []

    def record(cost: RunCost) -> None:
        recorded.append(cost)
        released.wait(30)

    CLOCK.now = 0.0
    limits = RunLimits(BudgetSection(price_per_hour=1), began=BEGAN, record=record, time=WorkerTime(CLOCK), now=now)
    limits.keep_record()
    assert recorded == []
    for CLOCK.now in (16, 32, 48):
        limits.keep_record()
    # One is still being written: no other one begins, also at the end.
    limits.keep_record(is_last=True)
    assert len(recorded) == 1
    released.set()
    limits.keep_record(is_last=True)
    assert len(recorded) == 2
