"""Leftovers of dead attempts are removed by the next one; files that other processes write are not touched."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard, images_part, instances_part
from pipeline.output.results import open_results
from pipeline.output.rows import build_image_row
from pipeline.runs.cleanup import remove_leftovers
from pipeline.runs.lease import take_lease
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage import local as local_files
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.s3_server import S3Server

TEMP = ".part-00001.parquet.4711-0a1b2c3d.htc-tmp"


def begin(tmp_path: Path, storage: Storage | None = None, output: str | None = None) -> RunHandle:
    output = output or str(tmp_path / "out")
    values = {"input.uri": str(tmp_path / "in"), "output.uri": output, "compute.shard_images": 2}
    store = storage or Storage()
    return open_run(
        load_spec(None, values),
        {"weights_sha256": "a"},
        store,
        run="night",
        take_lease=lambda name: take_lease(store, output, name),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images: three shards."""
    (tmp_path / "in").mkdir()
    for index in range(5):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(b"x")
    return tmp_path


def commit(run: RunHandle, index: int) -> None:
    rows = [build_image_row(ref, shard=index, model="m") for ref in run.read_shard(index).images]
    commit_shard(Storage(), run.output_uri, run.name, index, rows, [])


def hidden(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith("."))


def test_a_resumed_run_begins_without_the_files_of_dead_attempts(folder: Path) -> None:
    begin(folder).close()
    for place in ("images/run=night", "instances/run=night", "runs/night/manifest", "images/run=other"):
        (folder / "out" / place).mkdir(parents=True, exist_ok=True)
        (folder / "out" / place / TEMP).write_bytes(b"half")
    (folder / "out/images/run=night/.keep").touch()
    run = begin(folder)
    assert hidden(folder / "out") == ["images/run=night/.keep", f"images/run=other/{TEMP}"]
    # A straggler that was killed at the end.
    (folder / "out/images/run=night" / TEMP).write_bytes(b"half")
    run.close()
    assert hidden(folder / "out") == ["images/run=night/.keep", f"images/run=other/{TEMP}"]


def test_instances_without_their_images_do_not_count_and_are_written_again(folder: Path) -> None:
    run = begin(folder)
    commit(run, 0)
    commit(run, 1)
    Path(images_part(run.output_uri, run.name, 1)).unlink()
    Path(instances_part(run.output_uri, run.name, 1)).write_bytes(b"of an attempt that died")
    run.close()
    again = begin(folder)
    assert again.take_new_shards() == [1, 2]
    assert len(open_results(again.output_uri).images()) == 2
    assert len(open_results(again.output_uri).instances()) == 0
    for index in again.todo():
        commit(again, index)
    again.close()
    assert len(open_results(again.output_uri).images()) == 5
    assert len(open_results(again.output_uri).instances()) == 0


@pytest.mark.xdist_group("s3")
def test_uploads_that_were_not_completed_are_aborted(s3_server: S3Server, s3_bucket: str) -> None:
    files = s3_server.files()
    bucket = s3_bucket.removeprefix("s3://")

    def upload(key: str) -> None:
        begun = files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
        files.call_s3(
            "upload_part", Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 5_242_880
        )

    for run in ("night", "night2"):
        upload(f"out/images/run={run}/part-00000.parquet")
    upload("out/instances/run=night/part-00000.parquet")
    upload("out/runs/night/manifest/part-00000.parquet")
    storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
    assert remove_leftovers(storage, f"{s3_bucket}/out", "night") == 3
    left = files.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])
    assert [each["Key"] for each in left] == ["out/images/run=night2/part-00000.parquet"]
    assert remove_leftovers(storage, f"{s3_bucket}/out", "night") == 0


@pytest.mark.xdist_group("s3")
def test_a_resumed_run_on_s3_begins_without_the_uploads_of_dead_attempts(
    folder: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
    bucket, files = s3_bucket.removeprefix("s3://"), s3_server.files()
    begin(folder, storage, f"{s3_bucket}/out").close()
    files.call_s3("create_multipart_upload", Bucket=bucket, Key="out/images/run=night/part-00001.parquet")
    assert len(files.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]) == 1
    run = begin(folder, storage, f"{s3_bucket}/out")
    assert files.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", []) == []
    assert run.take_new_shards() == [0, 1, 2]
    run.close()


def test_a_store_that_lists_no_uploads_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    monkeypatch.setattr(storage, "client", _refuse_client)
    assert remove_leftovers(storage, "s3://bucket/out", "night") == 0


def _refuse_client(uri: str) -> None:
    raise StorageError(f"No permission to list {uri}.")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_reported_and_holds_no_partial_file(folder: Path, tiny_disk: Path) -> None:
    (folder / "out").symlink_to(tiny_disk)
    run = begin(folder)
    commit(run, 0)
    ballast = tiny_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(os.urandom(2**20))
    with pytest.raises(StorageError, match=r"No space left to write .*part-00001\.parquet: the disk is full"):
        commit(run, 1)
    assert hidden(tiny_disk) == []
    assert run.todo() == [1, 2]
    run.close()
    ballast.unlink()
    again = begin(folder)
    assert again.take_new_shards() == [1, 2]
    for index in again.todo():
        commit(again, index)
    again.close()
    assert len(open_results(again.output_uri).images()) == 5


def test_planning_is_resumed_after_the_disk_was_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file = local_files.write_file

    def fill(path: str, payload: bytes) -> None:
        if "manifest" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write_file(path, payload)

    with monkeypatch.context() as patch:
        patch.setattr(local_files, "write_file", fill)
        with pytest.raises(StorageError, match="the disk is full or over quota; free some and run again"):
            begin(folder)
    assert not (folder / "out/runs/night/lease.json").exists()
    run = begin(folder)
    assert (run.image_count, run.take_new_shards()) == (5, [0, 1, 2])
    run.close()


def test_a_file_in_a_tables_place_is_left_to_the_first_write(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "instances").touch()
    assert remove_leftovers(Storage(), str(tmp_path / "out"), "night") == 0
