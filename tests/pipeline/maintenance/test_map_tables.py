"""Runs with tables of maps: read, compacted, examined, repaired and removed like the others."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.maintenance.doctor import examine_and_report
from pipeline.errors import DamagedFileError
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.doctor.examine import examine_output
from pipeline.maintenance.removal import remove_run
from pipeline.output.merge import DICTIONARIES, ORDER, SCHEMAS
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import (
    HookedStorage,
    PowerCutError,
    files_below,
    finish_run,
    tables_of,
    write_inputs,
)

LARGE = 1 << 30


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A complete run of four shards with maps; the second image of each shard failed."""
    images = write_inputs(tmp_path / "in", 8)
    finish_run(images, str(tmp_path / "out"), "r", maps=MAP_TABLES, is_ok=lambda uri: int(uri[-5]) % 2 == 0)
    return tmp_path / "out"


def findings(output: Path) -> list[tuple[str, str, str]]:
    found = examine_output(Storage(), str(output)).findings
    return sorted((each.file.removeprefix(f"{output}/"), each.kind, each.repair) for each in found)


def test_rows_are_read_by_every_door(output: Path) -> None:
    found = open_results(str(output))
    assert found.tables("r") == ("semantic", "panoptic", "instances", "images")
    assert (len(found.semantic()), len(found.panoptic())) == (8, 4)
    assert found.semantic("r", ["class", "area"]).slice(0, 2).to_pylist() == [
        {"class": "person", "area": 4, "run": "r"},
        {"class": "sky-other", "area": 16, "run": "r"},
    ]
    with open_database(found) as database:
        for view in ("semantic", "current_semantic"):
            sql = f"SELECT class, class_id, sum(mask_area(mask)) FROM {view} GROUP BY ALL ORDER BY class_id"
            assert database.execute(sql).fetchall() == [("person", 1, 16), ("sky-other", 157, 64)]
        joined = "SELECT count(*) FROM current_panoptic p JOIN instances i USING (image_id, run, instance)"
        assert database.execute(joined).fetchall() == [(4,)]


def test_views_of_runs_without_maps_are_empty_and_of_several_runs_hold_those_that_have_them(tmp_path: Path) -> None:
    images, output = write_inputs(tmp_path / "in", 4), str(tmp_path / "out")
    finish_run(images, output, "plain")
    with open_database(open_results(output)) as database:
        assert [row[0] for row in database.execute("DESCRIBE semantic").fetchall()][:4] == [
            *("image_id", "uri", "class_id", "class")
        ]
        assert database.execute("SELECT count(*) FROM current_panoptic").fetchall() == [(0,)]
    finish_run(images, output, "mapped", day=1, maps=["semantic"])
    finish_run(images, output, "again", day=2, maps=["panoptic"], is_ok=lambda uri: "0000" in uri)
    found = open_results(output)
    assert Counter(found.semantic().column("run").to_pylist()) == {"mapped": 8}
    assert Counter(found.panoptic().column("run").to_pylist()) == {"again": 1}
    with open_database(found) as database:
        # The first image's newest run is "again", which was asked for no semantic map.
        sql = "SELECT run, count(*) FROM {} GROUP BY run"
        assert database.execute(sql.format("current_semantic")).fetchall() == [("mapped", 6)]
        assert database.execute(sql.format("current_panoptic")).fetchall() == [("again", 1)]


def test_compaction_merges_every_table(output: Path) -> None:
    before = tables_of(str(output))
    done = compact_run(Storage(), str(output), "r", target_bytes=LARGE, check=lambda: None)
    assert (done.ranges, done.files_before, done.files_after) == (1, 16, 4)
    assert tables_of(str(output)) == before
    assert {len(rows) for rows in before.values()} == {8, 4}
    for table in MAP_TABLES:
        (name,) = (output / table / "run=r").iterdir()
        file = pq.ParquetFile(name)
        assert file.schema_arrow.equals(SCHEMAS[table])
        assert set(DICTIONARIES[table]) <= columns_of(file)
        order = [file.read().column(column).to_pylist() for column, _ in ORDER[table]]
        assert list(zip(*order, strict=True)) == sorted(zip(*order, strict=True))


