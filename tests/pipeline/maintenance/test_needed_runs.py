"""The view `current` and the runs that it needs."""

from pathlib import Path

import pytest

from pipeline.maintenance.needed_runs import needed_runs
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from tests.support.builders.incremental_runs import WrittenRun, write_runs


@pytest.mark.parametrize(
    ("nights", "needed"),
    [
        ([WrittenRun({"a": "ok"}, []), WrittenRun({"a": "ok"}, [])], "1"),
        ([WrittenRun({"a": "ok", "b": "ok"}, []), WrittenRun({"a": "ok"}, [])], "01"),
        ([WrittenRun({"a": "ok"}, []), WrittenRun({"a": "unreadable"}, [])], "0"),
        ([WrittenRun({"a": "unreadable"}, []), WrittenRun({"b": "ok"}, [])], "1"),
        # A mark that hides nothing which is needed is not needed.
        ([WrittenRun({"a": "ok"}, []), WrittenRun({"b": "ok"}, ["a"])], "1"),
        ([WrittenRun({"a": "ok"}, []), WrittenRun({}, ["a"]), WrittenRun({"b": "ok"}, [])], "2"),
        # Without the mark in 1, `a` would be back; it lies beside `b`, which is needed.
        ([WrittenRun({"a": "ok", "b": "ok"}, []), WrittenRun({}, ["a"])], "01"),
        # It came back.
        ([WrittenRun({"a": "ok", "b": "ok"}, []), WrittenRun({}, ["a"]), WrittenRun({"a": "ok"}, [])], "02"),
        ([WrittenRun({"a": "ok", "b": "ok"}, []), WrittenRun({}, ["a"]), WrittenRun({"a": "unreadable"}, [])], "01"),
        # The run of a needed deletion record is needed too, and a later deletion record hides its own rows.
        ([WrittenRun({"a": "ok", "b": "ok"}, []), WrittenRun({"c": "ok"}, ["a"]), WrittenRun({}, ["c"])], "012"),
        ([WrittenRun({}, [])], ""),
    ],
)
def test_needed_are_the_runs_with_current_rows_and_with_the_deletions_that_hide_others(
    tmp_path: Path, nights: list[WrittenRun], needed: str
) -> None:
    write_runs(tmp_path, nights)
    assert needed_runs(open_results(str(tmp_path))) == set(needed)


@pytest.mark.parametrize(
    ("nights", "expected"),
    [
        ([WrittenRun({"a": "ok", "b": "ok"}), WrittenRun({"a": "ok"})], {"a": "1", "b": "0"}),
        ([WrittenRun({"a": "ok"}), WrittenRun({"a": "unreadable"})], {"a": "0"}),
        ([WrittenRun({"a": "ok", "b": "ok"}), WrittenRun({}, ["a"])], {"b": "0"}),
        ([WrittenRun({"a": "ok"}), WrittenRun({}, ["a"]), WrittenRun({"a": "ok"})], {"a": "2"}),
        ([WrittenRun({"a": "ok"}), WrittenRun({}, ["a"]), WrittenRun({"a": "failed"})], {}),
        ([WrittenRun({"a": "missing"})], {}),
    ],
)
def test_current_is_each_live_images_newest_ok_row(
    tmp_path: Path, nights: list[WrittenRun], expected: dict[str, str]
) -> None:
    write_runs(tmp_path, nights)
    with open_database(open_results(str(tmp_path))) as database:
        assert dict(database.execute("SELECT uri, run FROM current").fetchall()) == expected
        found = database.execute("SELECT uri, category, run FROM current_instances").fetchall()
    assert sorted(found) == sorted((uri, run, run) for uri, run in expected.items())


def test_deletions_have_the_runs_before_and_after(tmp_path: Path) -> None:
    write_runs(tmp_path, [WrittenRun({"a": "ok"}), WrittenRun({}, ["a"])])
    with open_database(open_results(str(tmp_path))) as database:
        deletions = database.execute("SELECT uri, last_run, last_ok_run, run FROM deletions").fetchall()
        runs = database.execute("SELECT run, position FROM runs ORDER BY position").fetchall()
    assert (deletions, runs) == ([("a", "0", None, "1")], [("0", 0), ("1", 1)])


def test_the_newest_run_is_the_newest_with_images(tmp_path: Path) -> None:
    write_runs(tmp_path, [WrittenRun({"a": "ok"}), WrittenRun({"b": "ok"}), WrittenRun({})])
    assert open_results(str(tmp_path)).newest_run() == "1"
    write_runs(tmp_path / "empty", [WrittenRun({}), WrittenRun({})])
    assert open_results(str(tmp_path / "empty")).newest_run() == "1"
