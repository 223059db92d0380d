"""Workers that leak, have done their part or never begin are replaced, and nobody's attempt is lost by it."""

from pathlib import Path
from typing import Any

import pytest
import ray

import pipeline.driver.worker_pool
from pipeline.driver.events import ShardEnded, WorkerDied, WorkerRetired, WorkerStarted
from pipeline.driver.worker_pool import WorkerPool
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection
from pipeline.messages import Assignment, ShardResult, WorkerProgress, WorkerReady
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.worker.worker import WorkerSettings
from tests.support.fakes.clock import HandClock
from tests.support.fakes.shard_bench import spec_for


class FakeCall:
    """A remote method whose answer is known."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def remote(self, *arguments: object) -> list[object]:
        # A new list is a reference of its own, as Ray's are.
        return _Ref([self._answer])


class _Ref(list[object]):
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class FakeHandle:
    """An actor that does every shard at once and then holds three GiB."""

    progress = FakeCall(WorkerProgress())
    start = FakeCall(WorkerReady("cpu", 1, 0.0))
    run_shard = FakeCall(ShardResult(0, {"ok": 1}, 0, {}, 0, 0.0, memory_bytes=3 * 2**30))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    gone: list[object] = []
    monkeypatch.setattr(ray, "wait", lambda refs, **options: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: ref[0])
    monkeypatch.setattr(ray, "kill", gone.append)
    monkeypatch.setattr(WorkerPool, "_ask_for_progress", lambda self: None)
    return gone


def fleet_with(folder: Path, **limits: Any) -> WorkerPool:
    spec = spec_for(folder).model_copy(update={"compute": ComputeSection(**limits)})
    fleet = WorkerPool(WorkerSettings(spec, "r", "fake", 1, 0), WorkerPlan(1, 1, 0))
    fleet._actor = type("Actor", (), {"remote": staticmethod(lambda settings: FakeHandle())})
    fleet.scale_to(1)
    (started,) = fleet.events(0.0)
    assert isinstance(started, WorkerStarted)
    return fleet


def do_shard(fleet: WorkerPool, index: int) -> list[type]:
    fleet.submit(0, Shard(index, ()), Assignment(index, 1, is_last=False))
    return [type(event) for event in fleet.events(0.0)]


def test_a_worker_is_replaced_after_its_shards(tmp_path: Path, killed: list[object]) -> None:
    fleet = fleet_with(tmp_path, worker_max_shards=2)
    assert do_shard(fleet, 0) == [ShardEnded]
    assert fleet.may_take(0)
    fleet.submit(0, Shard(1, ()), Assignment(1, 1, is_last=False))
    assert not fleet.may_take(0)
    assert [type(event) for event in fleet.events(0.0)] == [ShardEnded, WorkerRetired]
    assert len(killed) == 1
    fleet.scale_to(1)
    assert list(fleet.ready_workers()) == []
    assert fleet.size == 1


@pytest.mark.parametrize(("limit_gib", "events"), [(2.5, [ShardEnded, WorkerRetired]), (3.5, [ShardEnded])])
def test_a_worker_that_holds_too_much_memory_is_replaced(
    tmp_path: Path, killed: list[object], limit_gib: float, events: list[type]
) -> None:
    fleet = fleet_with(tmp_path, worker_max_memory_gib=limit_gib)
    assert do_shard(fleet, 0) == events
    assert len(killed) == len(events) - 1


def test_a_worker_that_never_has_its_model_is_ended_once_its_process_is_there(
    tmp_path: Path, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HandClock()
    monkeypatch.setattr(pipeline.driver.worker_pool.time, "monotonic", clock)
    fleet = fleet_with(tmp_path)
    answered: list[object] = []
    monkeypatch.setattr(ray, "wait", lambda refs, **options: ([ref for ref in refs if ref in answered], []))
    fleet.scale_to(2)
    member = fleet._members[1]
    # A cluster that grows may take its time.
    clock.now += 10_000.0
    assert fleet.events(0.0) == []
    answered.append(member.begun_ref)
    assert fleet.events(0.0) == []
    clock.now += fleet._settings.spec.retry.start_timeout_s or 0.0
    assert fleet.events(0.0) == []
    clock.now += 1.0
    (death,) = fleet.events(0.0)
    assert isinstance(death, WorkerDied)
    assert (death.worker, death.was_ready) == (1, False)
    assert "loading its model for 1801 s; the limit is retry.start_timeout_s" in death.reason
    assert killed == [member.handle]
    assert fleet.size == 1


class HandleWithoutRaylet(FakeHandle):
    """An actor whose raylet has died."""

    progress = FakeCall(WorkerProgress(has_lost_raylet=True))


def test_a_worker_that_lost_its_raylet_is_replaced_and_its_shards_are_not_charged(
    tmp_path: Path, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_with(tmp_path)
    fleet.submit(0, Shard(7, ()), Assignment(7, 1, is_last=False))
    member = fleet._members[0]
    # Only the question for progress is answered.
    member.progress_ref = HandleWithoutRaylet.progress.remote()
    monkeypatch.setattr(ray, "wait", lambda refs, **options: ([member.progress_ref], []))
    (death,) = fleet.events(0.0)
    assert isinstance(death, WorkerDied)
    assert (death.lost_shards, death.was_preempted, "raylet" in death.reason) == ((7,), True, True)
    assert killed == [member.handle]


def test_the_death_of_a_worker_that_holds_no_shard_is_found_at_the_end(
    tmp_path: Path, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_with(tmp_path)
    assert fleet.final_check() == []
    fleet._members[0].handle = HandleWithoutRaylet()
    (death,) = fleet.final_check()
    assert (death.worker, death.lost_shards, "raylet" in death.reason) == (0, (), True)
    assert fleet.final_check() == []


def test_an_idle_worker_that_does_not_answer_at_the_end_is_named(
    tmp_path: Path, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_with(tmp_path)
    monkeypatch.setattr(ray, "wait", lambda refs, **options: ([], refs))
    (death,) = fleet.final_check()
    assert (death.worker, death.lost_shards, "answered nothing" in death.reason) == (0, (), True)
    assert len(killed) == 1
