"""The pages of an S3 listing, read four times as fast as botocore reads them.

botocore looks at a page of a thousand keys twice, and spends 45 µs on each key: on its time, its owner, its storage
class. Listing is what a run of millions of images begins with, so here names, sizes and ETags are taken out of a
page by a hook of botocore's own, before it sees the page.
"""

import re
from typing import Any

# By a star, so that it comes before botocore's own handler of "s3.*", which parses the whole page to see whether it is
# an error; later it would be right as well, and slower.
_PAGE = "before-parse.*.ListObjectsV2"
_CONTENTS = re.compile(rb"<Contents>(.*?)</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_SIZE = re.compile(rb"<Size>(\d+)</Size>")
_ETAG = re.compile(rb"<ETag>([^<]*)</ETag>")
_ENTITY = re.compile(r"&(?:#(\d+)|#[xX]([0-9A-Fa-f]+)|(amp|lt|gt|quot|apos));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def quicken_listings(client: Any) -> None:
    """Have an s3fs client that is not connected yet read listings quickly; other answers it reads as ever."""
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    if client.session is None:
        client.session = AioSession(**client.kwargs)
        client.session.get_component("event_emitter").register_first(_PAGE, take_contents)


def take_contents(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Move the objects of a page from its text to botocore's answer; a page that looks unusual stays as it is.

    Args:
        response_dict: the answer as it came; its body is left without the objects.
        customized_response_dict: what botocore's answer will hold besides: `Contents`, each with Key, Size and ETag.
    """
    body: bytes = response_dict["body"]
    # Comments, CDATA, prefixed names and other line ends are XML as well, and nothing for regular expressions.
    is_plain = not any(mark in body for mark in (b"<!", b":Contents", b"\r"))
    if response_dict["status_code"] != 200 or not is_plain:
        return
    try:
        contents = [_object(found) for found in _CONTENTS.findall(body)]
    except UnicodeDecodeError:
        return
    if contents and None not in contents and len(contents) == body.count(b"</Contents>"):
        customized_response_dict["Contents"] = contents
        response_dict["body"] = _CONTENTS.sub(b"", body)


def _object(text: bytes) -> dict[str, Any] | None:
    key, size, etag = _KEY.search(text), _SIZE.search(text), _ETAG.search(text)
    if key is None or size is None:
        return None
    found = {"Key": _text(key[1]), "Size": int(size[1])}
    return found if etag is None else found | {"ETag": _text(etag[1])}


def _text(encoded: bytes) -> str:
    text = encoded.decode()
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    decimal, hexadecimal, name = entity.groups()
    return _NAMED[name] if name else chr(int(decimal) if decimal else int(hexadecimal, 16))
