"""Listings by pages: the order of all keys, the number of requests, and little read ahead."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import listing as paged_listing
from pipeline.storage.listing import LEAST_FOLDER_KEYS, MOST_FOLDERS, PAGES_AHEAD, PARALLEL_FOLDERS, list_keys

PAGE_KEYS = 10


Kind = Literal["s3", "named s3", "tree", "starts at the beginning"]
KINDS: list[Kind] = ["s3", "named s3", "tree", "starts at the beginning"]


class FakeBucket:
    """Answers ListObjectsV2 with ten entries a page, as S3 does or as less exact servers do."""

    def __init__(self, keys: Sequence[str], *, page_keys: int = PAGE_KEYS, kind: Kind = "named s3") -> None:
        self.kind = kind
        self.keys = sorted(keys, key=str.encode)
        self.page_keys = page_keys
        self.requests: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def fetch(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(request)
        assert "StartAfter" not in request or "ContinuationToken" not in request
        # S3's tokens remember where the listing began.
        start, _, place = request.get("ContinuationToken", "").rpartition("|")
        start = start or request.get("StartAfter", "")
        entries = self._entries(request["Prefix"], start, is_level="Delimiter" in request)
        first = int(place or 0)
        end = first + request.get("MaxKeys", self.page_keys)
        page = list(entries.items())[first:end]
        answer: dict[str, Any] = {"IsTruncated": end < len(entries)}
        if answer["IsTruncated"]:
            answer["NextContinuationToken"] = f"{start}|{end}"
        # S3 leaves out what is empty.
        if files := [name for name, is_folder in page if not is_folder]:
            answer["Contents"] = [{"Key": name, "Size": len(name), "ETag": f'"{name}"'} for name in files]
        if folders := [name for name, is_folder in page if is_folder]:
            answer["CommonPrefixes"] = [{"Prefix": name} for name in folders]
        server = "AmazonS3" if self.kind == "named s3" else "other"
        return answer | {"ResponseMetadata": {"HTTPHeaders": {"server": server}}}

    def _entries(self, prefix: str, start: str, *, is_level: bool) -> dict[str, bool]:
        entries: dict[str, bool] = {}
        for key in sorted(self.keys, key=_components) if self.kind == "tree" else self.keys:
            if key.startswith(prefix) and self._is_behind(key, start):
                head, slash, _ = key[len(prefix) :].partition("/")
                is_folder = bool(is_level and slash)
                entries.setdefault(prefix + head + "/" if is_folder else key, is_folder)
        return entries

    def _is_behind(self, key: str, start: str) -> bool:
        if self.kind == "starts at the beginning" or not start:
            return True
        if self.kind == "tree":
            # As SeaweedFS does: it skips a folder of that name with all its keys.
            parts, begin = _components(key), _components(start)
            return parts > begin and parts[: len(begin)] != begin
        return key.encode() > start.encode()


def _components(key: str) -> list[bytes]:
    return [part.encode() for part in key.split("/")]


LAYOUTS = {
    "nothing": [],
    "one file": ["p/a"],
    "files only": [f"p/{number:03d}" for number in range(35)],
    "one deep folder": [f"p/a/b/c/{number:03d}" for number in range(35)],
    "folders and namesakes": [
        f"p/{head}{number:02d}"
        for head in ("a", "a-", "a/", "a/b/", "a.", "é/", "\uffee/", "\U0001f600/")
        for number in range(4)
    ],
    "more folders than streams": [f"p/{folder:02d}/{number:03d}" for folder in range(9) for number in range(25)],
    "more folders than a page": [f"p/{folder:03d}/x" for folder in range(MOST_FOLDERS)],
    "the folder's own key": ["p/", "p/a/", "p/a/1", "p/b"],
    "a year's days": [f"p/2026/{m:02d}/{d:02d}/{n:02d}" for m in range(3) for d in range(4) for n in range(15)],
    "a wide level of large folders": [f"p/{folder:03d}/{n:03d}" for folder in range(12) for n in range(40)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_keys_come_once_and_in_order(layout: str, kind: Kind) -> None:
    bucket = FakeBucket([*LAYOUTS[layout], "o/before", "p-beside", "q/after"], kind=kind)
    found = list(list_keys(bucket.fetch, "p/"))
    assert [each.key for each in found] == sorted(LAYOUTS[layout], key=str.encode)
    assert [(each.bytes, each.etag) for each in found] == [(len(each.key), f'"{each.key}"') for each in found]


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_listed_by_the_beginning_of_their_names(kind: Kind) -> None:
    parts = [f"p/part-{number:05d}" for number in range(35)]
    bucket = FakeBucket([*parts, "p/a", "p/part", "p/parts-00000-00009", "p/z", "q/part-1"], kind=kind)
    assert [each.key for each in list_keys(bucket.fetch, "p/part-")] == parts
    # Their own pages, and one request more where the store has to be found out.
    assert len(bucket.requests) <= 6


def test_a_whole_bucket_lists() -> None:
    bucket = FakeBucket(["a", "b/c", "b/d/e"])
    assert [each.key for each in list_keys(bucket.fetch, "")] == ["a", "b/c", "b/d/e"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_resumes_behind_any_key(layout: str, kind: Kind) -> None:
    keys = sorted(LAYOUTS[layout], key=str.encode)
    bucket = FakeBucket([*keys, "o/before", "p-beside", "q/after"], kind=kind)
    steps = [*keys[:: max(1, len(keys) // 5)], *keys[-1:], "p/", "p/a", "p/a/", "p/zz"]
    for after in steps:
        expected = [key for key in keys if key.encode() > after.encode()]
        assert [each.key for each in list_keys(bucket.fetch, "p/", after)] == expected, after


def test_resuming_at_the_end_requests_no_page_of_the_beginning() -> None:
    keys = [f"p/2026/{day:03d}/{number:03d}" for day in range(30) for number in range(100)]
    bucket = FakeBucket(keys)
    assert len(list(list_keys(bucket.fetch, "p/", keys[-5]))) == 4
    assert len(bucket.requests) <= 5


names = st.text(st.sampled_from("ab/-\u00e9"), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.sets(names, max_size=40), names, st.integers(1, 4), st.sampled_from(KINDS))
def test_any_keys_come_once_and_in_order(keys: set[str], after: str, page_keys: int, kind: Kind) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MOST_FOLDERS", 2), ("LEAST_FOLDER_KEYS", 2), ("PARALLEL_FOLDERS", 2), ("PAGES_AHEAD", 2)):
            patch.setattr(paged_listing, name, value)
        bucket = FakeBucket(list(keys), page_keys=page_keys, kind=kind)
        assert [each.key for each in list_keys(bucket.fetch, "")] == bucket.keys
        rest = [key for key in bucket.keys if key.encode() > after.encode()]
        assert [each.key for each in list_keys(bucket.fetch, "", after)] == rest


def test_many_small_folders_cost_no_request_each() -> None:
    bucket = FakeBucket([f"p/{folder:04d}/x" for folder in range(2000)])
    assert len(list(list_keys(bucket.fetch, "p/"))) == 2000
    assert len(bucket.requests) <= 2000 // PAGE_KEYS + 2 * PARALLEL_FOLDERS + 3


def test_large_folders_of_a_wide_level_are_listed_side_by_side() -> None:
    each = 2 * LEAST_FOLDER_KEYS
    bucket = FakeBucket([f"p/{folder:03d}/{n:03d}" for folder in range(20) for n in range(each)], page_keys=15)
    assert len(list(list_keys(bucket.fetch, "p/"))) == 20 * each
    assert {str(request["Prefix"]) for request in bucket.requests} == {"p/", *(f"p/{n:03d}/" for n in range(20))}


def test_the_folders_of_a_large_folder_are_listed_side_by_side() -> None:
    bucket = FakeBucket(LAYOUTS["a year's days"])
    list(list_keys(bucket.fetch, "p/"))
    months = {f"p/2026/{month:02d}/" for month in range(3)}
    assert months <= {str(request["Prefix"]) for request in bucket.requests}


def test_a_consumer_that_stops_early_costs_few_requests() -> None:
    folders = PARALLEL_FOLDERS + 5
    bucket = FakeBucket([f"p/{folder:02d}/{number:04d}" for folder in range(folders) for number in range(1000)])
    keys = list_keys(bucket.fetch, "p/")
    assert next(keys).key == "p/00/0000"
    keys.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("list_"):
            thread.join()
    asked = Counter(str(request["Prefix"]) for request in bucket.requests)
    assert len(asked) <= 1 + 1 + PARALLEL_FOLDERS
    assert asked["p/00/"] <= 2
    assert max(asked.values()) <= PAGES_AHEAD


def test_the_error_of_a_page_reaches_the_consumer() -> None:
    bucket = FakeBucket([f"p/{folder}/{number:03d}" for folder in "ab" for number in range(50)])

    def fetch(request: dict[str, Any]) -> dict[str, Any]:
        if request["Prefix"] == "p/b/" and "ContinuationToken" in request:
            raise ConnectionResetError("cut")
        return bucket.fetch(request)

    found = []
    with pytest.raises(ConnectionResetError, match="cut"):
        found.extend(each.key for each in list_keys(fetch, "p/"))
    keys = list_keys(fetch, "p/")
    assert [next(keys).key for _ in range(50)] == [f"p/a/{number:03d}" for number in range(50)]
