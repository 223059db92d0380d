"""`Storage` with a store that fails in every way: reads are correct and writes arrive."""

from collections.abc import Iterator

import fsspec
import pytest

from pipeline.errors import AccessDeniedError
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.fault_proxy import Fault, FaultDice, FaultProxy, Kind
from tests.support.servers.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("s3")]
PAYLOAD = bytes(range(256)) * 64


@pytest.fixture
def proxy(s3_server: S3Server, s3_bucket: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def open_storage(proxy: FaultProxy) -> Storage:
    return Storage(StorageSection(endpoint_url=proxy.endpoint_url))


def test_without_faults_the_proxy_changes_nothing(proxy: FaultProxy, s3_bucket: str) -> None:
    storage = open_storage(proxy)
    storage.write(f"{s3_bucket}/a b/ü.bin", PAYLOAD)
    assert storage.read(f"{s3_bucket}/a b/ü.bin") == PAYLOAD
    assert storage.read(f"{s3_bucket}/a b/ü.bin", 300, 20) == PAYLOAD[300:320]
    assert [listed.bytes for listed in storage.list(s3_bucket)] == [len(PAYLOAD)]
    assert proxy.requests > 0
    assert not proxy.counts


@pytest.mark.parametrize("kind", ["error_500", "slow_down", "cut", "truncated"])
def test_a_read_that_fails_twice_succeeds_the_third_time(proxy: FaultProxy, s3_bucket: str, kind: Kind) -> None:
    storage = open_storage(proxy)
    storage.write(f"{s3_bucket}/a.bin", PAYLOAD)
    proxy.inject([Fault(kind, methods=("GET",), keys="a.bin", first=2)])
    assert storage.read(f"{s3_bucket}/a.bin") == PAYLOAD
    assert proxy.counts[kind] == 2


@pytest.mark.parametrize("kind", ["error_500", "slow_down", "cut", "lost_answer", "request_timeout"])
def test_a_write_that_fails_twice_succeeds_the_third_time(
    proxy: FaultProxy, s3_bucket: str, s3_server: S3Server, kind: Kind
) -> None:
    proxy.inject([Fault(kind, methods=("PUT",), keys="a.bin", first=2)])
    open_storage(proxy).write(f"{s3_bucket}/a.bin", PAYLOAD)
    assert proxy.counts[kind] == 2
    assert s3_server.files().cat_file(f"{s3_bucket}/a.bin") == PAYLOAD


def test_a_range_of_a_wrong_length_is_read_again(proxy: FaultProxy, s3_bucket: str) -> None:
    storage = open_storage(proxy)
    storage.write(f"{s3_bucket}/a.bin", PAYLOAD)
    proxy.inject([Fault("wrong_length", methods=("GET",), keys="a.bin", first=2)])
    assert storage.read(f"{s3_bucket}/a.bin", 100, 1000) == PAYLOAD[100:1100]
    assert proxy.counts["wrong_length"] == 2


def test_a_refusal_is_reported(proxy: FaultProxy, s3_bucket: str) -> None:
    storage = open_storage(proxy)
    storage.write(f"{s3_bucket}/a.bin", PAYLOAD)
    proxy.inject([Fault("forbidden", keys="a.bin")])
    with pytest.raises(AccessDeniedError, match="No permission to read"):
        storage.read(f"{s3_bucket}/a.bin")


def test_the_same_seed_breaks_the_same_requests() -> None:
    drawn = []
    for seed in (1, 1, 2):
        dice = FaultDice([Fault("cut", 0.3)], seed=seed)
        drawn.append([dice.draw("GET", f"/b/{number % 50}") is not None for number in range(200)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert 30 < sum(drawn[0]) < 90
