"""An image that changed after the listing is read as it is now, and reported as changed."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ImageError, NotFoundError, TransientStorageError
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import fetch_image
from pipeline.job_spec.job import InputSection
from pipeline.storage import local as local_files
from pipeline.storage import retry as retrying
from pipeline.storage.storage import Storage


def listed(path: Path) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(path)), Storage()))


def replace_file(path: Path, payload: bytes, later_s: int = 1) -> None:
    """Write a file with a modification time that differs from the former one on any file system."""
    before = path.stat().st_mtime if path.exists() else None
    path.write_bytes(payload)
    if before is not None:
        os.utime(path, (before + later_s, before + later_s))


def tar_of(members: Mapping[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, payload in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(payload)
            tar.addfile(header, io.BytesIO(payload))
    return sink.getvalue()


def parquet_of(rows: list[bytes | None], group_rows: int = 2) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), sink, row_group_size=group_rows)
    return sink.getvalue()


def test_a_file_as_listed_and_a_replaced_one(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"old")
    same, other = listed(tmp_path)
    replace_file(tmp_path / "b.jpg", b"newer")
    assert fetch_image(same, Storage()) == (b"old", ReadVersion(3, same.etag, is_changed=False))
    payload, version = fetch_image(other, Storage())
    assert (payload, version.bytes, version.is_changed) == (b"newer", 5, True)
    assert version.etag == listed(tmp_path)[1].etag != other.etag


def test_a_file_without_a_listed_version_is_not_reported_as_changed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    _, version = fetch_image(ImageRef(str(tmp_path / "a.jpg")), Storage())
    assert version.is_changed is None
    assert version.etag == listed(tmp_path)[0].etag


def test_a_file_that_grew_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (ref,) = listed(tmp_path)
    replace_file(tmp_path / "a.jpg", b"x" * 100)
    with pytest.raises(ImageError, match="100 bytes encoded"):
        fetch_image(ref, Storage(), max_bytes=10)


def test_a_deleted_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (ref,) = listed(tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(NotFoundError):
        fetch_image(ref, Storage())


def test_a_repacked_tar_gives_each_name_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    # Of equal length, so that the old offset of one member is exactly another member.
    path.write_bytes(tar_of({"0.jpg": b"zero", "1.jpg": b"one!", "2.jpg": b"two!", "3.jpg": b"3333"}))
    refs = listed(path)
    assert [fetch_image(ref, Storage())[1].is_changed for ref in refs] == [False] * 4
    replace_file(path, tar_of({"2.jpg": b"TWO!", "new.jpg": b"new!", "1.jpg": b"ONE, longer", "3.jpg": b""}))
    read = {}
    for ref in refs[1:]:
        payload, version = fetch_image(ref, Storage())
        assert version == ReadVersion(len(payload), listed(path)[0].etag, is_changed=True)
        read[ref.uri.split("::")[0]] = payload
    assert read == {"tar://1.jpg": b"ONE, longer", "tar://2.jpg": b"TWO!", "tar://3.jpg": b""}
    with pytest.raises(NotFoundError, match="does not exist any more"):
        fetch_image(refs[0], Storage())
    with pytest.raises(ImageError, match="11 bytes encoded"):
        fetch_image(refs[1], Storage(), max_bytes=10)


def test_a_tar_that_became_something_else_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"0.jpg": b"zero"}))
    (ref,) = listed(path)
    replace_file(path, b"no tar at all" * 100)
    with pytest.raises(ImageError, match="not a complete, uncompressed tar"):
        fetch_image(ref, Storage())


def test_a_tar_that_keeps_changing_is_left_to_a_retry(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"0.jpg": b"zero"}))
    (ref,) = listed(path)
    moments = iter(range(1, 99))

    class Restless(Storage):
        def fetch(self, uri, *bounds, **limits):  # type: ignore[no-untyped-def]
            replace_file(path, tar_of({"0.jpg": b"zero"}), later_s=next(moments))
            return super().fetch(uri, *bounds, **limits)

    with pytest.raises(TransientStorageError, match="being written to while it is read"):
        fetch_image(ref, Restless())


def test_rows_of_a_replaced_parquet_file_are_read_from_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_of([b"0", b"1", b"2", b"3"]))
    refs = listed(path)
    assert fetch_image(refs[0], Storage()) == (b"0", ReadVersion(1, refs[0].etag, is_changed=False))
    replace_file(path, parquet_of([b"zero", b"one", b"two"], group_rows=1))
    # A reader is open in the middle of a row group of the old file, and must not be used.
    payload, version = fetch_image(refs[1], Storage())
    assert (payload, version.is_changed, version.etag) == (b"one", True, listed(path)[0].etag)
    payload, version = fetch_image(refs[2], Storage())
    assert (payload, version.is_changed, version.etag) == (b"two", True, listed(path)[0].etag)
    assert fetch_image(refs[1], Storage())[0] == b"one"
    with pytest.raises(ImageError, match="3 rows now, none of number 3"):
        fetch_image(refs[3], Storage())
    assert fetch_image(listed(path)[0], Storage()) == (b"zero", ReadVersion(4, version.etag, is_changed=False))


def test_a_file_that_is_written_to_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    seen = iter(["before", "after", "at rest", "at rest"])
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(local_files, "etag_of", lambda _status: next(seen))
    assert fetch_image(ImageRef(str(tmp_path / "a.jpg")), Storage())[1].etag == "at rest"
