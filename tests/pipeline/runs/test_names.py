"""A run's name stays text for the readers of the folders: pandas, polars, pyarrow and DuckDB."""

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from jobs.scheduling.firing import firing_name
from pipeline.errors import SpecError
from pipeline.runs.names import taken_for
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import begin_run, finish_run, write_inputs

OTHERS = {
    "a number": [
        *("007", "7", "1.5", "1.", "1e5", "1E-5", "0x10", "0b1", "1d", "2f", "1L", "20261125", "99999999999999999999"),
        *("nan", "NaN", "inf", "Infinity"),
    ],
    "a date": [
        *("2026-11-25", "25-11-2026", "2026-1-5", "2026-11-25T10-00-00", "2026-11-25_10.30", "20261125T103000Z"),
        *("epoch", "today"),
    ],
    "true or false": ["true", "False", "T", "yes", "off"],
    "a missing value": ["null", "None", "NA", "NaT"],
}
NAMES = [
    *("night", "run-007", "r7", "v1.2.3", "7-20261125-023000", "2026-11-20261125-023000", "2026_11_25", "a1e5"),
    *("run-20261125-103000-2", "e5", "deadbeef", "nightly-20261125-023000-now", "1-of-2", "x2026-11-25", "7th"),
]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in OTHERS.items() for name in names])
def test_a_name_that_readers_do_not_read_as_text_is_refused_for_a_new_run(tmp_path: Path, kind: str, name: str) -> None:
    images = write_inputs(tmp_path / "in", 1)
    assert taken_for(name) == kind
    with pytest.raises(SpecError, match=f"as {kind}.*--run run-{name}"):
        begin_run(images, str(tmp_path / "out"), name)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("name", NAMES)
def test_readers_read_other_names_as_text(tmp_path: Path, name: str) -> None:
    assert taken_for(name) == ""
    folder = tmp_path / f"run={name}"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "part-00000.parquet")
    glob = f"{tmp_path}/run=*/*.parquet"
    hive = pads.dataset(tmp_path, partitioning="hive").to_table()
    # A name that begins with a digit would fail here if pyarrow read it as a number.
    assert hive.column("run").to_pylist() == [name]
    assert pd.read_parquet(tmp_path)["run"].tolist() == [name]
    assert pl.read_parquet(glob, hive_partitioning=True)["run"].to_list() == [name]
    assert duckdb.sql(f"SELECT run FROM read_parquet('{glob}', hive_partitioning = true)").fetchall() == [(name,)]


def test_an_existing_run_with_such_a_name_is_resumed(tmp_path: Path) -> None:
    """An earlier release began it."""
    images, output = write_inputs(tmp_path / "in", 4), str(tmp_path / "out")
    finish_run(images, output, "r007", only_shards=1)
    for folder in ("runs/{}", "images/run={}", "instances/run={}"):
        (tmp_path / "out" / folder.format("r007")).rename(tmp_path / "out" / folder.format("007"))
    record = tmp_path / "out/runs/007/run.json"
    record.write_text(record.read_text().replace('"run": "r007"', '"run": "007"'))
    again = begin_run(images, output, "007", storage=Storage())
    assert (again.name, again.state, again.todo()) == ("007", "resumed", [1])


def test_runs_of_schedules_have_names(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    moment = datetime(2026, 11, 25, 2, 30, tzinfo=UTC)
    assert [taken_for(firing_name(schedule, moment, "cron")) for schedule in ("7", "2026-11", "true", "1e5", "0")] == [
        ""
    ] * 5
