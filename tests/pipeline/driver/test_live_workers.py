"""What all workers do and wait for: adding up to their wall time, cheap to keep, small in progress.json."""

import json
from dataclasses import asdict

import pytest

from pipeline.driver.live_workers import MAX_ROWS, MAX_SHARDS, ORDERS, RECENT_S, LiveWorkers
from pipeline.messages import CAUSES, Cause, ShardResult, WorkerReady, WorkerReport
from tests.support.fakes.clock import HandClock

READY = WorkerReady("cpu", 8, 3.0, host="node-1")


def report(cause: Cause = "infer", cause_s: float = 0.0, images: int = 0, **seconds: float) -> WorkerReport:
    by_cause = tuple(seconds.get(each, 0.0) for each in CAUSES)
    return WorkerReport(by_cause, cause, cause_s, images, images, 2 * images, 2**30)


def counted(live: LiveWorkers) -> dict[str, float]:
    return {cause: seconds for cause, seconds in live.seconds().items() if seconds}


def test_the_seconds_of_all_workers_add_up_to_their_wall_time() -> None:
    clock = HandClock()
    clock.now = 4.0
    live = LiveWorkers(clock)
    # One was requested 4 s ago, of which loading its model took 3.
    live.started(0, READY, start_s=4.0)
    live.started(1, READY, start_s=4.0)
    live.assigned(0)
    clock.now = 14.0
    live.reported(0, report(start_up=3.5, infer=8.0, read=2.0))
    live.ended(0)
    # The other one has held no shard, and is not asked.
    assert counted(live) == {"start_up": 8.0, "infer": 8.0, "read": 2.0, "no_shard": 10.0}
    assert sum(counted(live).values()) == 2 * clock.now
    # One that is gone stays in the account.
    live.left(0)
    clock.now = 24.0
    assert counted(live) == {"start_up": 8.0, "infer": 8.0, "read": 2.0, "no_shard": 20.0}
    live.left(1)
    clock.now = 99.0
    assert sum(counted(live).values()) == 14.0 + 24.0
    assert live.were_any


def test_idle_workers_are_in_the_tail_once_no_shard_is_left() -> None:
    clock = HandClock()
    live = LiveWorkers(clock)
    for worker in range(2):
        live.started(worker, READY, start_s=3.0)
    clock.now = 5.0
    live.set_tail(True)
    clock.now = 8.0
    # A shard waits for its next attempt: not the tail after all.
    live.set_tail(False)
    clock.now = 9.0
    live.assigned(0)
    live.assigned(1)
    live.reported(0, report(start_up=3.0, no_shard=9.0))
    live.reported(1, report(start_up=3.0, no_shard=9.0))
    live.set_tail(True)
    clock.now = 19.0
    live.reported(0, report(start_up=3.0, no_shard=9.0, infer=10.0))
    live.reported(1, report(start_up=3.0, no_shard=9.0, infer=10.0))
    live.ended(0)
    clock.now = 26.0
    assert counted(live) == {"start_up": 6.0, "infer": 20.0, "no_shard": 12.0, "tail": 6.0 + 7.0}
    look = live.look({1: (7,)})
    assert (look.causes, look.rows[0].cause_s) == ({"tail": 1, "infer": 1}, 7.0)
    # The worker's own account replaces the driver's at the end.
    live.reported(0, report("no_shard", start_up=3.0, no_shard=16.0, infer=10.0))
    assert counted(live)["tail"] == 13.0


def test_speed_and_shares_are_recent() -> None:
    clock = HandClock()
    live = LiveWorkers(clock)
    live.started(0, READY, start_s=3.0)
    live.assigned(0)
    for step in range(1, 5):
        clock.now = step * RECENT_S
        live.reported(0, report(images=step * 30, start_up=3.0, infer=step * RECENT_S))
    clock.now += 10.0
    live.reported(0, report("read", 9.0, 120, start_up=3.0, infer=4 * RECENT_S + 1.0, read=9.0))
    (row,) = live.look({0: (3, 4)}).rows
    # Of the last two periods, one before the last report and the 10 seconds with no image.
    assert row.images_per_s == pytest.approx(30 / (RECENT_S + 10.0), abs=0.001)
    assert row.shares["read"] == pytest.approx(9.0 / (RECENT_S + 10.0), abs=0.001)
    assert (row.cause, row.cause_s, row.shards, row.host) == ("read", 9.0, (3, 4), "node-1")
    assert (row.images, row.batch_fill, row.memory_bytes) == (120, 0.5, 2**30)
    assert row.wait_share == pytest.approx(row.shares["read"], abs=0.002)


def test_the_last_minute_forgets_what_was_before() -> None:
    clock = HandClock()
    live = LiveWorkers(clock)
    live.started(0, READY, start_s=3.0)
    live.assigned(0)
    for minute in range(1, 4):
        clock.now = 60.0 * minute
        live.reported(0, report(start_up=3.0, read=60.0, infer=60.0 * (minute - 1)))
        look = live.look({0: (1,)})
    assert look.recent == {**dict.fromkeys(CAUSES, 0.0), "infer": 60.0}
    assert look.seconds["read"] == 60.0


def test_reports_of_workers_that_are_gone_are_ignored() -> None:
    live = LiveWorkers(HandClock())
    live.reported(5, report(infer=1.0))
    live.assigned(5)
    live.ended(5)
    live.left(5)
    assert not live.were_any
    assert live.look({}).rows == ()


def test_the_slowest_shards_are_kept() -> None:
    live = LiveWorkers(HandClock())
    for index in range(100):
        live.done(index % 3, ShardResult(index, {"ok": 4}, 9, {}, 0, seconds=float((index * 37) % 100)))
    slowest = live.slowest_shards()
    assert [each["seconds"] for each in slowest] == [99.0 - place for place in range(MAX_SHARDS)]
    assert slowest[0] == {"shard": 27, "worker": 0, "seconds": 99.0, "images": 4}


def test_of_ten_thousand_workers_the_first_in_each_order_are_described_in_100_kb() -> None:
    clock = HandClock()
    live = LiveWorkers(clock)
    clock.now = 100.0
    for worker in range(10_000):
        live.started(worker, READY, start_s=3.0)
        live.assigned(worker)
    clock.now = 1000.0
    for worker in range(10_000):
        waits = float((worker * 7919) % 900)
        live.reported(worker, report("read", waits, worker, start_up=3.0, read=waits, infer=900.0 - waits))
    look = live.look({worker: (worker, worker + 1) for worker in range(10_000)})
    assert look.causes == {"read": 10_000}
    assert sum(look.seconds.values()) == pytest.approx(10_000 * 903.0)
    assert len(look.rows) <= MAX_ROWS
    assert len(json.dumps([asdict(row) for row in look.rows], separators=(",", ":"))) < 100_000
    shown = {row.worker for row in look.rows}
    assert {0, 1, 2} <= shown
    slowest_image_rates = {row.worker for row in sorted(look.rows, key=ORDERS["speed"])[:10]}
    assert slowest_image_rates == set(range(10))
    longest = max(range(10_000), key=lambda worker: (worker * 7919) % 900)
    assert ((longest * 7919) % 900) == next(row.cause_s for row in sorted(look.rows, key=ORDERS["stuck"]))
    # Looked at more rarely, so that the driver has the same share of its time left.
    assert live.look_every_s == 10.0
