"""`htc runs` and `htc compact` as one types them, without torch and Ray."""

import json
from pathlib import Path

import pytest
from finished_runs import finish_run, tables_of, write_inputs
from test_no_torch import run_without_torch

from jobs.retention.compact import compact_output
from jobs.retention.listing import report_runs
from pipeline.lease import take_lease
from pipeline.publication import Publication, note_publication
from pipeline.storage import Storage
from pipeline.tables import open_results


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Two complete runs, and one that was cut off."""
    images = write_inputs(tmp_path / "in", 6)
    for night in range(2):
        finish_run(images, str(tmp_path / "out"), f"night-{night}", night=night)
    finish_run(images, str(tmp_path / "out"), "cut", night=2, only_shards=1)
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


def test_the_table_says_who_needs_a_run_and_where_it_is(output: str, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_what_cannot_be_compacted_says_why(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    note_publication(Storage(), output, "night-0", Publication("prod", "htc", ""))
    assert compact_output(output, run="night-0") == 1
    assert "published in prod" in capsys.readouterr().err
    lease = take_lease(Storage(), output, "night-1")
    try:
        assert compact_output(output, run="night-1") == 1
    finally:
        lease.release()
    assert "works on the run night-1" in capsys.readouterr().err
    assert len(open_results(output).image_parts("night-1")) == 3
