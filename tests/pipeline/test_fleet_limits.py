"""Workers that leak or have done their part are replaced between two shards, and nobody's attempt is lost by it."""

from pathlib import Path
from typing import Any

import pytest
import ray
from shard_bench import spec_for

from pipeline.assignments import Assignment
from pipeline.cluster import WorkerPlan
from pipeline.config import ComputeSection
from pipeline.events import ShardEnded, WorkerRetired, WorkerStarted
from pipeline.fleet import Fleet
from pipeline.plan import Shard
from pipeline.reports import ShardReport, WorkerReady
from pipeline.worker import WorkerSettings


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

    start = FakeCall(WorkerReady("cpu", 1, 0.0))
    run_shard = FakeCall(ShardReport(0, {"ok": 1}, 0, {}, 0, 0.0, memory_bytes=3 * 2**30))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    gone: list[object] = []
    monkeypatch.setattr(ray, "wait", lambda refs, **options: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: ref[0])
    monkeypatch.setattr(ray, "kill", gone.append)
    monkeypatch.setattr(Fleet, "_ask_for_progress", lambda self: None)
    return gone


def fleet_with(folder: Path, **limits: Any) -> Fleet:
    spec = spec_for(folder).model_copy(update={"compute": ComputeSection(**limits)})
    fleet = Fleet(WorkerSettings(spec, "r", "fake", 1, 0), WorkerPlan(1, 1, 0))
    fleet._actor = type("Actor", (), {"remote": staticmethod(lambda settings: FakeHandle())})
    fleet.top_up(1)
    (started,) = fleet.events(0.0)
    assert isinstance(started, WorkerStarted)
    return fleet


def do_shard(fleet: Fleet, index: int) -> list[type]:
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
    fleet.top_up(1)
    assert list(fleet.ready_workers()) == []
    assert fleet.size == 1


@pytest.mark.parametrize(("limit_gib", "events"), [(2.5, [ShardEnded, WorkerRetired]), (3.5, [ShardEnded])])
def test_a_worker_that_holds_too_much_memory_is_replaced(
    tmp_path: Path, killed: list[object], limit_gib: float, events: list[type]
) -> None:
    fleet = fleet_with(tmp_path, worker_max_memory_gib=limit_gib)
    assert do_shard(fleet, 0) == events
    assert len(killed) == len(events) - 1
