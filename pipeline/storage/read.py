"""Reading an object of a remote store, with its version and a check that the read is complete.

S3 sends the version with the answer to the GET. Other stores are asked for it before the read, and only where the
listing had a version to compare with.
"""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pipeline.errors import IncompleteReadError, ObjectTooLargeError
from pipeline.storage.objects import ObjectData, ObjectInfo, listed_from, strip_etag
from pipeline.storage.uris import S3_SCHEMES, WEB_SCHEMES

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A read of an object or a part of it.

    uri: the object's name, without a signature.
    offset, length: in bytes; None reads from the beginning, and to the end.
    listed: the object as it was listed, None when it was not.
    max_bytes: the largest object that may be read into memory.
    """

    uri: str
    offset: int | None = None
    length: int | None = None
    listed: ObjectInfo | None = None
    max_bytes: int | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether the request is for the whole object."""
        return self.offset is None and self.length is None

    @property
    def end(self) -> int | None:
        """The offset behind the last byte; None for the end of the object."""
        return None if self.length is None else (self.offset or 0) + self.length

    @property
    def expected_bytes(self) -> int | None:
        """The expected size of the answer in bytes, None when it is not known."""
        return self.listed.bytes if self.is_whole and self.listed is not None else self.length


def begin_read(client: Any, path: str, request: ReadRequest) -> Future[ObjectData]:
    """Begin a read; cancelling the future ends it.

    Args:
        client: the store's fsspec file system.
        path: the object's address as that file system spells it.

    A range that ends beyond the object comes back short, as with a local file. The future raises the client's errors,
    and besides:

    Raises:
        IncompleteReadError: the answer has another length than the store reported, or than was listed.
        ObjectTooLargeError: the object is larger than `max_bytes`; its body is not read.
    """
    protocols = {client.protocol} if isinstance(client.protocol, str) else set(client.protocol)
    if protocols & S3_SCHEMES:
        return asyncio.run_coroutine_threadsafe(_get(client, path, request), client.loop)
    if protocols & WEB_SCHEMES:
        return asyncio.run_coroutine_threadsafe(_get_from_web(client, path, request), client.loop)
    if getattr(client, "async_impl", False):
        return asyncio.run_coroutine_threadsafe(_cat(client, path, request), client.loop)
    return _read_now(client, path, request)


async def _get(client: Any, path: str, request: ReadRequest) -> ObjectData:
    bucket, key, _ = client.split_path(path)
    wanted = _range(request)
    try:
        answer = await client._call_s3("get_object", Bucket=bucket, Key=key, **({"Range": wanted} if wanted else {}))
    except OSError as error:
        if wanted is None or not _is_beyond_end(error):
            raise
        if request.offset:
            return ObjectData(b"", None)
        # An empty object satisfies no range.
        answer = await client._call_s3("get_object", Bucket=bucket, Key=key)
    body = answer["Body"]
    try:
        # A chunked answer has no length; then the reader of the image notices what is missing.
        size = answer.get("ContentLength", 0)
        if request.max_bytes is not None and size > request.max_bytes:
            raise ObjectTooLargeError(request.uri, size)
        payload: bytes = await body.read()
    finally:
        # A body that was read to its end has returned its connection already.
        body.close()
    etag = strip_etag(answer.get("ETag"))
    if answer.get("ContentRange") is None:
        payload = _check_whole(request, payload, etag)
    else:
        _check_range(request, payload, _total(answer["ContentRange"]))
    return ObjectData(payload, etag)


async def _get_from_web(client: Any, path: str, request: ReadRequest) -> ObjectData:
    wanted = None if request.is_whole else _range(request)
    # A compressed answer would have another size, and often another ETag.
    headers = client.kwargs.get("headers", {}) | {"Accept-Encoding": "identity"}
    options = client.kwargs | {"headers": headers | ({"Range": wanted} if wanted else {})}
    session = await client.set_session()
    async with session.get(client.encode_url(path), **options) as answer:
        if answer.status == 416:
            return ObjectData(b"", None)
        client._raise_not_found_for_status(answer, request.uri)
        most = request.max_bytes
        if most is not None and (answer.content_length or 0) > most:
            raise ObjectTooLargeError(request.uri, answer.content_length)
        payload = bytearray()
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            payload += chunk
            if most is not None and len(payload) > most:
                # Some hosts send no length, and some a wrong one.
                raise ObjectTooLargeError(request.uri, len(payload))
        etag = strip_etag(answer.headers.get("ETag"))
        content_range = answer.headers.get("Content-Range") if answer.status == 206 else None
    if content_range is None:
        return ObjectData(_check_whole(request, bytes(payload), etag), etag)
    _check_range(request, payload, _total(content_range))
    return ObjectData(bytes(payload), etag)


