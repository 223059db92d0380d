"""Listing an object store page by page, in order, in little memory.

Stores return keys in the binary order of their UTF-8, 1,000 a page, and each page needs the one before. So one
stream runs a page ahead of its reader; and where there are folders, the next ones are listed while the first is
read. Of a folder that turns out to be large its own folders are listed in this way (a year's months, a month's
days). Keys below `a/` all stand where `a/` itself would, which keeps the whole in order.

Not every server that calls itself S3 keeps S3's order. Those that hold keys as a tree of folders (SeaweedFS) return
`a/1` before `a.jpg`, and after `StartAfter=a` no `a/1` at all. There each level is listed from its beginning and put in
order here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

FetchPage = Callable[[dict[str, Any]], dict[str, Any]]
"""One request in the words of S3's ListObjectsV2: its parameters but the bucket, its answer as botocore reads it."""

# What S3 documents (API reference, ListObjectsV2: "in UTF-8 binary order"), by what these say in the header Server.
PLAIN_SERVERS = frozenset({"AmazonS3", "MinIO"})

PARALLEL_FOLDERS = 8
# A level of more folders may be one of many small ones, and these cost more requests one by one than all together.
MOST_FOLDERS = 64
# Such a level is listed by its folders as long as they hold so many keys or more: one stream brings a thousand keys
# in the time in which eight of them bring eight times that.
LEAST_FOLDER_KEYS = 250
# Of each folder that is not being read yet: 16,000 keys, about 6 MB. Half of that on each level further down.
PAGES_AHEAD = 16
_FEWEST_PAGES_AHEAD = 2
LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Key:
    """One object of a listing: its whole key, its size, its ETag as the store spells it."""

    key: str
    bytes: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive keys, and where to go on: None when the prefix ends here."""

    keys: list[Key]
    token: str | None


@dataclass(frozen=True, slots=True)
class _Level:
    """A page of what stands right below a prefix: objects, and folders by their prefixes."""

    entries: list[Key | str]
    token: str | None

    @property
    def folders(self) -> list[str]:
        """Only the folders."""
        return [each for each in self.entries if isinstance(each, str)]


def list_keys(fetch: FetchPage, prefix: str, after: str = "", *, is_plain: bool | None = None) -> Iterator[Key]:
    """List all keys that start with a prefix, in the order of their UTF-8, while they arrive.

    Args:
        fetch: must be callable from several threads; what it raises ends the listing.
        prefix: "" for a whole bucket, else usually with a slash at the end.
        after: only keys behind this one, which starts with the prefix and need not exist.
        is_plain: whether the store keeps that order itself and knows `StartAfter`; None to find out.
    """
    # What is waited for goes by threads of its own, so that it never stands in line behind what is read ahead.
    now = ThreadPoolExecutor(2, thread_name_prefix="list_now")
    ahead = ThreadPoolExecutor(PARALLEL_FOLDERS, thread_name_prefix="list_ahead")
    try:
        yield from _Listing(fetch, now, ahead, is_plain).all_keys(prefix, after)
    finally:
        # The reader may have had enough: whatever has not begun need not.
        for pool in (now, ahead):
            pool.shutdown(wait=False, cancel_futures=True)


class _Listing:
    def __init__(
        self, fetch: FetchPage, now: ThreadPoolExecutor, ahead: ThreadPoolExecutor, is_plain: bool | None
    ) -> None:
        self.fetch = fetch
        self.now = now
        self.ahead = ahead
        self.is_plain = bool(is_plain)
        self._is_known = is_plain is not None

    def all_keys(self, prefix: str, after: str) -> Iterator[Key]:
        """Yield the keys below a prefix, when it is clear how the server lists."""
        page = None
        if not self._is_known:
            page = self.fetch({"Prefix": prefix, "Delimiter": "/"})
            self.is_plain = self._is_in_plain_order(page, prefix)
        if page is None or (after and self.is_plain):
            first = self.now.submit(self.read_level, prefix, after)
        else:
            first = Future()
            first.set_result(_level_of(page, after))
        yield from self.level(prefix, after, 0, first)

    def _is_in_plain_order(self, page: dict[str, Any], prefix: str) -> bool:
        headers = page.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if headers.get("server") in PLAIN_SERVERS:
            return True
        folders = [each["Prefix"] for each in page.get("CommonPrefixes", [])]
        if not folders or folders[-1] == "/":
            return False
        # Behind `a` comes what is in `a/`, unless folders are taken for things of their own; and behind all of that
        # nothing more of it, unless StartAfter is ignored.
        folder = folders[-1]
        behind = _keys(self.fetch({"Prefix": prefix, "StartAfter": folder.removesuffix("/"), "MaxKeys": 1}))
        if not (behind and behind[0].key.startswith(folder)):
            return False
        return not _keys(self.fetch({"Prefix": folder, "StartAfter": f"{folder}{LAST_CHARACTER}", "MaxKeys": 1}))

    def level(self, prefix: str, after: str, depth: int, coming: "Future[_Level]") -> Iterator[Key]:
        """Yield the keys below a prefix: its own objects, and in their places those of its folders."""
        folders, keys, last, is_wide = 0, 0, after, False
        held: list[Key | str] = []
        while True:
            page = coming.result()
            if not self.is_plain:
                page, held = _put_in_order(page, held)
            if page.token is not None:
                coming = self.now.submit(self.read_level, prefix, after, page.token)
            is_wide = self.is_plain and (is_wide or page.token is not None or len(page.folders) > MOST_FOLDERS)
            for folder, found in self._entries(page, after, depth):
                for each in found:
                    yield each
                    keys, last = keys + 1, each.key
                folders += folder
                if is_wide and folders >= PARALLEL_FOLDERS and keys < folders * LEAST_FOLDER_KEYS:
                    yield from self._stream(prefix, self.now.submit(self.read, prefix, last))
                    return
            if page.token is None:
                return

    def _entries(self, page: _Level, after: str, depth: int) -> Iterator[tuple[bool, Iterator[Key]]]:
        """Yield each entry of a level's page as whether it is a folder, and its keys; the next folders are begun."""
        coming = iter(page.folders)
        begun: deque[Future[_Stretch]] = deque()

        def begin(count: int) -> None:
            for folder in islice(coming, count):
                start = after if after.startswith(folder) else ""
                # The first one is waited for, so that it comes by the page.
                pages = max(_FEWEST_PAGES_AHEAD, PAGES_AHEAD >> depth) if begun and self.is_plain else 1
                begun.append((self.ahead if begun else self.now).submit(self.read, folder, start, None, pages))

        try:
            begin(PARALLEL_FOLDERS)
            for entry in page.entries:
                if isinstance(entry, Key):
                    yield False, iter((entry,))
                    continue
                first = begun.popleft()
                begin(1)
                yield True, self._folder(entry, first, after if after.startswith(entry) else "", depth)
        finally:
            for each in begun:
                each.cancel()

    def _folder(self, folder: str, first: "Future[_Stretch]", after: str, depth: int) -> Iterator[Key]:
        """Yield a folder's keys, of which the first have come."""
        stretch = first.result()
        if not self.is_plain:
            if stretch.token is None:
                yield from sorted(stretch.keys, key=lambda each: each.key.encode())
            else:
                yield from self.level(folder, after, depth + 1, self.now.submit(self.read_level, folder, after))
            return
        last = stretch.keys[-1].key if stretch.keys else folder
        if stretch.token is None or "/" not in last[len(folder) :]:
            yield from self._stream(folder, first)
            return
        below = self.now.submit(self.read_level, folder, last)
        yield from stretch.keys
        yield from self.level(folder, last, depth + 1, below)

    def _stream(self, prefix: str, coming: "Future[_Stretch]") -> Iterator[Key]:
        """Yield a prefix's keys one page after the other, the next being fetched while one is read."""
        while True:
            stretch = coming.result()
            if stretch.token is None:
                yield from stretch.keys
                return
            coming = self.now.submit(self.read, prefix, "", stretch.token)
            yield from stretch.keys

    def read(self, prefix: str, after: str = "", token: str | None = None, pages: int = 1) -> _Stretch:
        """Read pages of keys, those behind `after` only."""
        keys: list[Key] = []
        for _ in range(pages):
            page = self.fetch(_request({"Prefix": prefix}, after if self.is_plain else "", token))
            keys += [each for each in _keys(page) if not after or each.key.encode() > after.encode()]
            token = _token(page)
            if token is None:
                break
        return _Stretch(keys, token)

    def read_level(self, prefix: str, after: str = "", token: str | None = None) -> _Level:
        """Read a page of what stands right below a prefix, but for what ends before or at `after`."""
        # From the folder that `after` lies in, which comes behind its own name without the slash.
        start = prefix + after[len(prefix) :].partition("/")[0] if after and self.is_plain else ""
        return _level_of(self.fetch(_request({"Prefix": prefix, "Delimiter": "/"}, start, token)), after)


