"""When files were written, as stores say it: each file system of fsspec in its own words."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from pipeline.storage.config import StorageSection
from pipeline.storage.listing_s3 import written_on_s3
from pipeline.storage.storage import Storage
from pipeline.storage.written import written_at
from tests.support.servers.s3_server import S3Server

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


@pytest.mark.xdist_group("s3")
def test_a_bucket(s3_server: S3Server, s3_bucket: str) -> None:
    storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
    storage.write(f"{s3_bucket}/images/run=a/part-00000.parquet", b"x")
    storage.write(f"{s3_bucket}/images/run=a/below/part-00001.parquet", b"x")
    times = storage.written_times(f"{s3_bucket}/images/run=a")
    assert list(times) == ["part-00000.parquet"]
    assert abs(times["part-00000.parquet"] - datetime.now(UTC)) < timedelta(hours=1)
    assert storage.written_times(f"{s3_bucket}/images/run=b") == {}


class PagedClient:
    """Answers as S3 does, two keys a page."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.requests = 0

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, name: str, *, Prefix: str, Marker: str = "", **_: str) -> dict[str, object]:  # noqa: N803
        assert name == "list_objects"
        self.requests += 1
        left = [key for key in self.keys if key.startswith(Prefix) and key > Marker]
        page: dict[str, object] = {"Contents": [{"Key": key, "LastModified": NOON} for key in left[:2]]}
        return page | {"IsTruncated": len(left) > 2}


def test_a_bucket_with_several_pages() -> None:
    client = PagedClient(
        [f"out/images/run=a/part-{number:05d}.parquet" for number in range(5)] + ["out/images/run=b/x"]
    )
    found = dict(written_on_s3(client, "bucket/out/images/run=a", lambda request: request()))
    assert found == {f"part-{number:05d}.parquet": NOON for number in range(5)}
    assert client.requests == 3
