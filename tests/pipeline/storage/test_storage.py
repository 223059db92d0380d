"""`Storage` on local files and in memory: names, complete reads, atomic writes, and translated errors."""

import errno
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import AccessDeniedError, NotFoundError, StorageError, TransientStorageError
from pipeline.storage import local as local_files
from pipeline.storage import retry as retrying
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join


@pytest.fixture
def memory_root() -> str:
    """An empty remote folder of fsspec's in-memory store."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs.clear()
    return "memory://bucket/photos"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)


def test_a_listing_is_sorted_recursive_and_leaves_hidden_names_out(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.jpg", "a.jpg", "a-b/c.jpg", ".hidden/x.jpg", ".x.jpg", "a/.part.htc-tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    listed = [(each.uri.removeprefix(f"{tmp_path}/"), each.bytes) for each in Storage().list(f"{tmp_path}/")]
    once = [name for name, _ in listed if not name.startswith("a/loop")]
    assert once == sorted(["b.jpg", "a/z.jpg", "a.jpg", "a-b/c.jpg", "broken.jpg"])
    assert len(listed) < 20
    assert dict(listed)["broken.jpg"] is None


def test_a_name_that_is_not_unicode_reads_back(tmp_path: Path) -> None:
    raw = os.fsencode(str(tmp_path)) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123 - the name is bytes
        file.write(b"x")
    (listed,) = Storage().list(str(tmp_path))
    assert Storage().read(listed.uri) == b"x"


@pytest.mark.parametrize("uri", ["/a\0b.jpg", "/\ud800.jpg"])
def test_a_name_that_no_file_can_have_is_not_found(uri: str) -> None:
    with pytest.raises(NotFoundError):
        Storage().read(uri)


def test_transient_failures_are_retried_and_then_raised(
    memory_root: str, no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(StorageSection(patience_s=0))
    storage.write(join(memory_root, "a"), b"whole")
    fetch, calls = MemoryFileSystem.cat_file, []

    def fails(times: int, error: Exception) -> None:
        def cat_file(client: Any, path: str, **bounds: int | None) -> bytes:
            calls.append(path)
            if len(calls) <= times:
                raise error
            payload: bytes = fetch(client, path, **bounds)
            return payload

        calls.clear()
        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)

    fails(2, OSError(errno.EBUSY, "Please reduce your request rate"))
    assert storage.read(join(memory_root, "a")) == b"whole"
    assert len(calls) == 3
    fails(99, TimeoutError("read timed out"))
    with pytest.raises(TransientStorageError, match="just now"):
        storage.read(join(memory_root, "a"))
    assert len(calls) == retrying.ATTEMPTS
    fails(99, PermissionError("Access Denied"))
    with pytest.raises(AccessDeniedError, match="credentials"):
        storage.read(join(memory_root, "a"))
    # It granted a request a moment ago, so that a refusal is retried.
    assert len(calls) == retrying.ATTEMPTS_DOUBTED


def test_a_short_remote_answer_is_refused(memory_root: str, no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    storage.write(join(memory_root, "a"), b"0123456789abcdef")
    assert storage.read(join(memory_root, "a"), 14, 9) == b"ef"
    client, _ = storage.client(memory_root)
    monkeypatch.setattr(client, "cat_file", lambda *_, **__: b"34")
    with pytest.raises(TransientStorageError, match="2 of 9 bytes"):
        storage.read(join(memory_root, "a"), 3, 9)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_missing_permission_is_reported(open_folder: Path) -> None:
    # Root ignores permission bits, so a subprocess changes to another user first.
    secret = open_folder / "secret"
    secret.mkdir()
    (secret / "a.jpg").write_bytes(b"x")
    secret.chmod(0)
    code = (
        "import os, sys\nfrom pipeline.storage.storage import Storage\nfrom pipeline.errors import AccessDeniedError\n"
        "if os.geteuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "root = sys.argv[1]\n"
        "for verb in (lambda: list(Storage().list(root)), lambda: Storage().read(root + '/a.jpg'),\n"
        "             lambda: Storage().write(root + '/b', b'')):\n"
        "    try:\n        verb()\n    except AccessDeniedError as error:\n        sys.stdout.write(f'{error}\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(secret)], capture_output=True, text=True, check=False)
    secret.chmod(0o700)
    lines = done.stdout.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        f"No permission to list {secret}",
        f"No permission to read {secret}/a.jpg",
        f"No permission to write {secret}/b",
    ], done.stderr


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, target = Storage(), tmp_path / "part.parquet"
    storage.write(str(target), b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local_files.os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        storage.write(str(target), b"new")
    assert not isinstance(caught.value, TransientStorageError)
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]
    assert target.read_bytes() == b"old"


def test_a_file_over_the_size_limit_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so the kernel's answer to the write is EFBIG: a real failing write, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="files may not grow so large"):
            Storage().write(str(tmp_path / "big"), bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_file_system_that_is_full(tmp_path: Path) -> None:
    mount = tmp_path / "tiny"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {made.stderr.decode().strip()}")
    try:
        Storage().write(str(mount / "fits"), bytes(1000))
        with pytest.raises(StorageError, match="No space left to write"):
            Storage().write(str(mount / "too-big"), bytes(1_000_000))
        assert [path.name for path in mount.iterdir()] == ["fits"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/x"):
        Storage().write(str(tmp_path / "file" / "x"), b"")


def test_unknown_schemes_and_missing_libraries_are_named() -> None:
    with pytest.raises(StorageError, match="nosuch://"):
        Storage().read("nosuch://a/b")
    if find_spec("gcsfs") is None:
        with pytest.raises(StorageError, match=r"htc-batch\[gcs\]"):
            Storage().read("gs://bucket/a")


def test_storage_travels_to_workers(memory_root: str) -> None:
    storage = Storage(StorageSection(anonymous=True))
    storage.write(join(memory_root, "a"), b"1")
    arrived = pickle.loads(pickle.dumps(storage))
    assert arrived.section.anonymous
    assert arrived.read(join(memory_root, "a")) == b"1"
