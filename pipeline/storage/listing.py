"""Listing an object store page by page, in order, in little memory.

Stores return keys in the binary order of their UTF-8, 1,000 a page, and each page needs the token of the one before. So
one stream of pages is read a page ahead of its consumer; and where there are folders, eight of them are read at the
same time. If a folder turns out to be large, its own folders are read in the same way (a year's months, a month's
days). Keys below `a/` sort where `a/` itself does, so that concatenating the folders keeps the order.

An example, with pages of 3 keys. The bucket holds `in/a/1` to `in/a/7`, `in/b/x` and `in/c.jpg`; the prefix is `in/`.

1. `read_level("in/")` asks with Delimiter="/" and returns the folders `in/a/` and `in/b/`, and the object `in/c.jpg`.
2. `_entries` begins to read the first folders side by side: `read("in/a/")` and `read("in/b/")`.
3. `_folder("in/a/")` waits for its first page, `1 2 3`. There is another page, and the last key has no further slash:
   `_stream` yields the rest, `4 5 6` and `7`, and requests each page before the page before it is consumed. Had the
   last key been `in/a/2026/3`, `level("in/a/")` would have begun again at step 1, behind that key.
4. `_folder("in/b/")` yields `x`, whose only page arrived during step 3. Then comes `in/c.jpg` itself.

A level with more folders than one page, or MOST_FOLDERS, may be one of many small folders, which cost a request each.
After the first eight, if they kept fewer than LEAST_FOLDER_KEYS keys on average, `_stream` reads the rest of the level.

Not every S3-compatible server keeps S3's order. Servers that hold keys as a tree of folders (SeaweedFS) return `a/1`
before `a.jpg`, and no `a/1` at all after `StartAfter=a`. For these (`is_flat` is false) each level is read from its
beginning and sorted here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

FetchPage = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes one ListObjectsV2 request: its parameters without the bucket, its answer as botocore parses it."""

# Values of the header Server of those known to list in "UTF-8 binary order" (S3 API reference, ListObjectsV2).
FLAT_SERVERS = frozenset({"AmazonS3", "MinIO"})

PARALLEL_FOLDERS = 8
# A level of more folders may be one of many small folders, which cost more requests one by one than in one stream.
MOST_FOLDERS = 64
# Such a level is listed by its folders as long as they hold this many keys or more on average: in the time in which one
# stream returns a thousand keys, eight folders return eight times that.
LEAST_FOLDER_KEYS = 250
# Of each folder that waits for its turn: 16,000 keys, about 6 MB. Half of that on each level further down.
PAGES_AHEAD = 16
_FEWEST_PAGES_AHEAD = 2
LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Key:
    """One listed object: its full key, its size, its ETag as the store spells it."""

    key: str
    bytes: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class _KeyRange:
    """Consecutive keys, and the token of the next page: None when the prefix ends here."""

    keys: list[Key]
    token: str | None


@dataclass(frozen=True, slots=True)
class _Level:
    """A page of the entries right below a prefix: objects, and folders by their prefixes."""

    entries: list[Key | str]
    token: str | None

    @property
    def folders(self) -> list[str]:
        """The folders among the entries."""
        return [each for each in self.entries if isinstance(each, str)]


def list_keys(fetch: FetchPage, prefix: str, after: str = "", *, is_flat: bool | None = None) -> Iterator[Key]:
    """Yield all keys that start with a prefix, in the order of their UTF-8, while pages arrive.

    Args:
        fetch: must be callable from several threads; what it raises ends the listing.
        prefix: "" for a whole bucket, else usually with a slash at the end.
        after: only keys behind this one, which starts with the prefix and need not exist.
        is_flat: whether the store keeps that order itself and supports `StartAfter`; None to find out.
    """
    # What the consumer waits for has threads of its own, so that it never queues behind what is read ahead.
    now = ThreadPoolExecutor(2, thread_name_prefix="list_now")
    ahead = ThreadPoolExecutor(PARALLEL_FOLDERS, thread_name_prefix="list_ahead")
    try:
        yield from _Listing(fetch, now, ahead, is_flat).all_keys(prefix, after)
    finally:
        # The consumer may stop early: requests that have not begun are dropped.
        for pool in (now, ahead):
            pool.shutdown(wait=False, cancel_futures=True)


