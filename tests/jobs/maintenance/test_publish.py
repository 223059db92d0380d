"""`htc publish`: finished runs in Iceberg tables, completely or not at all, and once however often published."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import NoSuchTableError

from jobs.maintenance.iceberg import schema as iceberg_schema
from jobs.maintenance.iceberg.publisher import Publisher
from jobs.maintenance.iceberg.table import IcebergTable
from jobs.maintenance.prune import prune_output
from jobs.maintenance.publish import opened_publisher
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.publications import forget_publication, read_publications
from pipeline.output.results import Results
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import PowerCutError, finish_run, tables_of
from tests.support.iceberg_reading import (
    LEFT_OUT,
    catalog_of,
    load,
    make_runs,
    publish,
    published,
    runs_in,
    snapshots,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two complete runs, and an unfinished one."""
    return make_runs(tmp_path)


def test_iceberg_readers_get_the_same_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(folder) == LEFT_OUT
    reported = capsys.readouterr()
    assert "2 runs published." in reported.out
    assert reported.err.startswith("Not published: the run cut is not finished; ")
    both = [tables_of(str(folder / "out"), run) for run in ("night-0", "night-1")]
    for table in ("images", "instances"):
        assert published(folder, table) == sorted(both[0][table] + both[1][table])
    assert published(folder, "deletions") == []


def test_tables_of_maps_are_published_of_the_runs_that_have_them(folder: Path) -> None:
    publish(folder)
    with pytest.raises(NoSuchTableError):
        load(folder, "semantic")
    finish_run(str(folder / "in"), str(folder / "out"), "mapped", day=3, maps=MAP_TABLES)
    assert publish(folder, run="mapped") == 0
    rows = tables_of(str(folder / "out"), "mapped")
    for table in MAP_TABLES:
        assert published(folder, table) == rows[table] != []
        assert len(snapshots(folder, table)) == 1
    assert publish(folder, run="mapped") == 0
    assert len(snapshots(folder, "semantic")) == 1
    with opened_publisher(str(folder / "out"), catalog_of(folder), "htc", None) as (_, publisher):
        assert publisher.withdraw("mapped", None)
    assert published(folder, "semantic") == published(folder, "panoptic") == []


def test_each_run_is_a_snapshot_with_its_name(folder: Path) -> None:
    publish(folder)
    reported = [each.summary.additional_properties for each in snapshots(folder)]
    assert [each["htc.run"] for each in reported] == ["night-0", "night-1"]
    assert reported[0]["htc.weights-sha256"] == "a" * 64
    assert (reported[0]["htc.model"], reported[0]["htc.images"]) == ("htc_r50_fpn", "4")
    (noted,) = read_publications(Storage(), str(folder / "out"), "night-1")
    assert noted.snapshots["images"] == snapshots(folder)[1].snapshot_id
    before = load(folder, "images").scan(snapshot_id=snapshots(folder)[0].snapshot_id).to_arrow()
    assert set(before.column("run").to_pylist()) == {"night-0"}


def test_a_new_table_is_one_step(folder: Path) -> None:
    """So that no publisher meets a table without its mapping of column names."""
    with opened_publisher(str(folder / "out"), catalog_of(folder), "htc", None) as (_, publisher):
        publisher.make()
    for name in ("images", "instances", "deletions"):
        table = load(folder, name)
        assert Path(table.metadata_location).name.startswith("00000-")
        names = {field.field_id: set(field.names) for field in table.name_mapping()}
        wanted = {field.field_id: {field.name} for field in table.schema().fields}
        assert names == {**wanted, table.schema().find_field("run").field_id: {"run", "run_name"}}


def test_again_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    before = {table: load(folder, table).metadata_location for table in ("images", "instances", "deletions")}
    capsys.readouterr()
    assert publish(folder) == LEFT_OUT
    assert capsys.readouterr().out == "Nothing to publish but 1 run left out.\n"
    assert {table: load(folder, table).metadata_location for table in before} == before


def test_filters_reach_the_files(folder: Path) -> None:
    publish(folder)
    table = load(folder, "images")
    assert len(list(table.scan().plan_files())) == 4
    assert len(list(table.scan(row_filter="run = 'night-1'").plan_files())) == 2
    # By the statistics: of the full uris, not of their first characters, which all have in common.
    uri = str(folder / "in" / "0003.jpg")
    assert len(list(table.scan(row_filter=f"run = 'night-1' and uri = '{uri}'").plan_files())) == 1
    assert table.scan(row_filter="status = 'unreadable'").to_arrow().num_rows == 2


