"""When files were written, as stores say it: each file system of fsspec in its own words."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from pipeline.storage.storage import Storage
from pipeline.storage.written import written_at

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a.parquet", ".hidden", "below/b.parquet"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (NOON.timestamp(), NOON.timestamp()))
    assert Storage().written_times(str(tmp_path)) == {"a.parquet": NOON}
    assert Storage().written_times(str(tmp_path / "absent")) == {}


def test_a_remote_store() -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/written/run=a/part.parquet", b"x")
    files.pipe_file("/written/run=a/.part.parquet.htc-tmp", b"x")
    times = Storage().written_times("memory://written/run=a")
    assert list(times) == ["part.parquet"]
    assert abs(times["part.parquet"] - datetime.now(UTC)) < timedelta(hours=1)
    assert Storage().written_times("memory://written/absent") == {}


@pytest.mark.parametrize(
    ("found", "moment"),
    [
        ({"LastModified": NOON}, NOON),
        ({"updated": "2026-03-01T12:00:00Z"}, NOON),
        ({"last_modified": NOON.replace(tzinfo=None)}, NOON),
        ({"mtime": NOON.timestamp()}, NOON),
        ({"created": NOON, "mtime": None}, NOON),
        ({"updated": "yesterday"}, None),
        ({"size": 3}, None),
    ],
)
def test_the_names_of_stores(found: dict[str, object], moment: datetime | None) -> None:
    assert written_at(found) == moment