def columns_of(file: pq.ParquetFile) -> set[str]:
    return {file.schema.column(number).path for number in range(len(file.schema))}


def test_a_power_cut_while_compacting_loses_and_doubles_nothing(output: Path) -> None:
    before, deaths = tables_of(str(output)), 0
    while True:
        try:
            compact_run(HookedStorage(dies_before=deaths), str(output), "r", target_bytes=LARGE, check=lambda: None)
            break
        except PowerCutError:
            assert tables_of(str(output)) == before
            deaths = deaths + 1 if deaths < 4 else deaths + 5
    assert deaths >= 4
    assert findings(output) == []


@pytest.mark.parametrize("table", MAP_TABLES)
def test_a_part_that_is_lost_stops_compaction_and_every_reader(output: Path, table: str) -> None:
    (output / table / "run=r" / "part-00001.parquet").unlink()
    with pytest.raises(DamagedFileError, match=table):
        compact_run(Storage(), str(output), "r", target_bytes=LARGE, check=lambda: None)
    with pytest.raises(DamagedFileError, match=table):
        getattr(open_results(str(output)), table)()


@pytest.mark.parametrize("table", MAP_TABLES)
@pytest.mark.parametrize("harm", ["missing", "damaged", "mismatch"])
def test_the_doctor_has_the_shard_done_again(output: Path, table: str, harm: str) -> None:
    part = output / table / "run=r" / "part-00001.parquet"
    if harm == "missing":
        part.unlink()
    elif harm == "damaged":
        part.write_bytes(part.read_bytes()[:200])
    else:
        part.write_bytes((output / table / "run=r" / "part-00002.parquet").read_bytes())
    assert findings(output) == [(f"{table}/run=r/part-00001.parquet", harm, "redo")]
    examine_and_report(str(output), is_repaired=True)
    assert findings(output) == []
    assert list(output.glob("*/run=r/part-00001.parquet")) == []
    assert len(open_results(str(output)).images()) == 6


def test_the_doctor_writes_the_empty_part_of_a_shard_without_a_result(tmp_path: Path) -> None:
    images, output = write_inputs(tmp_path / "in", 4), tmp_path / "out"
    finish_run(images, str(output), "r", maps=["semantic"], is_ok=lambda uri: "0000" in uri)
    part = output / "semantic" / "run=r" / "part-00001.parquet"
    part.unlink()
    assert findings(output) == [("semantic/run=r/part-00001.parquet", "missing", "write_empty")]
    assert examine_and_report(str(output), is_repaired=True) == 0
    assert pq.read_table(part, partitioning=None).num_rows == 0
    assert len(open_results(str(output)).semantic()) == 2


def test_the_doctor_notices_maps_that_do_not_cover_their_image(output: Path) -> None:
    part = output / "semantic" / "run=r" / "part-00001.parquet"
    pq.write_table(pq.read_table(part, partitioning=None).slice(0, 1), part)
    assert findings(output) == [("semantic/run=r/part-00001.parquet", "mismatch", "redo")]


def test_the_doctor_sets_aside_what_no_shard_has_and_no_run_asked_for(output: Path) -> None:
    part = output / "panoptic" / "run=r" / "part-00001.parquet"
    (output / "images" / "run=r" / "part-00001.parquet").unlink()
    (output / "instances" / "run=r" / "part-00001.parquet").unlink()
    (output / "semantic" / "run=r" / "part-00001.parquet").unlink()
    (output / "runs" / "r" / "summary.json").unlink()
    assert findings(output) == [("panoptic/run=r/part-00001.parquet", "leftover", "set_aside")]
    finish_run(str(output.parent / "in"), str(output), "plain", day=1)
    (output / "semantic" / "run=plain").mkdir()
    (output / "semantic" / "run=plain" / "part-00001.parquet").write_bytes(part.read_bytes())
    assert ("semantic/run=plain/part-00001.parquet", "foreign", "set_aside") in findings(output)


def test_a_removed_run_leaves_no_maps(output: Path) -> None:
    remove_run(Storage(), str(output), "r", check=lambda: None, moment="2026-01-01T00:00:00+00:00")
    assert files_below(output) == []
