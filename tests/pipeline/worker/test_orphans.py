"""A worker that was suspended while another one did its shard, and then continues: the tables are of one attempt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.driver.run_job import worker_settings
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import JobSpec
from pipeline.messages import Assignment, ShardFailure, ShardResult
from pipeline.output.commit import images_part, instances_part
from pipeline.worker.commit_claim import ORPHAN_AFTER_S, CommitClaim, DriverLiveness, OrphanedError
from pipeline.worker.worker import Worker
from tests.support.fakes.clock import HandClock
from tests.support.fakes.models import LoadFake, write_image
from tests.support.fakes.shard_bench import refs_of, spec_for

BEFORE, AFTER = (32, 48), (20, 28)


def worker_for(spec: JobSpec, clock: HandClock) -> Worker:
    driver = DriverLiveness(spec.storage.patience_s, clock=clock)
    worker = Worker(worker_settings(spec, "r", LoadFake()), driver=driver)
    worker.start()
    return worker


@pytest.mark.parametrize("table", ["instances", "images"])
@pytest.mark.parametrize("is_asked_first", [False, True])
def test_a_worker_that_was_suspended_at_a_write_does_not_touch_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, is_asked_first: bool
) -> None:
    spec = spec_for(tmp_path)
    (tmp_path / "in").mkdir()
    image = write_image(tmp_path / "in" / "a.png", BEFORE)
    clock = HandClock()
    orphan, heir = worker_for(spec, clock), worker_for(spec, clock)
    shard, assignment = Shard(0, refs_of([image])), Assignment(0, 1, is_last=False)

    def be_suspended() -> None:
        write_image(image, AFTER)
        clock.now += ORPHAN_AFTER_S + spec.storage.patience_s + 1
        assert isinstance(heir.run_shard(shard, replace(assignment, attempt=2)), ShardResult)
        if is_asked_first:
            # A call that the driver had sent before it gave up the worker.
            orphan.progress()

    _once_before_the_part(monkeypatch, table, be_suspended)
    outcome = orphan.run_shard(shard, assignment)
    assert isinstance(outcome, ShardFailure)
    assert (outcome.kind, outcome.is_charged) == ("orphaned", True)
    images = pq.read_table(images_part(spec.output.uri, "r", 0), partitioning=None).to_pylist()
    assert [(row["height"], row["attempts"]) for row in images] == [(AFTER[0], 2)]
    instances = pq.read_table(instances_part(spec.output.uri, "r", 0), partitioning=None).to_pylist()
    assert [row["mask"]["size"] for row in instances] == [[*AFTER]]


def _once_before_the_part(monkeypatch: pytest.MonkeyPatch, table: str, action: Callable[[], None]) -> None:
    """Call `action` when a part is about to be written for the first time, as if the process were suspended there."""
    confirm = CommitClaim.confirm
    calls: list[CommitClaim] = []

    def confirm_late(claim: CommitClaim) -> None:
        # Asked before each of the two parts.
        calls.append(claim)
        if len(calls) == (1 if table == "instances" else 2):
            action()
        confirm(claim)

    monkeypatch.setattr(CommitClaim, "confirm", confirm_late)


def test_a_driver_that_waits_for_its_store_has_not_timed_out() -> None:
    clock = HandClock()
    driver = DriverLiveness(60.0, clock=clock)
    claim = CommitClaim(driver)
    clock.now += ORPHAN_AFTER_S + 60.0
    assert not driver.heartbeat()
    claim.take()
    clock.now += ORPHAN_AFTER_S + 60.1
    with pytest.raises(OrphanedError):
        claim.confirm()
    assert driver.heartbeat()
    assert not driver.heartbeat()
