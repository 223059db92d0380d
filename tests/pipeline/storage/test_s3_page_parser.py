"""The fast page parser: its result is botocore's, and unusual pages are left to botocore."""

from functools import cache
from types import SimpleNamespace
from typing import Any
from xml.sax.saxutils import escape

import pytest
from botocore.parsers import ResponseParserFactory
from botocore.session import get_session
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.s3_page_parser import install_page_parser, take_contents

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
TIME = "<LastModified>2026-11-23T02:05:07.000Z</LastModified>"
OWNER = "<Owner><ID>1</ID><DisplayName>Key</DisplayName></Owner><StorageClass>STANDARD</StorageClass>"


def page(contents: str, space: str = SPACE) -> bytes:
    rest = "<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>"
    folders = "<CommonPrefixes><Prefix>p/a/</Prefix></CommonPrefixes>"
    return f"{HEAD}<ListBucketResult{space}><Prefix>p/</Prefix>{contents}{rest}{folders}</ListBucketResult>".encode()


@cache
def shape() -> Any:
    return get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape


def slowly(body: bytes) -> dict[str, Any]:
    """A page as botocore parses it, with the fields that the program uses."""
    answer = {"body": body, "headers": {}, "status_code": 200}
    parsed: dict[str, Any] = ResponseParserFactory().create_parser("rest-xml").parse(answer, shape())
    if "Contents" in parsed:
        parts = ("Key", "Size", "ETag")
        parsed["Contents"] = [{part: each[part] for part in parts if part in each} for each in parsed["Contents"]]
    return parsed


def quickly(body: bytes) -> tuple[dict[str, Any], bool]:
    """The same with the fast parser, and whether it parsed the page."""
    answer, ours = {"body": body, "status_code": 200}, dict[str, Any]()
    take_contents(response_dict=answer, customized_response_dict=ours)
    return slowly(answer["body"]) | ours, bool(ours)


@pytest.mark.parametrize(
    ("body", "is_fast"),
    [
        (page(f"<Contents><Key>p/1.jpg</Key>{TIME}<ETag>&quot;e&quot;</ETag><Size>12</Size>{OWNER}</Contents>"), True),
        (page("<Contents><Key>p/1</Key><Size>0</Size></Contents>" * 3, space=""), True),
        (page("<Contents>\n <Key>a&amp;lt;&#13;&#x41;&#34;</Key>\n <Size>1</Size>\n</Contents>\n"), True),
        (page(""), False),
        (page("<Contents><Key><![CDATA[a<b]]></Key><Size>1</Size></Contents>"), False),
        (page("<Contents><!-- odd --><Key>a</Key><Size>1</Size></Contents>"), False),
        (page("<Contents><Size>1</Size></Contents>"), False),
        (page("<Contents><Key>a</Key></Contents>"), False),
        (
            page(
                "<Contents\n><Key>a</Key><Size>1</Size></Contents>" + "<Contents><Key>b</Key><Size>2</Size></Contents>"
            ),
            False,
        ),
        (page("<Contents><Key>a\r\nb</Key><Size>1</Size></Contents>"), False),
    ],
)
def test_a_page_reads_as_botocore_reads_it(body: bytes, is_fast: bool) -> None:
    assert quickly(body) == (slowly(body), is_fast)


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\t"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.integers(0, 2**50)), max_size=5))
def test_any_names_read_as_botocore_reads_them(objects: list[tuple[str, int]]) -> None:
    body = page("".join(f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size></Contents>" for key, size in objects))
    assert quickly(body)[0] == slowly(body)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<Error><Code>InternalError</Code><Key>a</Key></Error>"),
        (200, page("<Contents><Key>a</Key><Size>1</Size></Contents>")[:-40].replace(b"</Contents>", b"")),
        (200, page("<Contents><Key>\u00e9</Key><Size>1</Size></Contents>").replace(b"\xc3", b"\xff")),
        (403, page("<Contents><Key>a</Key><Size>1</Size></Contents>")),
    ],
)
def test_errors_and_damage_are_left_to_botocore(status: int, body: bytes) -> None:
    answer, ours = {"body": body, "status_code": status}, dict[str, Any]()
    take_contents(response_dict=answer, customized_response_dict=ours)
    assert (answer["body"], ours) == (body, {})


def test_an_existing_session_stays() -> None:
    client = SimpleNamespace(session="another session", kwargs={})
    install_page_parser(client)
    assert client.session == "another session"
