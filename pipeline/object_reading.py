"""Reading an object of a remote store: which version it is of, and whether all of it came.

S3 tells the version in its answer to the GET itself. Of other stores it is asked beforehand, and only where a
listing told one to compare with.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ObjectTooLargeError, TransientStorageError
from pipeline.stored import Fetched, Listed, listed_from, unquoted


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What of an object is wanted.

    path: as the file system spells it. uri: as people do.
    offset, length: in bytes; None for the beginning and the end.
    listed: the object when it was listed, None when it never was.
    max_bytes: the most that may be taken into memory.
    """

    path: str
    uri: str
    offset: int | None = None
    length: int | None = None
    listed: Listed | None = None
    max_bytes: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the whole object is wanted."""
        return self.offset is None and self.length is None

    @property
    def end(self) -> int | None:
        """The first byte that is not wanted."""
        return None if self.length is None else (self.offset or 0) + self.length


def read_from_s3(client: Any, request: ReadRequest) -> Fetched:
    """Send one GET through an s3fs client.

    A range that begins or ends beyond the object comes back short, as it does of a local file.

    Raises:
        TransientStorageError: less or more came than the store said there is.
        ObjectTooLargeError: it is larger than `max_bytes`; its body was not read.
    """
    return asyncio.run_coroutine_threadsafe(_get(client, request), client.loop).result()


async def _get(client: Any, request: ReadRequest) -> Fetched:
    bucket, key, _ = client.split_path(request.path)
    wanted = _range(request)
    try:
        answer = await client._call_s3("get_object", Bucket=bucket, Key=key, **({"Range": wanted} if wanted else {}))
    except OSError as error:
        if wanted is None or not _is_beyond_end(error):
            raise
        if request.offset:
            return Fetched(b"", None)
        # No range fits an empty object.
        answer = await client._call_s3("get_object", Bucket=bucket, Key=key)
    body = answer["Body"]
    try:
        if request.max_bytes is not None and answer["ContentLength"] > request.max_bytes:
            raise ObjectTooLargeError(request.uri, answer["ContentLength"])
        payload: bytes = await body.read()
    finally:
        # A body that was read to its end has given its connection back already.
        body.close()
    etag = unquoted(answer.get("ETag"))
    if answer.get("ContentRange") is None:
        payload = _check_whole(request, payload, etag)
    else:
        _check_range(request, payload, _total(answer["ContentRange"]))
    return Fetched(payload, etag)


def _range(request: ReadRequest) -> str | None:
    if request.is_whole and request.listed is not None and request.listed.bytes is not None:
        return None
    # Of an object of unknown size "all from 0" is asked for, because the answer to a range tells the object's
    # whole size, and so a body that was cut short on the way can be told from a short object.
    last = "" if request.end is None else str(request.end - 1)
    return f"bytes={request.offset or 0}-{last}"


def _is_beyond_end(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None)
    code = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return code == 416


def _total(content_range: str) -> int | None:
    total = content_range.rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _check_whole(request: ReadRequest, payload: bytes, etag: str | None) -> bytes:
    """Compare a whole object with what was listed, and cut the range out if the store ignored it."""
    listed = request.listed
    if listed is not None and listed.bytes is not None and listed.etag == etag and len(payload) != listed.bytes:
        raise TransientStorageError(
            f"Storage sent {len(payload)} of {listed.bytes} bytes of {request.uri}, whose version is unchanged."
        )
    return payload if request.is_whole else payload[request.offset or 0 : request.end]


def _check_range(request: ReadRequest, payload: bytes, total: int | None) -> None:
    begin = request.offset or 0
    ends = [end for end in (request.end, total) if end is not None]
    expected = max(0, min(ends) - begin) if ends else len(payload)
    if len(payload) != expected:
        raise TransientStorageError(f"Storage sent {len(payload)} of {expected} bytes of {request.uri}.")


def read_anywhere(client: Any, request: ReadRequest) -> Fetched:
    """Read from any fsspec file system.

    Raises:
        TransientStorageError: less came than was listed or asked for.
        ObjectTooLargeError: it is listed with more than `max_bytes`.
    """
    now = request.listed
    if now is not None and now.etag is not None:
        now = listed_from(request.uri, client.info(request.path))
    expected = request.length if not request.is_whole else (now.bytes if now is not None else None)
    if request.max_bytes is not None and expected is not None and expected > request.max_bytes:
        raise ObjectTooLargeError(request.uri, expected)
    start = None if request.is_whole else (request.offset or 0)
    payload: bytes = client.cat_file(request.path, start=start, end=request.end)
    if request.length is not None and len(payload) > request.length:
        # Servers may ignore the range and send everything.
        payload = payload[start : request.end]
    # More than was listed is no fault: some stores unpack what they hold compressed.
    if expected is not None and len(payload) < expected:
        raise TransientStorageError(f"Storage sent {len(payload)} of {expected} bytes of {request.uri}.")
    return Fetched(payload, now.etag if now is not None else None)
