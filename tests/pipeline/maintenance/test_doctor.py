"""Foreign files, overlaps, mismatches, live leases: the doctor's findings, and what it does not touch."""

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.maintenance.doctor import examine_and_report
from pipeline.errors import AccessDeniedError, DamagedFileError, InputError
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.doctor.examine import examine_output
from pipeline.messages import ShardResult
from pipeline.output.results import open_results
from pipeline.runs.cost import RunCost, read_cost, write_cost
from pipeline.runs.counting import record_unrecorded
from pipeline.runs.lease import LeaseHolder, RunHeldError, take_lease
from pipeline.runs.shard_counts import counts_of_reports, encode_counts, read_counts
from pipeline.storage.range_file import StoredFile
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import finish_run, write_inputs

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOLDER = LeaseHolder("t", "far-away", 4711, "", NOON.isoformat(), NOON.isoformat())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    finish_run(write_inputs(tmp_path / "in", 8), str(tmp_path / "out"), "r")
    return tmp_path / "out"


def kinds(output: Path) -> list[tuple[str, str]]:
    findings = examine_output(Storage(), str(output)).findings
    return sorted((finding.file.removeprefix(f"{output}/"), finding.kind) for finding in findings)


def test_foreign_files_are_not_counted_and_moved(output: Path) -> None:
    part = output / "images/run=r/part-00000.parquet"
    for name in ("images/run=r/part-00099.parquet", "images/mine.parquet", "runs/r/notes.txt"):
        shutil.copy(part, output / name)
    assert len(open_results(str(output)).images()) == 8
    assert [kind for _, kind in kinds(output)] == ["foreign"] * 3
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert kinds(output) == []
    assert len(list(output.glob("quarantine/*/images/mine.parquet"))) == 1


def test_the_cost_of_a_run_is_a_file_of_it(output: Path) -> None:
    storage = Storage()
    write_cost(storage, str(output), "r", RunCost(3600.0, 2.5), currency="EUR")
    assert kinds(output) == []
    (output / "runs/r/cost.json").write_text('{"worker_hours": "many"}')
    assert kinds(output) == [("runs/r/cost.json", "damaged")]
    # A run that is resumed counts anew, and does not fail.
    assert read_cost(storage, str(output), "r") == RunCost()
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert kinds(output) == []


def test_a_part_with_other_images_is_done_again(output: Path) -> None:
    folder = output / "images/run=r"
    shutil.copy(folder / "part-00000.parquet", folder / "part-00001.parquet")
    assert kinds(output) == [("images/run=r/part-00001.parquet", "mismatch")]
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert open_results(str(output)).committed_shards("r") == 3


def test_compacted_files_that_share_shards_are_refused_and_repaired(output: Path) -> None:
    compact_run(Storage(), str(output), "r", target_bytes=1 << 30, check=lambda: None)
    for table in ("images", "instances"):
        folder = output / table / "run=r"
        shutil.copy(folder / "parts-00000-00003.parquet", folder / "parts-00002-00003.parquet")
        (folder / "parts-00000-00003.parquet").rename(folder / "parts-00000-00002.parquet")
    with pytest.raises(DamagedFileError, match="twice"):
        open_results(str(output)).images()
    assert ("images/run=r/parts-00002-00003.parquet", "overlap") in kinds(output)


def test_a_held_run_is_not_repaired(output: Path) -> None:
    part = output / "images/run=r/part-00001.parquet"
    part.write_bytes(b"")
    lease = take_lease(Storage(), str(output), "r")
    try:
        assert examine_and_report(str(output), is_repaired=True) == 1
        assert part.exists()
    finally:
        lease.release()
    assert examine_and_report(str(output), is_repaired=True) == 0


def test_a_lease_that_no_driver_can_read_is_a_finding(output: Path) -> None:
    """Also when it is JSON with unknown keys: `htc run` refuses it and points to the doctor."""
    (output / "runs/r/lease.json").write_text(json.dumps({**asdict(HOLDER), "a_later_key": 1}))
    with pytest.raises(RunHeldError, match="cannot be read as a lease"):
        take_lease(Storage(), str(output), "r")
    assert kinds(output) == [("runs/r/lease.json", "damaged")]


@pytest.mark.parametrize(("age_s", "is_held"), [(0, True), (119, True), (121, False), (-9999, True)])
def test_a_run_is_held_by_a_recent_heartbeat_or_one_in_the_future(output: Path, age_s: int, is_held: bool) -> None:
    (output / "runs/r/lease.json").write_bytes(HOLDER.encode())
    (run,) = examine_output(Storage(), str(output), now=NOON + timedelta(seconds=age_s)).runs
    assert run.is_held == is_held


def test_a_folder_without_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        examine_output(Storage(), str(tmp_path), now=datetime.now(UTC))


def test_links_that_lead_nowhere_are_damaged_files(output: Path) -> None:
    names = ("images/run=r/part-00001.parquet", "runs/r/run.json", "runs/r/summary.json", "runs/r/lease.json")
    for name in names:
        (output / name).unlink(missing_ok=True)
        (output / name).symlink_to(Path(name).name)
    (output / "images/loop").symlink_to("loop")
    assert ("runs/r/run.json", "damaged") in kinds(output)
    assert examine_and_report(str(output), is_repaired=True, sleep=lambda seconds: None) == 0
    assert kinds(output) == []
    assert open_results(str(output)).committed_shards("r") == 3
    assert not [path for path in output.rglob("*") if path.is_symlink() and "quarantine" not in path.parts]


