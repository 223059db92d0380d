"""The formats of `htc query`: chosen by the suffix, no digit lost, and no traceback for any statement."""

import datetime
import gzip
import io
import json
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.results.query
from jobs.maintenance.list_runs import report_runs
from jobs.results.query import query_output
from pipeline.errors import SpecError
from pipeline.maintenance.publications import Publication, note_publication
from pipeline.output.results import open_results
from pipeline.output.views import translated_sql_errors
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import Output

NAMES = ["plain", "tab\there", "line\nbreak", 'quo"te', "comma, semicolon;", "carriage\rreturn", "", "ü"]
_VALUES = ", ".join(f"('{name}', {number})" for number, name in enumerate(NAMES))
ODD = f"SELECT name, n FROM (VALUES {_VALUES}) t(name, n)"


def answer(output: Output, sql: str, path: Path, output_format: str | None = None) -> bytes:
    query_output(output.uri, sql, output_format=output_format, output_file=path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.JSON5", "x.gz", "x.xlsx.gz", ".csv", "x.arrow", "x.parquet.gz"])
def test_an_unknown_suffix_is_refused_before_the_query_runs(
    output: Output, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.results.query, "open_results", lambda *_: pytest.fail("the query was begun"))
    with pytest.raises(SpecError, match=name.replace(".", r"\.")):
        query_output(output.uri, "SELECT 1", output_file=tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("name", "output_format"), [("x.csv", "json"), ("x.parquet", "csv"), ("x.json", "table")])
def test_a_name_of_another_format_is_refused(output: Output, tmp_path: Path, name: str, output_format: str) -> None:
    with pytest.raises(SpecError, match="--format asks for"):
        answer(output, "SELECT 1", tmp_path / name, output_format)


def test_an_explicit_format_allows_a_file_of_any_name(output: Output, tmp_path: Path) -> None:
    assert answer(output, "SELECT 1 AS x", tmp_path / "answer", "csv") == b"x\n1\n"
    assert b"x" in answer(output, "SELECT 1 AS x", tmp_path / "answer.txt")
    assert answer(output, "SELECT 1 AS x", tmp_path / "answer.txt", "tsv") == b"x\n1\n"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV", "csv.gz", "tsv.gz"])
def test_odd_names_read_back_from_separated_text(output: Output, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    answer(output, ODD, path)
    separator = "\t" if "tsv" in suffix else ","
    for names in (
        pd.read_csv(path, sep=separator, keep_default_na=False)["name"].tolist(),
        pl.read_csv(path, separator=separator)["name"].fill_null("").to_list(),
    ):
        assert names == NAMES


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "json.gz", "jsonl.gz"])
def test_odd_names_read_back_from_json(output: Output, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    raw = answer(output, ODD, path)
    text = (gzip.decompress(raw) if suffix.endswith("gz") else raw).decode()
    rows = (
        json.loads(text)
        if suffix.startswith("json") and "jsonl" not in suffix
        else list(map(json.loads, text.splitlines()))
    )
    assert [row["name"] for row in rows] == NAMES


def test_json_lines_are_read_by_others(output: Output, tmp_path: Path) -> None:
    sql = "SELECT image_id, uri, bbox, mask, score FROM instances ORDER BY uri, instance"
    path = tmp_path / "x.jsonl"
    answer(output, sql, path)
    wanted = pq.read_table(_parquet(output, sql, tmp_path)).to_pylist()
    for rows in (
        pd.read_json(path, lines=True, dtype={"image_id": str}).to_dict("records"),
        pl.read_ndjson(path).to_dicts(),
        duckdb.sql(f"SELECT * FROM read_json('{path}')").to_arrow_table().to_pylist(),
    ):
        assert [int(row["image_id"]) for row in rows] == [row["image_id"] for row in wanted]
        assert [row["mask"]["counts"] for row in rows] == [row["mask"]["counts"] for row in wanted]
        assert [row["bbox"]["x"] for row in rows] == pytest.approx([row["bbox"]["x"] for row in wanted])


def _parquet(output: Output, sql: str, folder: Path) -> Path:
    answer(output, sql, folder / "wanted.parquet")
    return folder / "wanted.parquet"


def test_a_gzipped_answer_is_reproducible(output: Output, tmp_path: Path) -> None:
    assert answer(output, ODD, tmp_path / "a.csv.gz") == answer(output, ODD, tmp_path / "b.csv.gz")


def test_numbers_beyond_doubles_are_text_in_json(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    sql = """SELECT 7 AS image_id, {'image_id': 8, 'n': 9} AS s, 9007199254740991 AS last, 9007199254740992 AS beyond,
             -9223372036854775808 AS least, 170141183460469231731687303715884105727::HUGEINT AS huge,
             [1, 2::BIGINT << 60] AS l, 123456789012345678.25::DECIMAL(38, 4) AS d,
             0.1::DECIMAL(3, 2) AS e, 10::DECIMAL(38, 0) AS f, true AS b"""
    query_output(output.uri, sql, output_format="json")
    assert json.loads(capsys.readouterr().out) == [
        {
            "image_id": "7",
            "s": {"image_id": "8", "n": 9},
            "last": 9007199254740991,
            "beyond": "9007199254740992",
            "least": "-9223372036854775808",
            "huge": "170141183460469231731687303715884105727",
            "l": [1, "2305843009213693952"],
            "d": "123456789012345678.2500",
            "e": 0.1,
            "f": 10,
            "b": True,
        }
    ]


def test_a_column_with_a_number_beyond_doubles_is_text_in_all_rows(
    output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    query_output(output.uri, "SELECT x FROM (VALUES (1), (9007199254740993), (NULL)) t(x)", output_format="jsonl")
    assert capsys.readouterr().out == '{"x": "1"}\n{"x": "9007199254740993"}\n{"x": null}\n'
    query_output(output.uri, "SELECT image_id FROM images", output_format="csv")
    ids = open_results(output.uri).images().column("image_id").to_pylist()
    assert sorted(map(int, capsys.readouterr().out.splitlines()[1:])) == sorted(ids)


def test_snapshots_of_published_runs_are_text_in_json(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    note_publication(Storage(), output.uri, "night", Publication("prod", "htc", "", {"images": 5718736632562904089}))
    report_runs(output.uri, is_json=True)
    (run,) = json.loads(capsys.readouterr().out)
    assert run["published"][0]["snapshots"] == {"images": "5718736632562904089"}
    assert run["images"] == 7


def test_text_has_nan_and_json_has_null(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT 'nan'::DOUBLE AS a, '-inf'::FLOAT AS b, NULL AS c, ['nan'::DOUBLE] AS d"
    assert answer(output, sql, tmp_path / "x.csv") == b"a,b,c,d\nnan,-inf,,[null]\n"
    assert answer(output, sql, tmp_path / "x.tsv") == b"a\tb\tc\td\nnan\t-inf\t\t[null]\n"
    assert json.loads(answer(output, sql, tmp_path / "x.jsonl")) == {"a": None, "b": None, "c": None, "d": [None]}
    query_output(output.uri, sql, output_format="table")
    assert "nan" in capsys.readouterr().out


def test_times_are_in_utc_and_runs_began_at_one(output: Output, tmp_path: Path) -> None:
    (row,) = json.loads(answer(output, "SELECT now() AS t, created FROM runs", tmp_path / "x.json"))
    assert datetime.datetime.fromisoformat(row["t"]).utcoffset() == datetime.timedelta(0)
    record = open_results(output.uri).records[0]
    assert datetime.datetime.fromisoformat(row["created"]) == datetime.datetime.fromisoformat(record.created)
    sql = "SELECT created FROM runs WHERE created > now() - INTERVAL 1 DAY AND created < now() + INTERVAL 1 DAY"
    table = pq.read_table(_parquet(output, sql, tmp_path))
    assert pa.types.is_timestamp(table.schema.field("created").type)
    assert (table.schema.field("created").type.tz, len(table)) == ("UTC", 1)


STATEMENTS = [
    "SELECT now(), [now()], {'t': now()}, TIMESTAMP '2026-01-01', TIME '24:00:00', '24:00:00+15:59'::TIMETZ",
    "SELECT INTERVAL 1 MONTH, 1.5::DECIMAL(38, 10), 1::HUGEINT, 1::UHUGEINT, 99999999999999999999999999999::BIGNUM",
    "SELECT [1, NULL], [], {'a': {'b': [1.5::FLOAT]}}, MAP {'a': 1}, MAP {[1]: 2}, array_value(1, 2), row(1, 2)",
    "SELECT union_value(num := 2), 'a'::ENUM('a', 'b'), uuid(), '0101'::BIT, '\\xAA'::BLOB, '{}'::JSON, 'a'::VARIANT",
    "SELECT 'infinity'::DATE, '20000-01-01'::DATE, '0044-03-15 (BC)'::DATE, '290000-01-01'::TIMESTAMP",
    "SELECT '20000-01-01'::TIMESTAMPTZ, TIMESTAMP_NS '2026-01-01 00:00:00.123456789', 'infinity'::TIMESTAMPTZ",
    "SELECT INTERVAL '100000000 years'",
    "SELECT (), {}, MAP()",
    "SELECT 1; SELECT 2",
    ";",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "DESCRIBE images",
    "SUMMARIZE runs",
    "PRAGMA version",
    "PREPARE p AS SELECT 1; EXECUTE p",
    "BEGIN; SELECT 1; COMMIT",
    "CREATE TABLE t (a INT)",
    "SELECT ?",
    "SELECT 1 // 0",
    "SELECT 1e400::DOUBLE, sqrt(-1), 'x'::INT",
    "SELECT 'a\0b', chr(0)",
    "\0",
    "SELECT '\ud800'",
    "SELECT repeat('x', 1000000)",
    "SELECT " + "(" * 2000 + "1" + ")" * 2000,
    "SELECT error('boom')",
    "SELECT COLUMNS('(') FROM images",
    "SELECT '192.168.0.1'::INET",
    "SELECT json_extract('{', '$')",
]


@pytest.mark.parametrize("sql", STATEMENTS, ids=range(len(STATEMENTS)))
def test_every_failing_statement_is_one_sentence(output: Output, tmp_path: Path, sql: str) -> None:
    written = 0
    for suffix in ("csv", "json", "parquet"):
        path = tmp_path / f"x.{suffix}"
        try:
            answer(output, sql, path)
        except SpecError:
            assert not path.exists()
        else:
            written += 1
    # A type that Parquet lacks must not fail the other formats.
    assert written in {0, 2, 3}


def test_sql_from_stdin_that_is_not_text_is_one_sentence(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"SELECT '\xff'"), encoding="utf-8"))
    with pytest.raises(SpecError, match="UTF-8"):
        query_output(output.uri, "-")


def test_a_module_missing_for_duckdb_is_named_without_a_traceback() -> None:
    traceback = "Traceback (most recent call last):\n\n  File \"a\"\nNo module named 'x'\n"
    message = f"Required module 'x' failed to import:\n{traceback}"
    with pytest.raises(SpecError, match="failed to import: No module named 'x'"), translated_sql_errors():
        raise duckdb.InvalidInputException(message)
