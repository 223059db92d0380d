"""Google Cloud Storage and Azure through the door, on their emulators: the same promises as on S3."""

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import fsspec
import pytest

from pipeline.errors import NotFoundError, ObjectTooLargeError
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage import listing_gcs_azure as other_listing
from pipeline.storage.cas_file import CasFile
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from tests.support.servers.object_servers import azurite, fake_gcs
from tests.support.servers.s3_server import ServerUnavailableError

pytestmark = pytest.mark.xdist_group("other-stores")
# What S3 lists in another order than a tree of folders, and what libraries take for something else.
NAMES = ["a-/0.jpg", "a-.jpg", "a.jpg", "a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "a0.jpg", "ü/5.jpg", "a b#%20 c.jpg"]
VERSIONED = {"gs": "a.jpg#1700000000000000", "az": "a.jpg?versionid=3"}


@dataclass
class Place:
    """A store, and a bucket in it of the test's own."""

    door: Storage
    root: str


@pytest.fixture(scope="module")
def open_gcs() -> Iterator[Callable[[], Storage]]:
    try:
        with fake_gcs() as endpoint:
            yield lambda: Storage(
                StorageSection(anonymous=True, options={"gs": {"endpoint_url": endpoint, "project": "tests"}})
            )
    except ServerUnavailableError as error:
        pytest.skip(f"no Google Cloud Storage here: {error}")


@pytest.fixture(scope="module")
def open_azure() -> Iterator[Callable[[], Storage]]:
    try:
        with azurite() as connection, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
            yield Storage
    except ServerUnavailableError as error:
        pytest.skip(f"no Azure Blob Storage here: {error}")


@pytest.fixture(params=["gs", "az"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    door = request.getfixturevalue({"gs": "open_gcs", "az": "open_azure"}[request.param])()
    name = f"htc-{zlib.crc32(request.node.nodeid.encode()):08x}"
    door.client(f"{request.param}://{name}/x")[0].mkdir(name)
    yield Place(door, f"{request.param}://{name}")
    fsspec.get_filesystem_class(request.param).clear_instance_cache()


def test_odd_names_write_list_and_read_back_exactly(place: Place) -> None:
    names = [*NAMES, VERSIONED[place.root[:2]]]
    for name in names:
        place.door.write(join(place.root, "in", name), name.encode())
    listed = list(place.door.list(join(place.root, "in")))
    assert [each.uri for each in listed] == sorted((join(place.root, "in", name) for name in names), key=str.encode)
    for each in listed:
        found = place.door.fetch(each.uri, listed=each)
        assert join(place.root, "in", found.payload.decode()) == each.uri
        assert found.etag == each.etag == place.door.stat(each.uri).etag is not None
        assert each.bytes == len(found.payload)
    for after in listed:
        behind = [each.uri for each in listed if each.uri.encode() > after.uri.encode()]
        assert [each.uri for each in place.door.list(join(place.root, "in"), after=after.uri)] == behind


def test_a_listing_goes_on_from_page_to_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_listing, "PAGE_KEYS", 4)
    # fake-gcs-server tells all folders of a level on every page of it, which Google's does not: there, only files.
    folders = ("a/", "a-", "b/c/", "b/d/") if place.root.startswith("az:") else ("b/d/",)
    names = [f"{folder}{number:02d}.jpg" for folder in folders for number in range(11)]
    for name in names:
        place.door.write(join(place.root, "in", name), b"x")
    listed = [each.uri.removeprefix(join(place.root, "in", "")) for each in place.door.list(join(place.root, "in"))]
    assert listed == sorted(names)
    (found,) = [
        each.uri for each in place.door.list(join(place.root, "in"), "b/**/10.jpg", after=f"{place.root}/in/b/d")
    ]
    assert found == join(place.root, "in/b/d/10.jpg")


def test_every_verb_says_what_is_there(place: Place) -> None:
    uri = join(place.root, "x/y.bin")
    assert not place.door.exists(uri)
    place.door.write(uri, b"0123456789")
    parts = ("x", "x/", "x/y.bin", "x/y", "")
    assert [place.door.kind(join(place.root, part)) for part in parts] == [
        "folder",
        "folder",
        "file",
        "absent",
        "folder",
    ]
    reads = [place.door.read(uri, *part) for part in ((3, 4), (7,), (8, 9), (20, 5))]
    assert reads == [b"3456", b"789", b"89", b""]
    with place.door.open_input(uri) as file:
        file.seek(8)
        assert file.read() == b"89"
    with pytest.raises(ObjectTooLargeError):
        place.door.fetch(uri, listed=place.door.stat(uri), max_bytes=5)
    before = place.door.stat(uri)
    place.door.write(uri, b"")
    assert (place.door.read(uri), place.door.read(uri, 0, 5)) == (b"", b"")
    assert place.door.stat(uri).etag != before.etag
    place.door.delete(uri)
    place.door.delete(uri)
    scheme = place.root[:2]
    for gone in (uri, f"{scheme}://htc-no-such-bucket/a"):
        for failing in (place.door.read, place.door.stat, lambda uri: list(place.door.list(uri))):
            with pytest.raises(NotFoundError, match=f"{gone} does not exist"):
                failing(gone)
    with pytest.raises(NotFoundError):
        place.door.write(f"{scheme}://htc-no-such-bucket/a", b"")


def test_inputs_are_listed_and_read(place: Place) -> None:
    for name in ("1.jpg", "d/2.png"):
        place.door.write(join(place.root, "in", name), name.encode())
    place.door.write(join(place.root, "in/some.txt"), f"d/2.png\n{place.root}/in/1.jpg\n".encode())

    def payloads(uri: str) -> list[bytes]:
        return [read_image(ref, place.door) for ref in list_images(InputSection(uri=join(place.root, uri)), place.door)]

    assert payloads("in") == payloads("in/**/*.*g") == [b"1.jpg", b"d/2.png"]
    assert payloads("in/some.txt") == [b"d/2.png", b"1.jpg"]


def test_one_of_many_makes_a_file_and_one_replaces_it(place: Place) -> None:
    file = CasFile(place.door, join(place.root, "runs/r/lease.json"))
    assert file.read() is None
    with ThreadPoolExecutor(8) as pool:
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
    file.delete()
    assert file.replace(b"late", now.version) is None
    assert file.read() is None


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_what_is_written_in_pieces_reads_back(place: Place) -> None:
    # gcsfs takes to uploads in pieces at 50 MiB.
    large = bytes(range(256)) * 4096 * 52
    place.door.write(join(place.root, "large"), large)
    assert place.door.read(join(place.root, "large")) == large


def test_slashes_at_the_end_of_a_prefix_lose_no_image(place: Place) -> None:
    place.door.write(join(place.root, "img/a.jpg"), b"a")
    for slashes in ("", "/", "//"):
        refs = list(list_images(InputSection(uri=f"{place.root}/img{slashes}"), place.door))
        assert [(ref.uri, read_image(ref, place.door)) for ref in refs] == [(join(place.root, "img/a.jpg"), b"a")]
