"""The view `current` and the runs that it needs."""

from pathlib import Path

import pytest

from pipeline.maintenance.needed_runs import needed_runs
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from tests.support.builders.incremental_runs import Night, write_nights


@pytest.mark.parametrize(
    ("nights", "needed"),
    [
        ([Night({"a": "ok"}, []), Night({"a": "ok"}, [])], "1"),
        ([Night({"a": "ok", "b": "ok"}, []), Night({"a": "ok"}, [])], "01"),
        ([Night({"a": "ok"}, []), Night({"a": "unreadable"}, [])], "0"),
        ([Night({"a": "unreadable"}, []), Night({"b": "ok"}, [])], "1"),
        # A mark that hides nothing which is needed is not needed.
        ([Night({"a": "ok"}, []), Night({"b": "ok"}, ["a"])], "1"),
        ([Night({"a": "ok"}, []), Night({}, ["a"]), Night({"b": "ok"}, [])], "2"),
        # Without the mark in 1, `a` would be back; it lies beside `b`, which is needed.
        ([Night({"a": "ok", "b": "ok"}, []), Night({}, ["a"])], "01"),
        # It came back.
        ([Night({"a": "ok", "b": "ok"}, []), Night({}, ["a"]), Night({"a": "ok"}, [])], "02"),
        ([Night({"a": "ok", "b": "ok"}, []), Night({}, ["a"]), Night({"a": "unreadable"}, [])], "01"),
        # The run of a needed deletion record is needed too, and a later deletion record hides its own rows.
        ([Night({"a": "ok", "b": "ok"}, []), Night({"c": "ok"}, ["a"]), Night({}, ["c"])], "012"),
        ([Night({}, [])], ""),
    ],
)
def test_needed_are_the_runs_with_current_rows_and_with_the_deletions_that_hide_others(
    tmp_path: Path, nights: list[Night], needed: str
) -> None:
    write_nights(tmp_path, nights)
    assert needed_runs(open_results(str(tmp_path))) == set(needed)


@pytest.mark.parametrize(
    ("nights", "expected"),
    [
        ([Night({"a": "ok", "b": "ok"}), Night({"a": "ok"})], {"a": "1", "b": "0"}),
        ([Night({"a": "ok"}), Night({"a": "unreadable"})], {"a": "0"}),
        ([Night({"a": "ok", "b": "ok"}), Night({}, ["a"])], {"b": "0"}),
        ([Night({"a": "ok"}), Night({}, ["a"]), Night({"a": "ok"})], {"a": "2"}),
        ([Night({"a": "ok"}), Night({}, ["a"]), Night({"a": "failed"})], {}),
        ([Night({"a": "missing"})], {}),
    ],
)
def test_current_is_each_live_images_newest_ok_row(
    tmp_path: Path, nights: list[Night], expected: dict[str, str]
) -> None:
    write_nights(tmp_path, nights)
    with open_database(open_results(str(tmp_path))) as database:
        assert dict(database.execute("SELECT uri, run FROM current").fetchall()) == expected
        found = database.execute("SELECT uri, category, run FROM current_instances").fetchall()
    assert sorted(found) == sorted((uri, run, run) for uri, run in expected.items())


def test_deletions_have_the_runs_before_and_after(tmp_path: Path) -> None:
    write_nights(tmp_path, [Night({"a": "ok"}), Night({}, ["a"])])
    with open_database(open_results(str(tmp_path))) as database:
        deletions = database.execute("SELECT uri, last_run, last_ok_run, run FROM deletions").fetchall()
        runs = database.execute("SELECT run, position FROM runs ORDER BY position").fetchall()
    assert (deletions, runs) == ([("a", "0", None, "1")], [("0", 0), ("1", 1)])


def test_the_newest_run_is_the_newest_with_images(tmp_path: Path) -> None:
    write_nights(tmp_path, [Night({"a": "ok"}), Night({"b": "ok"}), Night({})])
    assert open_results(str(tmp_path)).newest_run() == "1"
    write_nights(tmp_path / "empty", [Night({}), Night({})])
    assert open_results(str(tmp_path / "empty")).newest_run() == "1"
