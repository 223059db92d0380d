"""The promises of `Storage`, the same for every store: local files, memory, S3, Google Cloud Storage and Azure."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import fsspec
import pytest

from pipeline.errors import NotFoundError, ObjectTooLargeError
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage import client
from pipeline.storage import retry as retrying
from pipeline.storage.cas_file import CasFile
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from tests.support.servers.object_servers import OpenStorage, Place, make_bucket
from tests.support.servers.s3_server import S3Server

STORES = [
    "local",
    "memory",
    pytest.param("s3", marks=pytest.mark.xdist_group("s3")),
    pytest.param("gs", marks=pytest.mark.xdist_group("other-stores")),
    pytest.param("az", marks=pytest.mark.xdist_group("other-stores")),
]
# What S3 lists in another order than a tree of folders does.
NAMES = [
    "a-/0.jpg",
    "a-.jpg",
    "a.jpg",
    "a/1.jpg",
    "a/b/2.jpg",
    "a/b/c/3.jpg",
    "a0.jpg",
    "b/4.jpg",
    "b.jpg",
    "\u00fc/5.jpg",
    "\U0001f600.jpg",
    "\uffee.jpg",
]
# What libraries interpret as an escape, a query, a fragment, a version, a pattern, a chain of stores.
ODD_NAMES = [
    "a b.jpg",
    "a#b.jpg",
    "a%20b.jpg",
    "a b#%20 c.jpg",
    "a+b.jpg",
    "a?b.jpg",
    "a&b=c.jpg",
    "A.jpg",
    "\u00e4.jpg",
    "[a]*?.jpg",
    "a::b.jpg",
    "a?versionId=3.jpg",
    "a.jpg#1700000000000000",
    "a.jpg?versionid=3",
    "a\nb.jpg",
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)
    # An emulator that leaves a request without an answer costs a retry, not the test.
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 15)


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty folder of each store."""
    store = cast("str", request.param)
    if store == "local":
        yield Place(Storage(), str(tmp_path / "bucket"))
    elif store == "memory":
        files = fsspec.filesystem("memory")
        files.store.clear()
        files.pseudo_dirs.clear()
        yield Place(Storage(), "memory://bucket")
    elif store == "s3":
        bucket = cast("str", request.getfixturevalue("s3_bucket"))
        server = cast("S3Server", request.getfixturevalue("s3_server"))
        yield Place(Storage(StorageSection(endpoint_url=server.endpoint_url)), bucket)
    else:
        open_storage = cast("OpenStorage", request.getfixturevalue({"gs": "open_gcs", "az": "open_azure"}[store]))
        with make_bucket(store, open_storage, request.node.nodeid) as found:
            yield found


def test_names_list_in_the_order_of_their_bytes_and_read_back_exactly(place: Place) -> None:
    storage, root = place.storage, join(place.root, "in")
    names = NAMES + ODD_NAMES
    if root.startswith("memory:"):
        # fsspec's in-memory store interprets "::" as a chain of stores.
        names = [name for name in names if "::" not in name]
    for name in names:
        storage.write(join(root, name), name.encode())
    listed = list(storage.list(root))
    assert [each.uri for each in listed] == sorted((join(root, name) for name in names), key=str.encode)
    for each in listed:
        found = storage.fetch(each.uri, listed=each)
        assert join(root, found.payload.decode()) == each.uri
        assert each.bytes == len(found.payload)
        assert found.etag == each.etag == storage.stat(each.uri).etag
        assert (each.etag is None) == root.startswith("memory:")


def test_the_names_right_below_a_folder_are_listed_by_what_they_begin_with(place: Place) -> None:
    storage, root = place.storage, join(place.root, "in")
    for name in ("part-1", "part-2", "parts-0-1", "part", "part-3/deeper", "deep/part-4", "other", "in2/part-5"):
        storage.write(join(root, name), b"x")
    assert sorted(storage.list_names(root, "part-")) == ["part-1", "part-2"]
    assert sorted(storage.list_names(join(root, ""), "parts-")) == ["parts-0-1"]
    assert sorted(storage.list_names(root)) == ["other", "part", "part-1", "part-2", "parts-0-1"]
    assert list(storage.list_names(join(root, "absent"), "part-")) == []


