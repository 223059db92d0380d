"""`htc query`: committed rows only, four formats, no way out of the views."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.results.query import decode_mask, query_output
from pipeline.errors import InputError, SpecError
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from tests.support.builders.outputs import Output, ellipse_mask


def ask(capsys: pytest.CaptureFixture[str], output: Output, sql: str, output_format: str = "json") -> str:
    query_output(output.uri, sql, output_format=output_format)
    return capsys.readouterr().out


def test_half_written_shards_never_show(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(ask(capsys, output, "SELECT category, count(*) AS n FROM instances GROUP BY 1 ORDER BY 1"))
    assert rows == [{"category": "dog", "n": 5}, {"category": "person", "n": 5}]
    counted = json.loads(ask(capsys, output, "SELECT status, count(*) AS n FROM images GROUP BY 1 ORDER BY 1"))
    assert counted == [{"status": "ok", "n": 5}, {"status": "unreadable", "n": 1}]


def test_views_have_a_column_for_the_run(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT run, model, is_trained, images, shards, shards_committed FROM runs"
    assert json.loads(ask(capsys, output, sql)) == [
        {
            "run": "night",
            "model": "htc_r50_fpn",
            "is_trained": True,
            "images": 7,
            "shards": 3,
            "shards_committed": 2,
        }
    ]
    joined = "SELECT DISTINCT images.run FROM images JOIN instances USING (run, image_id)"
    assert json.loads(ask(capsys, output, joined)) == [{"run": "night"}]


def test_formats_hold_the_same_answer(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT uri, error, width, score FROM images LEFT JOIN instances USING (image_id, uri) ORDER BY ALL"
    from_json = json.loads(ask(capsys, output, sql))
    from_csv = list(csv.DictReader(io.StringIO(ask(capsys, output, sql, "csv"))))
    query_output(output.uri, sql, output_file=tmp_path / "answer.parquet")
    from_parquet = pq.read_table(tmp_path / "answer.parquet").to_pylist()
    assert len(from_json) == len(from_csv) == len(from_parquet) == 11
    for one, two, three in zip(from_json, from_csv, from_parquet, strict=True):
        assert two == {name: "" if value is None else str(value) for name, value in one.items()}
        assert one["uri"] == three["uri"]
        assert one["score"] is None or one["score"] == pytest.approx(three["score"])
    # A float32 is written with its own digits.
    assert {row["score"] for row in from_json} == {None, 0.9, 0.25}


def test_the_table_shows_full_names_nulls_and_odd_characters(
    output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ask(capsys, output, "SELECT uri, error, width FROM images ORDER BY uri", "table")
    assert "0 a#b%20 ü.jpg" in text
    assert "NULL" in text
    assert "the file is empty" in text
    assert "a\\nb" in ask(capsys, output, "SELECT 'a' || chr(10) || 'b' AS x", "table")
    assert "…" in ask(capsys, output, "SELECT repeat('x', 500) AS x", "table")


def test_a_long_table_says_what_it_leaves_out(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    query_output(output.uri, "SELECT * FROM range(1234)", output_format="table")
    captured = capsys.readouterr()
    assert "234 more rows not shown" in captured.err
    assert "999" in captured.out


def test_a_million_rows(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT i, image_id FROM range(1_000_000) AS r(i), (SELECT image_id FROM images LIMIT 1)"
    query_output(output.uri, sql, output_format="table")
    assert "999,000 more rows not shown" in capsys.readouterr().err
    query_output(output.uri, sql, output_file=tmp_path / "rows.parquet")
    assert pq.ParquetFile(tmp_path / "rows.parquet").metadata.num_rows == 1_000_000


def test_empty_answers(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT uri, score FROM instances WHERE score > 2"
    assert json.loads(ask(capsys, output, sql)) == []
    assert ask(capsys, output, sql, "csv") == "uri,score\n"
    assert "uri" in ask(capsys, output, sql, "table")
    query_output(output.uri, sql, output_file=tmp_path / "none.parquet")
    assert pq.read_table(tmp_path / "none.parquet").schema.names == ["uri", "score"]


def test_values_that_json_cannot_hold(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    sql = """SELECT 'NaN'::DOUBLE AS a, 'abc'::BLOB AS b, '\\xFF\\x00'::BLOB AS c, DATE '2026-01-02' AS d,
             1.50::DECIMAL(5, 2) AS e, MAP {1: 2} AS f, [NULL, 0.1::FLOAT] AS g, 1 AS x, 2 AS x"""
    assert json.loads(ask(capsys, output, sql)) == [
        {
            "a": None,
            "b": "abc",
            "c": "base64:/wA=",
            "d": "2026-01-02",
            "e": 1.5,
            "f": {"1": 2},
            "g": [None, 0.1],
            "x": 1,
            "x_1": 2,
        }
    ]


def test_the_output_file_is_written_atomically(output: Output, tmp_path: Path) -> None:
    target = tmp_path / "answer.csv"
    target.write_text("before")
    with pytest.raises(SpecError, match="Conversion Error"):
        query_output(output.uri, "SELECT uri::INTEGER FROM images", output_file=target)
    assert target.read_text() == "before"
    query_output(output.uri, "SELECT 1 AS x", output_file=target)
    assert target.read_text() == "x\n1\n"
    with pytest.raises(SpecError, match=r"nowhere.* cannot be written: No such file or directory"):
        query_output(output.uri, "SELECT 1 AS x", output_file=tmp_path / "nowhere" / "x.csv")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM images", 'Referenced column "nothing" not found'),
        ("SELECT * FROM imags", r"Did you mean .*\?$"),
        ("", "holds no statement"),
        ("-- nothing", "holds no statement"),
    ],
)
def test_wrong_sql_is_one_sentence(output: Output, sql: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as caught:
        query_output(output.uri, sql)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('{folder}/*')",
        "COPY images TO '{folder}/stolen.parquet'",
        "ATTACH '{folder}/new.db'",
        "EXPORT DATABASE '{folder}/dump'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT * FROM secret_frame",
    ],
)
def test_sql_cannot_leave_the_views(output: Output, tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    secret_frame = pa.table({"hidden": [1]})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SpecError):
        query_output(output.uri, sql.format(secret=secret, folder=tmp_path))
    assert sorted(tmp_path.iterdir()) == before
    assert len(secret_frame) == 1


def test_external_access_can_be_allowed(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("category,german\nperson,Mensch\n")
    sql = f"SELECT DISTINCT german FROM instances JOIN '{labels}' USING (category)"
    query_output(output.uri, sql, output_format="csv", is_external_allowed=True)
    assert capsys.readouterr().out == "german\nMensch\n"


def test_sql_from_stdin(output: Output, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT 7 AS x"))
    assert ask(capsys, output, "-", "csv") == "x\n7\n"


def test_each_statement_shows_its_answer(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "CREATE TEMP TABLE t (x INTEGER); INSERT INTO t VALUES (1), (2); INSERT INTO t VALUES (3) RETURNING x; "
        "-- a comment; with a semicolon\nSELECT sum(x) AS s FROM t; SET threads = 1; SELECT 'a;b' AS c;"
    )
    query_output(output.uri, script, output_format="csv", is_external_allowed=True)
    assert capsys.readouterr().out.splitlines() == ["x", "3", "s", "6", "c", "a;b"]
    # A table shows the first rows of many, and the next statement runs all the same.
    assert "1\n" in ask(capsys, output, "FROM range(100000); SELECT 1 AS one", "table").split("one")[1]
    for name in ("last.parquet", "last.csv"):
        query_output(output.uri, "SELECT 1 AS a; SELECT 2 AS b; SELECT 3 AS c", output_file=tmp_path / name)
        assert "last answer only; not written: 2 answers before it" in capsys.readouterr().err
    assert (tmp_path / "last.csv").read_text().splitlines() == ["c", "3"]
    assert pq.read_table(tmp_path / "last.parquet").to_pylist() == [{"c": 3}]


def test_nothing_runs_of_sql_that_cannot_be_parsed(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    for sql in ("SELECT 1; SELEC 2", "SELECT 1; .tables\n", ".tables", "SELECT 1;\n  .schema images"):
        with pytest.raises(SpecError) as raised:
            query_output(output.uri, sql)
        is_command = ".s" in sql or sql == ".tables"
        assert ("command of the prompt" in str(raised.value) and "SHOW TABLES" in str(raised.value)) == is_command
    assert capsys.readouterr().out == ""


def test_parquet_needs_a_file(output: Output) -> None:
    with pytest.raises(SpecError, match="--to FILE"):
        query_output(output.uri, "SELECT 1", output_format="parquet")


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        query_output(str(tmp_path), "SELECT 1")


def test_remote_output_reads_like_a_local_one(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    memory = fsspec.filesystem("memory")
    try:
        memory.put(output.uri, "/bucket/out put", recursive=True)
        query_output(
            "memory://bucket/out put", "SELECT count(*) AS n FROM instances WHERE score > 0.5", output_format="csv"
        )
        assert capsys.readouterr().out == "n\n5\n"
    finally:
        memory.rm("/bucket", recursive=True)


def test_masks_decode_from_rows(output: Output) -> None:
    database = open_database(open_results(output.uri))
    try:
        relation = database.sql("SELECT * FROM instances ORDER BY uri LIMIT 1")
        row = dict(zip(relation.columns, relation.fetchall()[0], strict=True))
    finally:
        database.close()
    mask = decode_mask(row)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, ellipse_mask(*mask.shape))
    np.testing.assert_array_equal(decode_mask(row["mask"]), mask)
    with pytest.raises(ValueError, match="no mask"):
        decode_mask({**row, "mask": None})


def test_name_patterns_are_not_globs(make_output: Callable[..., Output], capsys: pytest.CaptureFixture[str]) -> None:
    output = make_output(output="odd [1]*?%20")
    assert ask(capsys, output, "SELECT count(*) AS n FROM images", "csv") == "n\n6\n"
