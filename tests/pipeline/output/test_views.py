"""The views hold the committed rows of every release, and SQL reaches nothing else."""

import hashlib
import re
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.output.merge
import pipeline.output.query_files
from pipeline.errors import DamagedFileError, SpecError
from pipeline.maintenance.compaction import ShardRange, compact_run, replace_parts
from pipeline.output.commit import images_part, instances_part, with_run_name
from pipeline.output.parts import Part
from pipeline.output.results import Results, open_results
from pipeline.output.views import open_database, query_views, translated_sql_errors
from pipeline.storage.objects import ObjectData
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import finish_run, write_inputs
from tests.support.builders.incremental_runs import WrittenRun, write_runs
from tests.support.builders.outputs import Output, make_output_folder

PART = "htc-parts://images/000000000/night/part-00000.parquet"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return make_output_folder(tmp_path_factory.mktemp("views"))


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "sql",
    [
        f"COPY (SELECT 1) TO '{PART}'",
        f"COPY (SELECT 1) TO '{PART}' (FORMAT parquet, USE_TMP_FILE false)",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{PART}' (FORMAT parquet, USE_TMP_FILE false)",
        f"PREPARE stolen AS COPY (SELECT 1) TO '{PART}'; EXECUTE stolen",
        "COPY (SELECT 1) TO 'htc-parts://images/000000000/night/new.csv'",
        "EXPORT DATABASE 'htc-parts://images'",
        "ATTACH 'htc-parts://new.db' AS new",
        # Not committed.
        "FROM read_parquet('htc-parts://instances/000000000/night/part-00002.parquet')",
        "FROM read_parquet('htc-parts://images/000000000/night/part-0000000.parquet')",
        "FROM read_parquet('htc-parts://{folder}/images/run=night/part-00000.parquet')",
        "FROM read_parquet('htc-parts://images/000000000/night/../../../instances/000000000/night/part-00000.parquet')",
        "FROM read_parquet('{folder}/images/run=night/part-00000.parquet')",
        "FROM read_blob('{folder}/runs/night/run.json')",
        "FROM read_text('file://{folder}/runs/night/run.json')",
        "FROM glob('{folder}/*')",
        "FROM sniff_csv('{folder}/runs/night/run.json')",
        "FROM 'https://127.0.0.1/table.parquet'",
        "LOAD httpfs",
        "SET allowed_directories = ['/']",
        "RESET enable_external_access",
        "SET lock_configuration = false",
        "CREATE PERSISTENT SECRET stolen (TYPE s3)",
        "CALL enable_logging(storage = 'file', storage_path = '{folder}/logs')",
    ],
)
def test_sql_reads_no_other_file_and_writes_none(output: Output, sql: str) -> None:
    before = digests(output.folder.parent)
    with open_database(open_results(output.uri)) as database, pytest.raises(SpecError), translated_sql_errors():
        database.execute(sql.format(folder=output.folder)).fetchall()
    assert digests(output.folder.parent) == before


@pytest.mark.parametrize("path", ["htc-parts:///etc/hostname", "htc-parts://../../etc/hostname", "htc-parts://*/*"])
def test_what_is_no_committed_part_does_not_exist(output: Output, path: str) -> None:
    with open_database(open_results(output.uri)) as database:
        assert database.execute("SELECT * FROM read_blob($path)", {"path": path}).fetchall() == []
        assert database.execute("SELECT * FROM glob($path)", {"path": path}).fetchall() == []


@pytest.mark.parametrize("name", ["a 'quoted' name", "run=elsewhere/score=1", "[1-9]*?{a,b}", "日本 %20#?ü"])
def test_the_name_of_the_folder_does_not_matter(tmp_path: Path, name: str) -> None:
    output = make_output_folder(tmp_path, output=name)
    with open_database(open_results(output.uri)) as database:
        found = database.execute("SELECT DISTINCT run, score FROM instances ORDER BY score").fetchall()
        assert [(run, round(score, 2)) for run, score in found] == [("night", 0.25), ("night", 0.9)]
        assert database.execute("SELECT count(*) FROM current").fetchall() == [(5,)]