@pytest.mark.parametrize("table", ["instances", "deletions", "images"])
def test_killed_between_tables_the_next_publisher_finishes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    publish(folder, run="night-0")
    put = IcebergTable.put

    def put_or_die(self: IcebergTable, *arguments: Any) -> bool:
        if self.name == table:
            raise PowerCutError
        return put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(IcebergTable, "put", put_or_die)
        with pytest.raises(PowerCutError):
            publish(folder)
    # Queries that begin at images find complete runs only.
    assert runs_in(folder) == {"night-0"}
    assert prune_output(str(folder / "out"), keep_last=1, confirmed=True) == 0
    assert publish(folder) == LEFT_OUT
    assert runs_in(folder) == runs_in(folder, "instances") == {"night-0", "night-1"}
    assert published(folder, "instances") == sorted(
        tables_of(str(folder / "out"), "night-0")["instances"] + tables_of(str(folder / "out"), "night-1")["instances"]
    )
    assert [len(snapshots(folder, name)) for name in ("images", "instances")] == [2, 2]


def test_of_two_publishers_at_once_one_wins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder, run="night-0")
    finish_run(str(folder / "in"), str(folder / "out"), "night-3", day=3)
    lease = take_lease(Storage(), str(folder / "out"), "night-1")
    try:
        assert publish(folder) == 1
    finally:
        lease.release()
    reported = capsys.readouterr().err
    assert "working on the run night-1" in reported
    assert "; try again when that has ended.\n" in reported
    # Nights enter in their order.
    assert runs_in(folder) == {"night-0"}
    assert publish(folder) == LEFT_OUT
    assert runs_in(folder) == {"night-0", "night-1", "night-3"}


def test_a_run_that_was_pruned_meanwhile_is_not_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prune_first(publisher: Publisher, results: Results, run: str) -> bool:
        prune_output(str(folder / "out"), keep_last=1, confirmed=True)
        return False

    monkeypatch.setattr(Publisher, "has", prune_first)
    assert publish(folder, run="night-0") == 1
    assert capsys.readouterr().err == "Not published: the run night-0 was pruned meanwhile.\n"
    assert not any((folder / "out").rglob("published.json"))
    assert published(folder) == []


def test_of_two_publishers_without_a_lease_one_wins_too(folder: Path) -> None:
    publish(folder, run="night-0")
    with opened_publisher(str(folder / "out"), catalog_of(folder), "htc", None) as (results, _):
        tables = []
        for _ in range(2):
            with opened_publisher(str(folder / "out"), catalog_of(folder), "htc", None) as (_, publisher):
                tables.append(publisher.table("images"))
        uris = results.image_parts("night-1")
        changes = [table.put("night-1", uris, {}, lambda: None) for table in tables]
    assert changes == [True, False]
    assert len(published(folder)) == 8


def test_a_run_that_was_compacted_after_publishing_is_replaced_in_one_snapshot(folder: Path) -> None:
    publish(folder)
    before, count = published(folder), len(snapshots(folder))
    storage, output = Storage(), str(folder / "out")
    (note,) = read_publications(storage, output, "night-0")
    forget_publication(storage, output, "night-0", note.place)
    compact_run(storage, output, "night-0", target_bytes=1 << 30, check=lambda: None)
    assert publish(folder) == LEFT_OUT
    assert published(folder) == before
    assert len(snapshots(folder)) == count + 1
    assert len(list(load(folder, "images").scan(row_filter="run = 'night-0'").plan_files())) == 1


def test_new_columns_are_added_to_a_table_of_an_earlier_release(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = IMAGES_SCHEMA.remove(IMAGES_SCHEMA.get_field_index("changed"))
    with monkeypatch.context() as patch:
        patch.setitem(iceberg_schema.SCHEMAS, "images", older)
        with opened_publisher(str(folder / "out"), catalog_of(folder), "htc", None) as (_, publisher):
            publisher.make()
    assert "changed" not in load(folder, "images").schema().column_names
    publish(folder)
    table = load(folder, "images")
    assert table.schema().column_names[-2:] == ["run", "changed"]
    assert table.scan().to_arrow().column("changed").null_count == 8
    assert pa.types.is_boolean(table.scan().to_arrow().schema.field("changed").type)


def test_a_run_without_images_is_one_snapshot(folder: Path) -> None:
    publish(folder, run="night-0")
    with opened_publisher(str(folder / "out"), catalog_of(folder), "htc", None) as (_, publisher):
        table = publisher.table("images")
        assert [table.put("idle", [], {}, lambda: None) for _ in range(2)] == [True, False]
    assert [each.summary.additional_properties["htc.run"] for each in snapshots(folder)] == ["night-0", "idle"]
    assert len(published(folder)) == 4
