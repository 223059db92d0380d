"""Listing an S3 prefix page by page, in order, in little memory.

S3 returns keys in the binary order of their UTF-8, 1,000 a page, and each page needs the one before. So one
stream runs a page ahead of its reader, and where a prefix has few folders, the next ones are listed while the
first is read. Keys below `a/` all stand where `a/` itself would, which keeps the whole in order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

FetchPage = Callable[[dict[str, Any]], dict[str, Any]]
"""One ListObjectsV2 request: its parameters without the bucket, its answer as botocore parses it."""

PARALLEL_FOLDERS = 8
# Beyond this a listing per folder costs more requests than the one listing of everything.
MOST_FOLDERS = 64
# Of each folder not yet being read: 16,000 keys, about 6 MB.
PAGES_AHEAD = 16


@dataclass(frozen=True, slots=True)
class S3Key:
    """One object of a listing: its whole key, its size, its ETag with the quotes that S3 puts around it."""

    key: str
    bytes: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive keys, and where to go on: None when the prefix ends here."""

    keys: list[S3Key]
    token: str | None


def find_on_s3(
    client: Any, path: str, call: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]
) -> Iterator[tuple[str, int | None, str | None]]:
    """List what is below a path, as (name relative to it, bytes, ETag).

    Args:
        client: an s3fs file system.
        path: bucket and prefix as that spells them.
        call: runs one request, with retries and errors in our words.
    """
    bucket, key, _ = client.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""

    def fetch(request: dict[str, Any]) -> dict[str, Any]:
        return call(lambda: client.call_s3("list_objects_v2", Bucket=bucket, **request))

    for found in list_keys(fetch, prefix):
        yield found.key[len(prefix) :], found.bytes, found.etag


def list_keys(fetch: FetchPage, prefix: str) -> Iterator[S3Key]:
    """List all keys that start with a prefix, in the order of their UTF-8, while they arrive.

    Args:
        fetch: must be callable from several threads; what it raises ends the listing.
        prefix: "" for a whole bucket, else usually with a slash at the end.
    """
    top = fetch({"Prefix": prefix, "Delimiter": "/"})
    folders = [each["Prefix"] for each in top.get("CommonPrefixes", [])]
    pool = ThreadPoolExecutor(PARALLEL_FOLDERS, thread_name_prefix="list")
    try:
        if top.get("IsTruncated") or len(folders) > MOST_FOLDERS:
            yield from _below(pool, fetch, prefix, None)
        elif not folders:
            yield from _keys(top)
        else:
            yield from _by_folder(pool, fetch, folders, _keys(top))
    finally:
        # The reader may have had enough: whatever has not begun need not.
        pool.shutdown(wait=False, cancel_futures=True)


def _by_folder(pool: ThreadPoolExecutor, fetch: FetchPage, folders: list[str], files: list[S3Key]) -> Iterator[S3Key]:
    """Merge the files of a level with its folders' contents, several folders being listed at once."""
    coming = iter(sorted(folders, key=str.encode))
    begun: deque[tuple[str, Future[_Stretch]]] = deque()

    def begin(count: int) -> None:
        for folder in islice(coming, count):
            # The first one is waited for, so that it comes by the page.
            pages = PAGES_AHEAD if begun else 1
            begun.append((folder, pool.submit(_read, fetch, folder, None, pages)))

    begin(PARALLEL_FOLDERS)
    rest = deque(sorted(files, key=lambda each: each.key.encode()))
    while begun:
        folder, first = begun.popleft()
        while rest and rest[0].key.encode() < folder.encode():
            yield rest.popleft()
        begin(1)
        yield from _below(pool, fetch, folder, first)
    yield from rest


def _below(
    pool: ThreadPoolExecutor, fetch: FetchPage, prefix: str, first: "Future[_Stretch] | None"
) -> Iterator[S3Key]:
    """Yield a prefix's keys, the next page being fetched while one is read."""
    coming = first or pool.submit(_read, fetch, prefix, None, 1)
    while True:
        stretch = coming.result()
        if stretch.token is None:
            yield from stretch.keys
            return
        coming = pool.submit(_read, fetch, prefix, stretch.token, 1)
        yield from stretch.keys


def _read(fetch: FetchPage, prefix: str, token: str | None, pages: int) -> _Stretch:
    keys: list[S3Key] = []
    for _ in range(pages):
        request = {"Prefix": prefix} if token is None else {"Prefix": prefix, "ContinuationToken": token}
        page = fetch(request)
        keys += _keys(page)
        token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
        if token is None:
            break
    return _Stretch(keys, token)


def _keys(page: dict[str, Any]) -> list[S3Key]:
    return [S3Key(each["Key"], int(each["Size"]), each.get("ETag")) for each in page.get("Contents", [])]
