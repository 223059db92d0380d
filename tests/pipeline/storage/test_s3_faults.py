"""Reading from a real S3 server through a proxy that breaks answers: an object is read completely or not at all."""

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import AccessDeniedError, NotFoundError, ObjectTooLargeError, SlowDownError, TransientStorageError
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import fetch_image
from pipeline.job_spec.job import InputSection
from pipeline.storage import retry as retrying
from pipeline.storage.config import StorageSection
from pipeline.storage.objects import ObjectData, ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from tests.support.servers.fault_proxy import Fault, FaultProxy, Kind
from tests.support.servers.s3_server import S3Server

pytestmark = pytest.mark.xdist_group("s3")
OBJECTS = 12
SIZE = 40_000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def storage(proxy: FaultProxy, s3_bucket: str) -> Storage:
    return Storage(StorageSection(endpoint_url=proxy.endpoint_url))


def body(number: int) -> bytes:
    return bytes([number]) * SIZE


@pytest.fixture
def listed(storage: Storage, s3_server: S3Server, s3_bucket: str) -> list[ObjectInfo]:
    """Objects of `OBJECTS` different contents, as listed."""
    s3_server.files().pipe({join(s3_bucket, "in", f"{number:02d}.jpg")[5:]: body(number) for number in range(OBJECTS)})
    return list(storage.list(join(s3_bucket, "in")))


@pytest.mark.parametrize(
    "kind", ["error_500", "slow_down", "forbidden", "request_timeout", "cut", "truncated", "wrong_length"]
)
def test_every_object_is_read_completely_through_faults(
    proxy: FaultProxy, storage: Storage, listed: list[ObjectInfo], kind: Kind
) -> None:
    # Each object's first request breaks. The size of every other object is not known before the read.
    proxy.inject([Fault(kind, methods=("GET",), first=1)])
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda each: storage.fetch(each.uri, listed=each if each in listed[::2] else None), listed)
        )
    assert found == [ObjectData(body(number), each.etag) for number, each in enumerate(listed)]
    assert proxy.counts[kind] == OBJECTS


def test_a_read_is_one_request(proxy: FaultProxy, s3_bucket: str, listed: list[ObjectInfo]) -> None:
    # On a busy machine any read may be slow enough to be hedged.
    storage = Storage(StorageSection(endpoint_url=proxy.endpoint_url, hedge_reads=False))
    before = proxy.requests
    for each in listed:
        storage.fetch(each.uri, listed=each)
        storage.fetch(each.uri)
        storage.fetch(each.uri, 10, 20)
    assert proxy.requests == before + 3 * OBJECTS


@pytest.mark.parametrize("kind", ["wrong_length", "truncated"])
def test_an_object_that_is_always_cut_short_is_refused(
    proxy: FaultProxy, s3_bucket: str, listed: list[ObjectInfo], kind: Kind
) -> None:
    storage = Storage(StorageSection(endpoint_url=proxy.endpoint_url, patience_s=0))
    proxy.inject([Fault(kind, methods=("GET",))])
    reads: list[Callable[[str], object]] = [
        lambda uri: storage.fetch(uri, listed=listed[0]),
        storage.fetch,
        lambda uri: storage.read(uri, 1000, 100),
    ]
    for read in reads:
        with pytest.raises(TransientStorageError):
            read(listed[0].uri)


def test_a_permanent_refusal_is_reported(proxy: FaultProxy, storage: Storage, listed: list[ObjectInfo]) -> None:
    proxy.inject([Fault("forbidden", methods=("GET",))])
    before = proxy.requests
    with pytest.raises(AccessDeniedError, match="check the credentials"):
        storage.fetch(listed[0].uri, listed=listed[0])
    assert proxy.requests == before + retrying.ATTEMPTS_DOUBTED


def test_no_retries_are_multiplied_by_those_of_the_libraries(
    proxy: FaultProxy, s3_bucket: str, listed: list[ObjectInfo]
) -> None:
    storage = Storage(StorageSection(endpoint_url=proxy.endpoint_url, patience_s=0))
    proxy.inject([Fault("slow_down")])
    uri = listed[0].uri
    attempts: list[Callable[[], object]] = [
        lambda: storage.read(uri),
        lambda: storage.stat(uri),
        lambda: list(storage.list(s3_bucket)),
        lambda: storage.write(uri, b"x"),
    ]
    for attempt in attempts:
        before = proxy.requests
        with pytest.raises(SlowDownError, match="asked for fewer requests"):
            attempt()
        assert proxy.requests == before + retrying.ATTEMPTS


