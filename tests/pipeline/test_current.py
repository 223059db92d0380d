"""Which runs the view `current` needs."""

from pathlib import Path

import pytest

from pipeline.current import needed_runs
from pipeline.deletions import DELETIONS_SCHEMA, write_deletions
from pipeline.records import RunRecord, write_record
from pipeline.refs import ImageRef, image_id
from pipeline.storage import Storage
from pipeline.tables import build_image_row, commit_shard, open_results

Night = tuple[dict[str, str], list[str]]


def write_nights(output: Path, nights: list[Night]) -> None:
    """Write runs 0, 1, ...: the status by image, and the images found deleted."""
    for number, (statuses, deleted) in enumerate(nights):
        run = str(number)
        rows = [
            build_image_row(ImageRef(uri), shard=0, model="m", status=status)  # type: ignore[arg-type]
            for uri, status in statuses.items()
        ]
        commit_shard(Storage(), str(output), run, 0, rows, [])
        marks = [{"image_id": image_id(uri), "uri": uri, "last_run": "0", "last_ok_run": None} for uri in deleted]
        table = DELETIONS_SCHEMA.empty_table().from_pylist(marks, schema=DELETIONS_SCHEMA)
        write_deletions(Storage(), str(output), run, iter([table]))
        counts = {"image_count": len(rows), "shard_count": 1, "selection": {"deleted": len(deleted)}}
        write_record(Storage(), str(output), RunRecord(run, f"2026-01-0{number + 1}", {}, {}, {}, {}, counts))


@pytest.mark.parametrize(
    ("nights", "needed"),
    [
        ([({"a": "ok"}, []), ({"a": "ok"}, [])], "1"),
        ([({"a": "ok", "b": "ok"}, []), ({"a": "ok"}, [])], "01"),
        ([({"a": "ok"}, []), ({"a": "unreadable"}, [])], "0"),
        ([({"a": "unreadable"}, []), ({"b": "ok"}, [])], "1"),
        # A mark that hides nothing which is needed is not needed.
        ([({"a": "ok"}, []), ({"b": "ok"}, ["a"])], "1"),
        ([({"a": "ok"}, []), ({}, ["a"]), ({"b": "ok"}, [])], "2"),
        # Without the mark in 1, `a` would be back; it lies beside `b`, which is needed.
        ([({"a": "ok", "b": "ok"}, []), ({}, ["a"])], "01"),
        # It came back.
        ([({"a": "ok", "b": "ok"}, []), ({}, ["a"]), ({"a": "ok"}, [])], "02"),
        ([({"a": "ok", "b": "ok"}, []), ({}, ["a"]), ({"a": "unreadable"}, [])], "01"),
        # A mark that is needed is one more run, whose own rows are hidden by a later one.
        ([({"a": "ok", "b": "ok"}, []), ({"c": "ok"}, ["a"]), ({}, ["c"])], "012"),
        ([({}, [])], ""),
    ],
)
def test_needed_are_the_runs_with_current_rows_and_the_marks_that_hide_others(
    tmp_path: Path, nights: list[Night], needed: str
) -> None:
    write_nights(tmp_path, nights)
    assert needed_runs(open_results(str(tmp_path))) == set(needed)
