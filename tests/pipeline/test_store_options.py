"""How clients of remote stores are opened: what is bent in them changes nothing but speed."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.parsers import ResponseParserFactory
from botocore.session import get_session

from pipeline.config import StorageSection, load_spec
from pipeline.errors import SpecError
from pipeline.store_options import client_options, quicken_times, read_concurrency

MOMENT = datetime(2026, 11, 23, 2, 5, 7, tzinfo=UTC)


def quickened_session() -> Any:
    client = SimpleNamespace(session=None, kwargs={})
    quicken_times(client)
    return client.session


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-23T02:05:07.000Z",
        "2026-11-23T02:05:07Z",
        "2026-11-23T03:05:07+01:00",
        "1795399507",
        "2026-11-23 02:05:07Z",
    ],
)
def test_listed_times_are_read_as_botocore_reads_them(written: str) -> None:
    shape = get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
    body = (
        f"<ListBucketResult><Contents><Key>a</Key><LastModified>{written}</LastModified></Contents></ListBucketResult>"
    )
    answer = {"body": body.encode(), "headers": {}, "status_code": 200}
    slow = ResponseParserFactory().create_parser("rest-xml").parse(answer, shape)
    parser = quickened_session().get_component("response_parser_factory").create_parser("rest-xml")
    quick = asyncio.run(parser.parse(answer, shape))
    assert quick == slow
    assert quick["Contents"][0]["LastModified"] == MOMENT


def test_a_session_that_is_there_already_stays() -> None:
    client = SimpleNamespace(session="somebody's own", kwargs={})
    quicken_times(client)
    assert client.session == "somebody's own"


@pytest.mark.parametrize(("asked", "remote", "local"), [("auto", 32, 16), (5, 5, 5), (200, 200, 200)])
def test_connections_are_as_many_as_reads_and_some_to_spare(asked: Any, remote: int, local: int) -> None:
    section = StorageSection(read_concurrency=asked)
    assert read_concurrency(section, is_local=False) == remote
    assert read_concurrency(section, is_local=True) == local
    config = client_options("s3", section)["config_kwargs"]
    assert config["max_pool_connections"] > remote
    # The one loop of retries is ours.
    assert config["retries"] == {"total_max_attempts": 1}


@pytest.mark.parametrize(
    ("key", "value"), [("read_concurrency", 0), ("read_concurrency", "many"), ("patience_s", -1), ("hedge_reads", 2)]
)
def test_settings_that_mean_nothing_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"storage\.{key} must be"):
        load_spec(None, {"input.uri": "in", "output.uri": "out", f"storage.{key}": value})