class _Listing:
    def __init__(
        self, fetch: FetchPage, now: ThreadPoolExecutor, ahead: ThreadPoolExecutor, is_flat: bool | None
    ) -> None:
        self.fetch = fetch
        self.now = now
        self.ahead = ahead
        self.is_flat = bool(is_flat)
        self._is_known = is_flat is not None

    def all_keys(self, prefix: str, after: str) -> Iterator[Key]:
        """Find out how the server lists, and yield the keys below a prefix."""
        page = None
        if not self._is_known:
            page = self.fetch({"Prefix": prefix, "Delimiter": "/"})
            self.is_flat = self._is_flat_server(page, prefix)
        if page is None or (after and self.is_flat):
            first = self.now.submit(self.read_level, prefix, after)
        else:
            first = Future()
            first.set_result(_level_of(page, after))
        yield from self.level(prefix, after, 0, first)

    def _is_flat_server(self, page: dict[str, Any], prefix: str) -> bool:
        headers = page.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if headers.get("server") in FLAT_SERVERS:
            return True
        folders = [each["Prefix"] for each in page.get("CommonPrefixes", [])]
        if not folders or folders[-1] == "/":
            return False
        # On a flat server `a` is followed by the keys of `a/` (a tree skips them), and nothing of `a/` follows its last
        # key (a server that ignores StartAfter lists them again).
        folder = folders[-1]
        behind = _keys(self.fetch({"Prefix": prefix, "StartAfter": folder.removesuffix("/"), "MaxKeys": 1}))
        if not (behind and behind[0].key.startswith(folder)):
            return False
        return not _keys(self.fetch({"Prefix": folder, "StartAfter": f"{folder}{LAST_CHARACTER}", "MaxKeys": 1}))

    def level(self, prefix: str, after: str, depth: int, coming: "Future[_Level]") -> Iterator[Key]:
        """Yield the keys below a prefix: its own objects, and those of its folders in their places."""
        folders, keys, last, is_wide = 0, 0, after, False
        kept: list[Key | str] = []
        while True:
            page = coming.result()
            if not self.is_flat:
                page, kept = _sort_page(page, kept)
            if page.token is not None:
                coming = self.now.submit(self.read_level, prefix, after, page.token)
            is_wide = self.is_flat and (is_wide or page.token is not None or len(page.folders) > MOST_FOLDERS)
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
        """Yield for each entry of a level's page whether it is a folder, and its keys; reads the next folders ahead."""
        coming = iter(page.folders)
        begun: deque[Future[_KeyRange]] = deque()

        def begin(count: int) -> None:
            for folder in islice(coming, count):
                start = after if after.startswith(folder) else ""
                # The consumer waits for the first folder, so that it is read page by page.
                pages = max(_FEWEST_PAGES_AHEAD, PAGES_AHEAD >> depth) if begun and self.is_flat else 1
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

    def _folder(self, folder: str, first: "Future[_KeyRange]", after: str, depth: int) -> Iterator[Key]:
        """Yield a folder's keys; `first` holds its first pages."""
        found = first.result()
        if not self.is_flat:
            if found.token is None:
                yield from sorted(found.keys, key=lambda each: each.key.encode())
            else:
                yield from self.level(folder, after, depth + 1, self.now.submit(self.read_level, folder, after))
            return
        last = found.keys[-1].key if found.keys else folder
        if found.token is None or "/" not in last[len(folder) :]:
            yield from self._stream(folder, first)
            return
        below = self.now.submit(self.read_level, folder, last)
        yield from found.keys
        yield from self.level(folder, last, depth + 1, below)

    def _stream(self, prefix: str, coming: "Future[_KeyRange]") -> Iterator[Key]:
        """Yield a prefix's keys page by page; the next page is requested while one is consumed."""
        while True:
            found = coming.result()
            if found.token is None:
                yield from found.keys
                return
            coming = self.now.submit(self.read, prefix, "", found.token)
            yield from found.keys

    def read(self, prefix: str, after: str = "", token: str | None = None, pages: int = 1) -> _KeyRange:
        """Read up to `pages` pages of keys, and only keys behind `after`."""
        keys: list[Key] = []
        for _ in range(pages):
            page = self.fetch(_request({"Prefix": prefix}, after if self.is_flat else "", token))
            keys += [each for each in _keys(page) if not after or each.key.encode() > after.encode()]
            token = _token(page)
            if token is None:
                break
        return _KeyRange(keys, token)

    def read_level(self, prefix: str, after: str = "", token: str | None = None) -> _Level:
        """Read a page of the entries right below a prefix, without those that end before or at `after`."""
        # From the folder of `after` on: it sorts behind its own name without the slash.
        start = prefix + after[len(prefix) :].partition("/")[0] if after and self.is_flat else ""
        return _level_of(self.fetch(_request({"Prefix": prefix, "Delimiter": "/"}, start, token)), after)


def _level_of(page: dict[str, Any], after: str) -> _Level:
    entries: list[Key | str] = [*_keys(page), *(each["Prefix"] for each in page.get("CommonPrefixes", []))]
    if after:
        entries = [each for each in entries if _order(each) > after.encode() or _holds(each, after)]
    return _Level(sorted(entries, key=_order), _token(page))


def _sort_page(page: _Level, kept: list[Key | str]) -> tuple[_Level, list[Key | str]]:
    """Sort a page that is in the order of a tree; entries that later ones may precede are kept for the next page.

    A tree lists `a/` where `a` sorts; `a-1` and `a.jpg`, which must precede it, may come on the next page.
    """
    entries = sorted([*page.entries, *kept], key=_order)
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
