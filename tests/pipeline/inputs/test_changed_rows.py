"""The row of an image records whether it changed; parts of releases without that column are still read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.results.query import query_output
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.output.commit import commit_shard, images_part
from pipeline.output.results import open_results
from pipeline.output.rows import build_image_row
from pipeline.output.run_record import RunRecord, write_record
from pipeline.storage.storage import Storage

REF = ImageRef("/in/a.jpg", bytes=10, etag="then")


def row_of(ref: ImageRef, read: ReadVersion | None) -> tuple[str | None, int | None, bool | None]:
    row = build_image_row(ref, shard=0, model="m", read=read)
    return row.etag, row.bytes, row.changed


def test_the_row_describes_the_version_that_was_read() -> None:
    assert row_of(REF, ReadVersion(10, "then", is_changed=False)) == ("then", 10, False)
    assert row_of(REF, ReadVersion(7, "now", is_changed=True)) == ("now", 7, True)


def test_an_image_that_was_not_read_has_the_listed_version() -> None:
    assert row_of(REF, None) == ("then", 10, None)
    assert row_of(REF, ReadVersion(10, None, is_changed=None)) == ("then", 10, None)
    assert row_of(ImageRef("/in/a.jpg"), ReadVersion(7, "now", is_changed=None)) == ("now", 7, None)


def test_parts_with_and_without_the_column_are_read_together(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")
    record = RunRecord("r", "2026-11-23", {}, {}, {}, {}, {"image_count": 2, "shard_count": 2})
    write_record(Storage(), output, record)
    for shard, read in enumerate((None, ReadVersion(7, "now", is_changed=True))):
        commit_shard(Storage(), output, "r", shard, [build_image_row(REF, shard=shard, model="m", read=read)], [])
    old = images_part(output, "r", 0)
    table = pq.read_table(old, partitioning=None).drop_columns("changed")
    pq.write_table(table, old)
    rows = open_results(output).images().to_pylist()
    assert [(row["shard"], row["etag"], row["changed"]) for row in rows] == [(0, "then", None), (1, "now", True)]
    assert open_results(output).images(columns=["changed"]).column("changed").type == pa.bool_()
    query_output(output, "SELECT shard FROM images WHERE changed", output_format="csv")
    assert capfd.readouterr().out.split() == ["shard", "1"]