def test_a_listing_resumes_behind_any_name(place: Place) -> None:
    storage, root = place.storage, join(place.root, "in")
    for name in NAMES:
        storage.write(join(root, name), b"x")
    uris = [each.uri for each in storage.list(root)]
    assert len(uris) == len(NAMES)
    for after in [*uris, join(root, "a"), join(root, "a/"), join(root, "a/b/b"), join(root, ""), root, "z"]:
        behind = [uri for uri in uris if uri.encode() > after.encode() or after in (root, "z")]
        assert [each.uri for each in storage.list(root, after=after)] == behind, after
    assert [each.uri for each in storage.list(root, "*/**/*.jpg", after=join(root, "a/b/2.jpg"))] == [
        join(root, name) for name in ("a/b/c/3.jpg", "b/4.jpg", "\u00fc/5.jpg")
    ]


def test_a_listing_holds_what_is_below_its_folder_and_is_not_hidden(place: Place) -> None:
    storage, root = place.storage, place.root
    shown = ["in/1.jpg", "in/d/2.png", "in/d/e/3.jpg"]
    for name in [*shown, "in-old/4.jpg", "in.jpg", "in/.hidden/5.jpg", "in/.6.jpg", "in/d/.part.htc-tmp"]:
        storage.write(join(root, name), b"x")
    for uri in (join(root, "in"), join(root, "in/")):
        assert [each.uri for each in storage.list(uri)] == [join(root, name) for name in shown]
    assert [each.uri for each in storage.list(join(root, "in"), "**/*.jpg")] == [
        join(root, name) for name in ("in/1.jpg", "in/d/e/3.jpg")
    ]
    assert list(storage.list(join(root, "in.jpg"))) == [storage.stat(join(root, "in.jpg"))]
    assert len(list(storage.list(root))) == 5


def test_slashes_at_the_end_of_a_folder_lose_no_image(place: Place) -> None:
    names = ["a.jpg", "b c.jpg", "d/e.jpg"]
    for name in names:
        place.storage.write(join(place.root, "img", name), name.encode())
    for slashes in ("", "/", "//", "///"):
        refs = list(list_images(InputSection(uri=f"{place.root}/img{slashes}"), place.storage))
        assert [ref.uri for ref in refs] == [join(place.root, "img", name) for name in names]
        assert [read_image(ref, place.storage).decode() for ref in refs] == names


def test_files_folders_and_missing_names_have_their_kinds(place: Place) -> None:
    storage, root = place.storage, place.root
    assert storage.kind(join(root, "x")) == "absent"
    storage.write(join(root, "x/y.bin"), b"1")
    kinds = {part: storage.kind(join(root, part)) for part in ("x", "x/", "x/y.bin", "x/y", "z", "")}
    assert kinds == {
        "x": "folder",
        "x/": "folder",
        "x/y.bin": "file",
        "x/y": "absent",
        "z": "absent",
        "": "folder",
    }
    assert storage.kind(root) == "folder"


def test_ranges_read_as_they_do_of_a_local_file(place: Place) -> None:
    storage, uri = place.storage, join(place.root, "x.bin")
    storage.write(uri, b"0123456789")
    ranges = [storage.read(uri, *part) for part in ((3, 4), (7,), (0, 2), (8, 9), (10, 5), (20, 5))]
    assert ranges == [b"3456", b"789", b"01", b"89", b"", b""]
    with storage.open(uri) as file:
        assert file.info == storage.stat(uri)
        assert file.seek(8) == 8
        assert file.read() == b"89"
        file.seek(-3, 2)
        assert file.read(2) == b"78"
    storage.write(uri, b"")
    assert (storage.read(uri), storage.read(uri, 0, 5)) == (b"", b"")