def _range(request: ReadRequest) -> str | None:
    if request.is_whole and request.listed is not None and request.listed.bytes is not None:
        return None
    # An object of unknown size is read as the range "all from 0", because the answer to a range has the object's size,
    # with which a body that was cut short can be recognised.
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
    """Compare an object's size with the listed one, and cut the range out if the store ignored it."""
    listed = request.listed
    if listed is not None and listed.bytes is not None and listed.etag == etag and len(payload) != listed.bytes:
        raise IncompleteReadError(
            f"Storage sent {len(payload)} of {listed.bytes} bytes of {request.uri}, whose version is unchanged."
        )
    return payload if request.is_whole else payload[request.offset or 0 : request.end]


def _check_range(request: ReadRequest, payload: bytes | bytearray, total: int | None) -> None:
    begin = request.offset or 0
    ends = [end for end in (request.end, total) if end is not None]
    expected = max(0, min(ends) - begin) if ends else len(payload)
    if len(payload) != expected:
        raise IncompleteReadError(f"Storage sent {len(payload)} of {expected} bytes of {request.uri}.")


async def _cat(client: Any, path: str, request: ReadRequest) -> ObjectData:
    found = await client._info(path) if _is_versioned(request) else None
    now = _check_limit(request, found)
    start, end = _bounds(request)
    payload = await client._cat_file(path, start=start, end=end)
    if _is_short(request, payload):
        _check_range(request, payload, listed_from(request.uri, await client._info(path)).bytes)
    return _as_fetched(request, now, payload)


def _read_now(client: Any, path: str, request: ReadRequest) -> Future[ObjectData]:
    """Read through a synchronous file system, in the calling thread."""
    done: Future[ObjectData] = Future()
    now = _check_limit(request, client.info(path) if _is_versioned(request) else None)
    start, end = _bounds(request)
    payload = client.cat_file(path, start=start, end=end)
    if _is_short(request, payload):
        _check_range(request, payload, listed_from(request.uri, client.info(path)).bytes)
    done.set_result(_as_fetched(request, now, payload))
    return done


def _is_short(request: ReadRequest, payload: bytes) -> bool:
    # The answer was cut short, or the object ends there; its size decides.
    return request.length is not None and len(payload) < request.length


def _is_versioned(request: ReadRequest) -> bool:
    return request.listed is not None and request.listed.etag is not None


def _check_limit(request: ReadRequest, found: dict[str, Any] | None) -> ObjectInfo | None:
    """Check `max_bytes`, and return the object's current size and version as far as they are known."""
    now = request.listed if found is None else listed_from(request.uri, found)
    size = now.bytes if now is not None and request.is_whole else None
    if request.max_bytes is not None and size is not None and size > request.max_bytes:
        raise ObjectTooLargeError(request.uri, size)
    return now


def _bounds(request: ReadRequest) -> tuple[int | None, int | None]:
    return (None, None) if request.is_whole else (request.offset or 0, request.end)


def _as_fetched(request: ReadRequest, now: ObjectInfo | None, payload: bytes) -> ObjectData:
    expected = now.bytes if request.is_whole and now is not None else None
    if request.length is not None and len(payload) > request.length:
        # Some servers ignore the range and send everything.
        payload = payload[request.offset or 0 : request.end]
    # More than was listed is correct: some stores decompress what they send.
    if expected is not None and len(payload) < expected:
        raise IncompleteReadError(f"Storage sent {len(payload)} of {expected} bytes of {request.uri}.")
    return ObjectData(payload, now.etag if now is not None else None)
