"""The driver assembles a shard's rows in the order of its images, one per image."""

from pipeline.driver.assemble import assemble_rows, build_report
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.inputs.shard import Shard
from pipeline.messages import PartialResult, ShardFailure, ShardOutcome, ShardResult
from pipeline.output.rows import InstanceRow, build_image_row

SHARD = Shard(7, tuple(ImageRef(f"/in/{number}.png", bytes=number) for number in range(6)))
BOX = {"x": 0.0, "y": 0.0, "width": 1.0, "height": 1.0}


def instance(position: int, number: int) -> InstanceRow:
    uri = SHARD.images[position].uri
    return InstanceRow(image_id(uri), uri, number, 1, "person", 0.5, BOX, None, None, "fake")


def piece_of(*positions: int, instances: int = 2) -> PartialResult:
    images = [
        build_image_row(SHARD.images[at], shard=7, model="fake", size=(4, 4), attempts=3, instances=instances)
        for at in positions
    ]
    found = [instance(at, number) for at in positions for number in range(instances)]
    report = ShardResult(7, {"ok": len(positions)}, len(found), {"infer": 1.0}, 100, 2.0)
    return PartialResult(7, tuple(positions), report, tuple(images), tuple(found))


def test_partial_results_and_verdicts_make_all_rows_in_order() -> None:
    settled = ShardOutcome(7, 9, [piece_of(3, 4, 5), piece_of(0, 2)], {1: "the worker died"})
    rows = assemble_rows(SHARD, settled, model="fake")
    images, instances = rows
    assert [row.uri for row in images] == [ref.uri for ref in SHARD.images]
    assert [row.status for row in images] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert (images[1].error, images[1].attempts, images[1].bytes) == ("the worker died", 9, 1)
    expected = [(SHARD.images[at].uri, number) for at in (0, 2, 3, 4, 5) for number in range(2)]
    assert [(row.uri, row.instance) for row in instances] == expected
    report = build_report(SHARD, settled, rows)
    assert (report.statuses, report.instances, report.bytes_read) == ({"ok": 5, "failed": 1}, 10, 200)
    assert report.stage_s["infer"] == 2.0
    assert [failure.uri for failure in report.failures] == ["/in/1.png"]


def test_a_shard_that_is_given_up_keeps_what_was_done() -> None:
    rest = ShardFailure(7, "storage", "the store is away")
    settled = ShardOutcome(7, 4, [piece_of(2, instances=0)], {0: "hung"}, rest)
    images, instances = assemble_rows(SHARD, settled, model="fake")
    assert [row.status for row in images] == ["failed", "failed", "ok", "failed", "failed", "failed"]
    assert [row.error for row in images[:2]] == ["hung", "the store is away"]
    assert instances == []
