"""How clients of remote stores are opened: what is bent in them changes nothing but speed."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.parsers import ResponseParserFactory
from botocore.session import get_session

from pipeline.store_options import quicken_times

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