def _level_of(page: dict[str, Any], after: str) -> _Level:
    entries: list[Key | str] = [*_keys(page), *(each["Prefix"] for each in page.get("CommonPrefixes", []))]
    if after:
        entries = [each for each in entries if _order(each) > after.encode() or _holds(each, after)]
    return _Level(sorted(entries, key=_order), _token(page))


def _put_in_order(page: _Level, held: list[Key | str]) -> tuple[_Level, list[Key | str]]:
    """Sort a page that comes in the order of a tree: what may still be preceded by something is held for the next.

    There `a/` comes where `a` does; `a-1` and `a.jpg`, which should precede it, may come later.
    """
    entries = sorted([*page.entries, *held], key=_order)
    if page.token is None:
        return _Level(entries, None), []
    last = max((_order(each).removesuffix(b"/") for each in page.entries), default=b"")
    return (
        _Level([each for each in entries if _order(each) <= last], page.token),
        [each for each in entries if _order(each) > last],
    )


def _request(request: dict[str, Any], start: str, token: str | None) -> dict[str, Any]:
    if token is not None:
        return request | {"ContinuationToken": token}
    return request | {"StartAfter": start} if start else request


def _token(page: dict[str, Any]) -> str | None:
    return page.get("NextContinuationToken") if page.get("IsTruncated") else None


def _order(entry: Key | str) -> bytes:
    return (entry if isinstance(entry, str) else entry.key).encode()


def _holds(entry: Key | str, key: str) -> bool:
    return isinstance(entry, str) and key.startswith(entry)


def _keys(page: dict[str, Any]) -> list[Key]:
    return [Key(each["Key"], int(each["Size"]), each.get("ETag")) for each in page.get("Contents", [])]
