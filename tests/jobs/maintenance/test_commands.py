"""`htc runs` and `htc compact` as typed by a user, without torch and Ray."""

import json
from pathlib import Path

import duckdb
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import jobs.maintenance.compact
import jobs.results.query
from jobs.maintenance.compact import compact_output
from jobs.maintenance.list_runs import report_runs
from jobs.results.evaluation import report_evaluation
from jobs.results.query import query_output
from pipeline.errors import StorageError
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.publications import Publication, note_publication
from pipeline.output.results import Results, open_results
from pipeline.output.views import open_database
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import finish_run, tables_of, write_inputs
from tests.support.without_torch import run_without_torch


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Two complete runs, and an unfinished one."""
    images = write_inputs(tmp_path / "in", 6)
    for night in range(2):
        finish_run(images, str(tmp_path / "out"), f"night-{night}", day=night)
    finish_run(images, str(tmp_path / "out"), "cut", day=2, only_shards=1)
    return str(tmp_path / "out")


def test_without_torch(output: str) -> None:
    listed = run_without_torch("runs", output, "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [(each["run"], each["state"], each["is_needed_by_current"]) for each in json.loads(listed.stdout)] == [
        ("night-0", "complete", False),
        ("night-1", "complete", True),
        ("cut", "incomplete", True),
    ]
    compacted = run_without_torch("compact", output)
    assert compacted.returncode == 0
    assert compacted.stderr == "Not compacted: the run cut is not complete; finish it first, or prune it.\n"
    pruned = run_without_torch("prune", output, "--keep-last", "1", "--yes")
    assert (pruned.returncode, pruned.stderr) == (0, "")
    assert "Removed 1 run" in pruned.stdout


def test_the_table_has_needed_runs_and_publications(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    note_publication(Storage(), output, "night-0", Publication("prod", "htc", "", {"images": 4711}))
    report_runs(output)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "4711" in lines["night-0"]
    assert "needed" not in lines["night-0"]
    assert "needed" in lines["night-1"]
    assert "incomplete" in lines["cut"]


def test_query_and_show_read_compacted_runs(output: str, tmp_path: Path) -> None:
    before = tables_of(output)
    assert compact_output(output) == 0
    assert tables_of(output) == before
    asked = run_without_torch(
        "query", output, "SELECT count(*) AS n FROM instances WHERE run = 'night-0'", "--format=csv"
    )
    assert asked.stdout == "n\n12\n"
    results = open_results(output)
    assert results.instances_part("night-0", 2) == results.instances_part("night-0", 0)
    assert results.instances_part("cut", 0).endswith("part-00000.parquet")


def test_one_run_is_compacted_by_name(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compact_output(output, run="night-1") == 0
    assert len(open_results(output).image_parts("night-0")) == 3
    assert len(open_results(output).image_parts("night-1")) == 1
    assert compact_output(output, run="night-1") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing to compact."


def test_the_size_of_a_file_is_that_of_the_flag_or_of_the_run(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In kibibytes, so that a small run has several files.
    monkeypatch.setattr(jobs.maintenance.compact, "MIB", 1 << 10)
    largest = max(path.stat().st_size for path in Path(output).glob("i*/run=night-1/part-*"))
    for run, kib in (("night-0", 1), ("night-1", largest * 5 // 2 >> 10)):
        record = json.loads(Path(output, "runs", run, "run.json").read_text())
        assert record["spec"]["output"].pop("target_part_mib") == 256
        record["spec"]["output"] |= {"target_part_mib": kib}
        Path(output, "runs", run, "run.json").write_text(json.dumps(record))
    assert compact_output(output) == 0
    assert [len(open_results(output).image_parts(run)) for run in ("night-0", "night-1")] == [3, 2]
    assert compact_output(output, run="night-0", target_mib=1000) == 0
    assert len(open_results(output).image_parts("night-0")) == 1


def test_what_cannot_be_compacted_says_why(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    note_publication(Storage(), output, "night-0", Publication("prod", "htc", ""))
    assert compact_output(output, run="night-0") == 1
    assert "published in prod" in capsys.readouterr().err
    lease = take_lease(Storage(), output, "night-1")
    try:
        assert compact_output(output, run="night-1") == 1
    finally:
        lease.release()
    assert "working on the run night-1" in capsys.readouterr().err
    assert len(open_results(output).image_parts("night-1")) == 3


def test_all_runs_that_are_not_compacted_are_named(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    note_publication(Storage(), output, "night-0", Publication("prod", "htc", ""))
    assert compact_output(output) == 0
    reported = capsys.readouterr().err
    assert [line.startswith("Not compacted: the run ") for line in reported.splitlines()] == [True, True]
    assert "run night-0 is published" in reported
    assert "run cut is not complete" in reported
    lease = take_lease(Storage(), output, "night-1")
    try:
        # It could have been compacted, and was not.
        assert compact_output(output) == 1
    finally:
        lease.release()


@pytest.mark.parametrize("output_format", ["csv", "parquet"])
def test_a_query_whose_files_are_compacted_as_it_begins_asks_again(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: str
) -> None:
    opened: list[str] = []

    def open_and_compact(results: Results, **options: bool) -> duckdb.DuckDBPyConnection:
        database = open_database(results, **options)
        opened.append(
            compact_run(Storage(), output, f"night-{len(opened)}", target_bytes=1 << 30, check=lambda: None).run
        )
        return database

    monkeypatch.setattr(jobs.results.query, "open_database", open_and_compact)
    answer = tmp_path / f"answer.{output_format}"
    sql = "SELECT count(*) AS n, count(DISTINCT uri) AS m FROM images GROUP BY run ORDER BY n"
    query_output(output, sql, output_file=answer)
    assert opened == ["night-0", "night-1", "night-2"]
    read = pq.read_table if output_format == "parquet" else pyarrow.csv.read_csv
    answered = read(answer).to_pydict()
    assert answered == {"n": [2, 6, 6], "m": [2, 6, 6]}


def test_a_query_whose_files_keep_moving_fails_with_a_sentence(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_remove(results: Results, **options: bool) -> duckdb.DuckDBPyConnection:
        database = open_database(results, **options)
        Path(results.image_parts()[0]).unlink()
        return database

    monkeypatch.setattr(jobs.results.query, "open_database", open_and_remove)
    with pytest.raises(StorageError, match=r"compacted or pruned while it was read"):
        query_output(output, "SELECT * FROM images", output_format="csv")


def test_a_compacted_run_scores_as_before(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number:04d}.jpg" for number in range(6)]
    document = {
        "images": [{"id": number, "file_name": name, "width": 5, "height": 4} for number, name in enumerate(names)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1 + number, "image_id": number, "category_id": 1, "iscrowd": 0}
            | {"bbox": [1, 1, 2, 2], "area": 4, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
            for number in range(6)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))

    def score() -> str:
        capsys.readouterr()
        report_evaluation(output, str(tmp_path / "truth.json"), run="night-0", classes=["person"], is_json=True)
        return capsys.readouterr().out

    before = score()
    assert json.loads(before)["box_ap"] == pytest.approx(1.0)
    assert compact_output(output) == 0
    assert score() == before