def test_a_stalled_read_is_overtaken(proxy: FaultProxy, storage: Storage, listed: list[ObjectInfo]) -> None:
    for _ in range(3):
        for each in listed:
            storage.fetch(each.uri, listed=each)
    # Longer than any test may take: only a second request can bring the object.
    proxy.inject([Fault("stall", methods=("GET",), first=1, limit=1, stall_s=1000.0)])
    assert storage.fetch(listed[3].uri, listed=listed[3]).payload == body(3)
    assert proxy.counts["stall"] == 1


def test_a_slow_down_lowers_the_concurrency(proxy: FaultProxy, storage: Storage, listed: list[ObjectInfo]) -> None:
    limiter = storage._remote("s3://")._limiter
    most = limiter.limit
    proxy.inject([Fault("slow_down", methods=("GET",), first=1)])
    for each in listed[:3]:
        storage.fetch(each.uri, listed=each)
    assert limiter.limit < most / 4


def test_changed_and_deleted_objects_are_reported(
    storage: Storage, s3_server: S3Server, s3_bucket: str, listed: list[ObjectInfo]
) -> None:
    refs = list(list_images(InputSection(uri=join(s3_bucket, "in")), storage))
    s3_server.files().pipe(refs[1].uri[5:], b"another, shorter one")
    s3_server.files().rm_file(refs[2].uri[5:])
    assert fetch_image(refs[0], storage)[1].is_changed is False
    payload, version = fetch_image(refs[1], storage)
    assert (payload, version.bytes, version.is_changed) == (b"another, shorter one", 20, True)
    assert version.etag == storage.stat(refs[1].uri).etag
    with pytest.raises(NotFoundError):
        fetch_image(refs[2], storage)


def test_an_object_beyond_the_limit_is_refused_by_its_header(
    proxy: FaultProxy, storage: Storage, listed: list[ObjectInfo]
) -> None:
    before = proxy.requests
    with pytest.raises(ObjectTooLargeError) as refused:
        storage.fetch(listed[0].uri, max_bytes=100)
    assert refused.value.bytes == SIZE
    assert proxy.requests == before + 1


def test_containers_are_indexed_and_read_through_faults(proxy: FaultProxy, storage: Storage, s3_bucket: str) -> None:
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w") as tar:
        for number in range(3):
            header = tarfile.TarInfo(f"{number}.jpg")
            header.size = SIZE
            tar.addfile(header, io.BytesIO(body(number)))
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [body(number) for number in range(3)]}), table, row_group_size=1)
    storage.write(join(s3_bucket, "in/a.tar"), members.getvalue())
    storage.write(join(s3_bucket, "in/b.parquet"), table.getvalue())
    kinds: list[Kind] = ["error_500", "cut", "truncated", "wrong_length"]
    proxy.inject([Fault(kind, rate=0.15) for kind in kinds], seed=7)
    refs = list(list_images(InputSection(uri=join(s3_bucket, "in")), storage))
    found = [fetch_image(ref, storage) for ref in refs]
    assert [payload for payload, _ in found] == [body(number) for number in (0, 1, 2)] * 2
    assert [version.is_changed for _, version in found] == [False] * 6
    assert sum(proxy.counts.values()) > 0


def test_a_container_that_is_replaced_on_s3(storage: Storage, s3_bucket: str) -> None:
    def pack(names: list[str]) -> None:
        members = io.BytesIO()
        with tarfile.open(fileobj=members, mode="w") as tar:
            for name in names:
                header = tarfile.TarInfo(f"{name}.jpg")
                header.size = 1
                tar.addfile(header, io.BytesIO(name.encode()))
        storage.write(join(s3_bucket, "a.tar"), members.getvalue())

    pack(["a", "b", "c"])
    refs = list(list_images(InputSection(uri=join(s3_bucket, "a.tar")), storage))
    pack(["b"] + list("wxyz") * 10 + ["a"])
    found = [fetch_image(ref, storage) for ref in refs[:2]]
    assert [payload for payload, _ in found] == [b"a", b"b"]
    assert [version.is_changed for _, version in found] == [True, True]
    with pytest.raises(NotFoundError):
        fetch_image(refs[2], storage)


@pytest.mark.slow
def test_reads_survive_a_server_that_is_killed_and_comes_back(
    s3_server: S3Server, s3_bucket: str, listed: list[ObjectInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 1.0)
    storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url, patience_s=240), is_known=True)
    was_killed = threading.Event()

    def read(number: int) -> ObjectData:
        if number == OBJECTS:
            s3_server.kill()
            was_killed.set()
        each = listed[number % OBJECTS]
        return storage.fetch(each.uri, listed=each)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(read, number) for number in range(5 * OBJECTS)]
        try:
            assert was_killed.wait(120)
        finally:
            s3_server.start()
        found = [future.result() for future in futures]
    assert found == [ObjectData(body(number), listed[number].etag) for number in range(OBJECTS)] * 5
