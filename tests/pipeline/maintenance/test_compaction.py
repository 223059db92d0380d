"""Compaction: every row counts once at every instant, also after a power cut."""

from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.output.merge
from pipeline.errors import RunError, StorageError
from pipeline.maintenance.compaction import Compacted, compact_run, plan_shard_ranges
from pipeline.output.commit import images_part, instances_part
from pipeline.output.merge import merge_parts
from pipeline.output.parts import Part, committed_parts, committed_shards
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import (
    HookedStorage,
    PowerCutError,
    begin_run,
    files_below,
    finish_run,
    tables_of,
    write_inputs,
)

LARGE = 1 << 30


def held() -> None:
    """The lease is held."""


def compact(output: str, storage: Storage | None = None, target_bytes: int = LARGE) -> Compacted:
    return compact_run(storage or Storage(), output, "r", target_bytes=target_bytes, check=held)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A complete run of four shards of two images."""
    finish_run(write_inputs(tmp_path / "in", 8), str(tmp_path / "out"), "r")
    return str(tmp_path / "out")


def sizes(parts: list[Part], size: int) -> dict[str, dict[Part, int]]:
    return {"images": dict.fromkeys(parts, 1), "instances": dict.fromkeys(parts, size)}


def test_neighbouring_parts_are_merged_up_to_the_target() -> None:
    parts = [Part(0, 0), Part(1, 1), Part(2, 2), Part(3, 9, is_compacted=True), Part(10, 10), Part(11, 11)]
    planned = plan_shard_ranges(parts, sizes(parts, 10), 20)  # type: ignore[arg-type]
    assert [each.part for each in planned] == [Part(0, 1, is_compacted=True), Part(10, 11, is_compacted=True)]
    # Half of a file's rows are not moved, nor is a file alone.
    assert plan_shard_ranges(parts, sizes(parts, 21), 20) == []  # type: ignore[arg-type]


def test_all_rows_are_kept_and_files_are_fewer(output: str) -> None:
    before = tables_of(output)
    done = compact(output)
    assert (done.ranges, done.files_before, done.files_after) == (1, 8, 2)
    assert 0 < done.bytes_after < done.bytes_before
    assert tables_of(output) == before
    names = [name for name in files_below(Path(output)) if name.endswith(".parquet") and not name.startswith("runs")]
    assert names == ["images/run=r/parts-00000-00003.parquet", "instances/run=r/parts-00000-00003.parquet"]


def test_again_changes_nothing(output: str) -> None:
    compact(output)
    storage = HookedStorage()
    assert compact(output, storage).ranges == 0
    assert storage.changes == 0


def test_a_reader_sees_each_row_once_after_every_single_change(output: str) -> None:
    before = tables_of(output)
    looks = []
    storage = HookedStorage(lambda change: looks.append((change, tables_of(output) == before)))
    small = Path(images_part(output, "r", 0)).stat().st_size + Path(instances_part(output, "r", 0)).stat().st_size
    compact(output, storage, target_bytes=small * 2)
    assert len(looks) >= 8
    assert [change for change, is_right in looks if not is_right] == []


def test_killed_anywhere_the_rows_are_right_and_the_next_compaction_finishes(output: str) -> None:
    before, final = tables_of(output), None
    for deaths in count():
        storage = HookedStorage(dies_before=deaths)
        try:
            compact(output, storage)
        except PowerCutError:
            assert tables_of(output) == before, deaths
            assert committed_shards(Storage(), output, "r") == {0, 1, 2, 3}
            if deaths % 3 == 1:
                # The next one may be asked for other sizes.
                compact(output, target_bytes=1)
            continue
        final = files_below(Path(output, "instances"))
        break
    assert deaths > 2
    assert final == files_below(Path(output, "images")) == ["run=r/parts-00000-00003.parquet"]
    assert tables_of(output) == before


def test_a_lost_lease_removes_nothing(output: str) -> None:
    before, files = tables_of(output), files_below(Path(output, "images"))

    def lost() -> None:
        raise RunError("Another driver has taken the run over.")

    with pytest.raises(RunError, match="taken the run over"):
        compact_run(Storage(), output, "r", target_bytes=LARGE, check=lost)
    assert files_below(Path(output, "images")) == files
    assert tables_of(output) == before


def test_a_damaged_part_stops_it_and_everything_stays(output: str) -> None:
    Path(instances_part(output, "r", 2)).write_bytes(b"PAR1 no more")
    files = files_below(Path(output))
    with pytest.raises(StorageError, match=r"part-00002\.parquet is damaged"):
        compact(output)
    assert files_below(Path(output)) == files


def test_a_compacted_run_is_still_complete_when_resumed(tmp_path: Path, output: str) -> None:
    compact(output)
    again = begin_run(str(tmp_path / "in"), output, "r")
    assert (again.state, again.todo()) == ("complete", [])


def test_rows_are_sorted_and_parts_of_an_older_release_get_the_new_column(tmp_path: Path) -> None:
    old = IMAGES_SCHEMA.remove(IMAGES_SCHEMA.get_field_index("changed"))
    rows = [
        {"image_id": n, "uri": uri, "shard": 0, "status": "ok", "attempts": 1, "instances": 0, "model": "m"}
        for n, uri in enumerate(["b", "a"])
    ]
    uris = [str(tmp_path / "run=r" / name) for name in ("0.parquet", "1.parquet")]
    (tmp_path / "run=r").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=old), uris[0])
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA), uris[1])
    merged = merge_parts(Storage(), uris, "images")
    table = pq.read_table(pa.BufferReader(merged.payload))
    assert table.schema.names == [*IMAGES_SCHEMA.names, "run_name"]
    assert set(table.column("run_name").to_pylist()) == {"r"}
    assert table.column("uri").to_pylist() == ["a", "b", "a", "b"]
    assert merged.rows == 4


def test_columns_of_a_later_version_are_not_lost(tmp_path: Path) -> None:
    uri = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"uri": ["a"], "aura": [1]}), uri)
    with pytest.raises(StorageError, match=r"aura.*update htc-batch"):
        merge_parts(Storage(), [uri], "images")


def test_row_groups_are_full_and_have_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.output.merge.ROW_GROUP_ROWS, "images", 3)
    finish_run(write_inputs(tmp_path / "in", 8), str(tmp_path / "out"), "r")
    compact(str(tmp_path / "out"))
    (part,) = committed_parts(Storage(), str(tmp_path / "out"), "r")
    found = pq.ParquetFile(tmp_path / "out" / "images" / "run=r" / part.name).metadata
    assert [found.row_group(n).num_rows for n in range(found.num_row_groups)] == [3, 3, 2]
    column = found.schema.to_arrow_schema().get_field_index("uri")
    assert str(found.row_group(1).column(column).statistics.min).endswith("0003.jpg")


def test_a_run_without_instances_is_compacted_too(tmp_path: Path) -> None:
    finish_run(write_inputs(tmp_path / "in", 4), str(tmp_path / "out"), "r", instances=0)
    before = tables_of(str(tmp_path / "out"))
    assert compact(str(tmp_path / "out")).files_after == 2
    assert tables_of(str(tmp_path / "out")) == before