def test_types_are_those_of_the_tables(output: Output) -> None:
    with open_database(open_results(output.uri)) as database:
        for table in ("images", "instances"):
            names = [(str(row[0]), str(row[1])) for row in database.execute(f"DESCRIBE {table}").fetchall()]
            part = pq.read_schema(output.folder / table / "run=night/part-00000.parquet")
            expected = database.from_arrow(part.empty_table())
            wanted = dict(zip(expected.columns, map(str, expected.types), strict=True))
            del wanted["run_name"]
            assert names == [*wanted.items(), ("run", "VARCHAR")]


def test_tables_without_parts_have_their_columns(tmp_path: Path) -> None:
    finish_run(write_inputs(tmp_path / "in", 2), str(tmp_path / "out"), "r", only_shards=0)
    with open_database(open_results(str(tmp_path / "out"))) as database:
        for table in ("images", "instances", "deletions", "current", "current_instances"):
            assert database.execute(f"SELECT run, uri FROM {table}").fetchall() == []


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    finish_run(write_inputs(tmp_path / "in", 4), str(tmp_path / "out"), "r")
    return tmp_path / "out"


@pytest.mark.parametrize("shard", [0, 1])
def test_parts_of_an_older_release_lack_a_column_that_is_null(two_shards: Path, shard: int) -> None:
    for number in (0, 1):
        part = Path(images_part(str(two_shards), "r", number))
        table = pq.ParquetFile(part).read().drop_columns(["changed", "run_name"])
        if number != shard:
            table = table.append_column("changed", pa.array([True] * len(table)))
        pq.write_table(table, part)
    with open_database(open_results(str(two_shards))) as database:
        rows = database.execute("SELECT shard, changed, count(*) FROM images GROUP BY ALL ORDER BY ALL").fetchall()
        assert rows == [(0, None if shard == 0 else True, 2), (1, None if shard == 1 else True, 2)]
        assert database.execute("SELECT count(*) FROM images WHERE changed IS NULL").fetchall() == [(2,)]


@pytest.mark.parametrize("sql", ["SELECT count(*) FROM images", "SELECT * FROM images", "SELECT uri FROM current"])
def test_a_file_that_htc_did_not_write_is_no_empty_row(two_shards: Path, sql: str) -> None:
    part = Path(images_part(str(two_shards), "r", 1))
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["status"]), part)
    with pytest.raises(DamagedFileError, match=r"part-00001\.parquet is damaged: it has no column status"):
        query_views(open_results(str(two_shards)), lambda database: database.execute(sql).fetchall())


