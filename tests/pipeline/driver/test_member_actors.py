"""What a worker and the members of its ensemble reserve, and the worker's end with theirs."""

from typing import Any

import pytest

from pipeline.driver.member_actors import Shares, SpreadWorkers, share_out
from pipeline.planning.worker_plan import WorkerPlan


@pytest.mark.parametrize(
    ("cpus", "gpus", "members", "shares"),
    [
        (1.0, 0.0, 2, Shares(0.3333, 0.3333, 0.0)),
        (4.0, 1.0, 2, Shares(4.0, 0.001, 0.5)),
        (4.0, 1.0, 3, Shares(4.0, 0.001, 0.3333)),
        (4.0, 0.5, 2, Shares(4.0, 0.001, 0.25)),
        (4.0, 2.0, 2, Shares(4.0, 0.001, 1.0)),
        # Two on each card: two thirds of a card each would leave the third member without room.
        (4.0, 2.0, 3, Shares(4.0, 0.001, 0.5)),
        (4.0, 5.0, 2, Shares(4.0, 0.001, 2.0)),
        (0.0, 0.0, 2, Shares(0.001, 0.001, 0.0)),
    ],
)
def test_shares(cpus: float, gpus: float, members: int, shares: Shares) -> None:
    assert share_out(WorkerPlan(1, cpus, gpus), members) == shares


@pytest.mark.parametrize("gpus", [0.25, 0.5, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("members", [1, 2, 3, 5, 7])
def test_whole_members_fit_on_the_cards_of_a_worker(gpus: float, members: int) -> None:
    share = share_out(WorkerPlan(1, 1.0, gpus), members).member_gpus
    assert share == int(share) or share < 1
    on_each = int(1 / share + 1e-9) if share < 1 else 0
    room = (
        int(gpus // share) if share >= 1 else max(1, int(gpus)) * (on_each if gpus >= 1 else int(gpus / share + 1e-9))
    )
    assert room >= members


def test_the_room_of_a_worker_is_freed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Any] = []
    monkeypatch.setattr("ray.util.remove_placement_group", removed.append)
    workers = SpreadWorkers(WorkerPlan(1, 1.0, 0.0), 2, actor=None)
    workers._groups["handle"] = "group"
    workers.ended("handle")
    workers.ended("handle")
    workers.ended("another")
    assert removed == ["group"]