def test_a_misplaced_folder_is_moved_with_its_files(output: Path) -> None:
    folder = output / "images/run=r/part-00001.parquet"
    folder.unlink()
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (folder / name).write_bytes(b"x")
    assert [name for name, kind in kinds(output) if kind == "foreign"] == ["images/run=r/part-00001.parquet"]
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert kinds(output) == []
    assert len(list(output.glob("quarantine/*/images/run=r/part-00001.parquet/deep/b"))) == 1


def test_files_without_permission_are_reported_and_not_moved(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = str(output / "images/run=r/part-00001.parquet")

    class Forbidding(Storage):
        def open(self, uri: str) -> StoredFile:
            if uri == part:
                raise AccessDeniedError(f"No permission to read {uri}; check the permissions.")
            return super().open(uri)

    monkeypatch.setattr("jobs.maintenance.doctor.Storage", Forbidding)
    finish_run(str(output.parent / "in"), str(output), "other")
    (output / "images/run=other/part-00000.parquet").write_bytes(b"")
    assert examine_and_report(str(output), is_repaired=True) == 1
    assert Path(part).exists()
    # The other run is mended all the same.
    assert not (output / "images/run=other/part-00000.parquet").exists()


def test_parts_without_rows_are_done_again(output: Path) -> None:
    for table in ("images", "instances"):
        part = output / table / "run=r/part-00002.parquet"
        pq.write_table(pq.ParquetFile(part).read().slice(0, 0), part)
    assert kinds(output) == [("images/run=r/part-00002.parquet", "mismatch")]


@pytest.mark.parametrize("typed", ["{}/", "{}//", "file://{}", "."])
def test_an_output_has_one_name(output: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(output)
    (output / "images/run=r/part-00001.parquet").write_bytes(b"")
    assert examine_and_report(typed.format(output), is_repaired=True) == 0
    assert len(list(output.glob("quarantine/*/images/run=r/part-00001.parquet"))) == 1
    assert kinds(output) == []


def record_counts(output: Path) -> Path:
    """Record the counts of the run's shards, and return the file."""
    record_unrecorded(
        Storage(), str(output), "r", shard_count=4, find_repeats=lambda: np.empty(0, np.int64), check_lease=lambda: None
    )
    (path,) = output.glob("runs/r/counts/*.parquet")
    return path


@pytest.mark.parametrize("is_damaged", [False, True])
def test_recorded_counts_that_are_not_those_of_the_rows_are_counted_again(output: Path, *, is_damaged: bool) -> None:
    path = record_counts(output)
    assert kinds(output) == []
    right = read_counts(Storage(), str(path))
    others = [ShardResult(shard, {"ok": 2}, 5 if shard == 3 else 4, {}, 0, 0.0) for shard in range(4)]
    path.write_bytes(b"x" if is_damaged else encode_counts(counts_of_reports(others)))
    assert kinds(output) == [(f"runs/r/counts/{path.name}", "damaged" if is_damaged else "mismatch")]
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert kinds(output) == []
    (repaired,) = output.glob("runs/r/counts/*.parquet")
    assert read_counts(Storage(), str(repaired)).equals(right)


def test_a_damaged_file_that_voids_shards_takes_older_counts_with_it(output: Path) -> None:
    older = record_counts(output)
    void = output / "runs/r/counts/voids-00007-00000000.parquet"
    void.write_bytes(b"x")
    assert kinds(output) == [(f"runs/r/counts/{void.name}", "damaged")]
    assert examine_and_report(str(output), is_repaired=True) == 0
    (repaired,) = output.glob("runs/r/counts/*.parquet")
    assert repaired.name.startswith("counts-")
    assert repaired != older


@pytest.mark.parametrize(
    ("column", "value", "clause"),
    [
        ("mask", {"size": [4, 5], "counts": "522"}, "has a mask that cannot be decoded"),
        ("mask", {"size": [5, 4], "counts": "52207"}, "has a mask of 4 x 5 pixels, and its image has 5 x 4"),
        ("area", 5, "has the area 5, and its mask has 4 pixels"),
        ("score", float("nan"), "has the score nan, which is not from 0 to 1"),
        ("bbox", {"x": 1.0, "y": 1.0, "width": float("inf"), "height": 2.0}, "has a box that is not of finite numbers"),
    ],
)
def test_values_that_cannot_be_right_are_found_and_done_again(
    output: Path, column: str, value: object, clause: str
) -> None:
    path = next(
        each for each in sorted(output.glob("instances/run=r/*.parquet")) if pq.ParquetFile(each).metadata.num_rows
    )
    table = pq.ParquetFile(path).read()
    changed = table.column(column).to_pylist()
    changed[-1] = value
    place = table.schema.get_field_index(column)
    pq.write_table(
        table.set_column(place, table.schema.field(column), pa.array([*changed], table.schema.field(column).type)), path
    )
    (finding,) = examine_output(Storage(), str(output)).findings
    last = table.slice(len(table) - 1).to_pylist()[0]
    assert (finding.file, finding.kind) == (str(path), "damaged")
    assert finding.problem == f"instance {last['instance']} of {last['uri']} {clause}"
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert open_results(str(output)).committed_shards("r") == 3