def test_rows_come_in_the_order_of_runs_and_shards(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", [WrittenRun({f"{letter}{run}": "ok" for letter in "cab"}) for run in range(12)])
    with open_database(open_results(str(tmp_path / "runs"))) as database:
        found = database.execute("SELECT run, uri FROM images").fetchall()
    assert found == [(str(run), f"{letter}{run}") for run in range(12) for letter in "cab"]
    output = str(tmp_path / "out")
    finish_run(write_inputs(tmp_path / "in", 8), output, "r")
    replace_parts(
        Storage(), output, "r", ShardRange((Part(0, 0), Part(1, 1))), lambda: None, tables=("instances", "images")
    )
    with open_database(open_results(output)) as database:
        assert database.execute("SELECT shard FROM images").fetchall() == [(n // 2,) for n in range(8)]


class Recording(Storage):
    """Records how many bytes of parts are read, and waits before each read."""

    def __init__(self, wait_s: float = 0.0) -> None:
        super().__init__()
        self.wait_s = wait_s
        self.bytes = 0

    def fetch(self, uri: str, offset: int | None = None, length: int | None = None, **options: Any) -> ObjectData:
        time.sleep(self.wait_s)
        found = super().fetch(uri, offset, length, **options)
        self.bytes += len(found.payload)
        return found


def stored(folder: Path, storage: Storage) -> str:
    """Copy an output into a store, and return its uri."""
    remote = f"memory://{uuid.uuid4().hex}/out"
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write(f"{remote}/{path.relative_to(folder)}", path.read_bytes())
    return remote


def test_an_image_is_found_in_a_compacted_part_by_its_uri_and_its_id(
    two_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.ParquetFile(instances_part(str(two_shards), "r", 0)).read().drop_columns(["run_name"])
    rng = np.random.default_rng(0)
    ids = rng.integers(-(2**63), 2**63, 400)
    for shard in (0, 1):
        rows = [
            table.slice(0, 1).to_pylist()[0]
            | {"image_id": int(ids[number]), "uri": f"{number:04d}.jpg"}
            | {"mask": {"size": [4, 5], "counts": bytes(rng.integers(48, 111, 32_000, np.uint8)).decode()}}
            for number in range(shard * 200, shard * 200 + 200)
        ]
        part = with_run_name(pa.Table.from_pylist(rows, schema=table.schema), "r")
        pq.write_table(part, instances_part(str(two_shards), "r", shard))
    monkeypatch.setitem(pipeline.output.merge.ROW_GROUP_ROWS, "instances", 20)
    monkeypatch.setattr(pipeline.output.query_files, "TAIL_BYTES", 1000)
    compact_run(Storage(), str(two_shards), "r", target_bytes=1 << 30, check=lambda: None)
    (part,) = (two_shards / "instances/run=r").glob("parts-*")
    masks = sum(pq.ParquetFile(part).metadata.row_group(group).column(12).total_compressed_size for group in range(20))
    storage = Recording()
    remote = stored(two_shards, storage)
    taken = {}
    for name, where, count in [
        ("all", "true", 400),
        ("uri", "uri = '0123.jpg'", 1),
        ("id", f"image_id = {ids[123]}", 1),
        ("no uri", "uri = '0123.png'", 0),
        ("no id", "image_id = 7", 0),
    ]:
        with open_database(Results(remote, storage)) as database:
            storage.bytes = 0
            assert len(database.execute(f"SELECT uri, mask FROM instances WHERE {where}").fetchall()) == count
            taken[name] = storage.bytes
    # The file's end and, of 20 row groups, one; DuckDB reads a megabyte at once.
    least = min(taken.values())
    assert taken["all"] > masks
    assert taken["uri"] - least < masks / 4
    assert taken["id"] - least < masks / 4
    assert taken["no id"] - least < masks / 8


@pytest.mark.parametrize("runs", [("monday",), ("monday", "tuesday")])
def test_views_of_the_newest_rows_read_one_row_group_of_a_file_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: tuple[str, ...]
) -> None:
    for table in ("images", "instances"):
        monkeypatch.setitem(pipeline.output.merge.ROW_GROUP_ROWS, table, 10)
    output, images = str(tmp_path / "out"), write_inputs(tmp_path / "in", 40)
    for day, run in enumerate(runs):
        finish_run(images, output, run, day=day)
        compact_run(Storage(), output, run, target_bytes=1 << 30, check=lambda: None)
    results = open_results(output)
    uri = results.images(runs[-1], ["uri"])["uri"][17].as_py()
    for view, table in (("current", "images"), ("current_instances", "instances")):
        sql = f"SELECT * FROM {view} WHERE uri = '{uri}'"
        with open_database(results) as database:
            found = database.sql(sql).to_arrow_table().to_pylist()
            plan = database.execute(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1]
        assert found == [row for row in getattr(results, table)(runs[-1]).to_pylist() if row["uri"] == uri]
        assert found != []
        groups = [(int(read), int(all_)) for read, all_ in re.findall(r"Row Groups Scanned: (\d+) / (\d+)", plan)]
        assert groups != []
        assert all(read <= len(runs) and all_ >= 4 * len(runs) for read, all_ in groups), groups


def test_a_query_over_a_slow_store_can_be_interrupted(two_shards: Path) -> None:
    storage = Recording()
    remote = stored(two_shards, storage)
    database = open_database(Results(remote, storage))
    storage.wait_s = 0.1
    timer = threading.Timer(0.02, database.interrupt)
    timer.start()
    with pytest.raises(duckdb.InterruptException):
        database.execute("SELECT count(*) FROM range(1000000000) t, images").fetchall()
    timer.join()
    database.close()