def test_a_read_comes_with_the_version_that_it_is_of(place: Place) -> None:
    storage, uri = place.storage, join(place.root, "x.bin")
    storage.write(uri, b"0123456789")
    before = storage.stat(uri)
    assert storage.fetch(uri, listed=before).etag == before.etag
    with pytest.raises(ObjectTooLargeError):
        storage.fetch(uri, listed=before, max_bytes=5)
    # Longer: in a store without versions, fewer bytes than listed count as a read that was cut short.
    storage.write(uri, b"new, longer")
    found = storage.fetch(uri, listed=before)
    now = storage.stat(uri)
    assert (found.payload, found.etag, now.bytes) == (b"new, longer", now.etag, 11)
    if not uri.startswith("memory:"):
        assert now.etag != before.etag
        assert [each.etag for each in storage.list(place.root)] == [now.etag]


def test_a_reader_sees_all_of_a_write_or_none(place: Place) -> None:
    storage, uri = place.storage, join(place.root, "new folder/x.bin")
    payloads = [bytes([number]) * 300_000 for number in range(4)]
    storage.write(uri, payloads[0])
    with ThreadPoolExecutor(2) as pool:
        writes = pool.submit(lambda: [storage.write(uri, payload) for payload in payloads * 2])
        while not writes.done():
            assert storage.read(uri) in payloads
        writes.result()
    assert storage.read(uri) == payloads[-1]
    assert [each.uri for each in storage.list(place.root)] == [uri]


def test_what_is_missing_is_reported_by_name(place: Place) -> None:
    storage, uri = place.storage, join(place.root, "x/gone.bin")
    storage.write(uri, b"1")
    listed = storage.stat(uri)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    attempts = (
        storage.read,
        storage.stat,
        storage.open,
        lambda uri: storage.fetch(uri, listed=listed),
        lambda uri: list(storage.list(uri)),
    )
    for attempt in attempts:
        with pytest.raises(NotFoundError, match=r"gone\.bin does not exist"):
            attempt(uri)
    assert list(storage.list(uri, missing_ok=True)) == []


@pytest.mark.parametrize("scheme", STORES[2:])
def test_a_missing_bucket_is_reported_by_name(scheme: str, request: pytest.FixtureRequest) -> None:
    if scheme == "s3":
        request.getfixturevalue("s3_bucket")
        endpoint = cast("S3Server", request.getfixturevalue("s3_server")).endpoint_url
        storage = Storage(StorageSection(endpoint_url=endpoint))
    else:
        storage = cast("OpenStorage", request.getfixturevalue({"gs": "open_gcs", "az": "open_azure"}[scheme]))()
    uri = f"{scheme}://htc-no-such-bucket/a"
    attempts = (
        storage.read,
        storage.stat,
        lambda uri: list(storage.list(uri)),
        lambda uri: storage.write(uri, b""),
    )
    for attempt in attempts:
        with pytest.raises(NotFoundError, match="htc-no-such-bucket"):
            attempt(uri)
    assert storage.kind(f"{scheme}://htc-no-such-bucket") == "absent"


def test_one_of_many_creates_a_file_and_one_replaces_it(place: Place) -> None:
    file = CasFile(place.storage, join(place.root, "runs/r/lease.json"))
    assert file.read() is None
    # A store without conditional writes promises this only for one write after another.
    with ThreadPoolExecutor(1 if place.root.startswith("memory:") else 8) as pool:
        made = [version for version in pool.map(lambda number: file.create(b"%d" % number), range(8)) if version]
        assert len(made) == 1
        seen = file.read()
        assert seen is not None
        assert seen.version == made[0]
        replaced = list(pool.map(lambda number: file.replace(b"new %d" % number, seen.version), range(8)))
    assert len([version for version in replaced if version]) == 1
    now = file.read()
    assert now is not None
    assert now.payload.startswith(b"new")
    assert now.version in replaced
    assert file.replace(b"late", seen.version) is None
    file.delete()
    assert file.replace(b"late", now.version) is None
    assert file.read() is None
    assert file.create(b"again")
