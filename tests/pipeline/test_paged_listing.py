"""Listings by pages: the order of all keys, the least requests, and nothing held that is not read."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paged_listing
from pipeline.paged_listing import LEAST_FOLDER_KEYS, MOST_FOLDERS, PAGES_AHEAD, PARALLEL_FOLDERS, list_keys

PAGE_KEYS = 10


class FakeBucket:
    """Answers ListObjectsV2 as S3 does, ten entries a page."""

    def __init__(self, keys: Sequence[str], *, page_keys: int = PAGE_KEYS, knows_start: bool = True) -> None:
        self.keys = sorted(keys, key=str.encode)
        self.page_keys = page_keys
        self.knows_start = knows_start
        self.requests: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def fetch(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(request)
        assert "StartAfter" not in request or "ContinuationToken" not in request
        prefix, delimiter = request["Prefix"], request.get("Delimiter")
        # Unlike S3, whose tokens remember where the listing began, this one is told by the token itself.
        skipped, _, place = request.get("ContinuationToken", "").rpartition("|")
        least = skipped or (request.get("StartAfter", "") if self.knows_start else "")
        entries: dict[str, bool] = {}
        for key in self.keys:
            if key.startswith(prefix) and key.encode() > least.encode():
                head, slash, _ = key[len(prefix) :].partition("/")
                is_folder = bool(delimiter and slash)
                entries.setdefault(prefix + head + "/" if is_folder else key, is_folder)
        start = int(place or 0)
        page = list(entries.items())[start : start + self.page_keys]
        answer: dict[str, Any] = {"IsTruncated": start + self.page_keys < len(entries)}
        if answer["IsTruncated"]:
            answer["NextContinuationToken"] = f"{least}|{start + self.page_keys}"
        # S3 leaves out what is empty.
        if files := [name for name, is_folder in page if not is_folder]:
            answer["Contents"] = [{"Key": name, "Size": len(name), "ETag": f'"{name}"'} for name in files]
        if folders := [name for name, is_folder in page if is_folder]:
            answer["CommonPrefixes"] = [{"Prefix": name} for name in folders]
        return answer


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
    "a wide level of large folders": [f"p/{folder:03d}/{n:03d}" for folder in range(12) for n in range(300)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_keys_come_once_and_in_order(layout: str) -> None:
    bucket = FakeBucket([*LAYOUTS[layout], "o/before", "p-beside", "q/after"])
    found = list(list_keys(bucket.fetch, "p/"))
    assert [each.key for each in found] == sorted(LAYOUTS[layout], key=str.encode)
    assert [(each.bytes, each.etag) for each in found] == [(len(each.key), f'"{each.key}"') for each in found]


def test_a_whole_bucket_lists() -> None:
    bucket = FakeBucket(["a", "b/c", "b/d/e"])
    assert [each.key for each in list_keys(bucket.fetch, "")] == ["a", "b/c", "b/d/e"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("knows_start", [True, False])
def test_a_listing_goes_on_behind_any_key(layout: str, knows_start: bool) -> None:
    keys = sorted(LAYOUTS[layout], key=str.encode)
    bucket = FakeBucket([*keys, "o/before", "p-beside", "q/after"], knows_start=knows_start)
    steps = [*keys[:: max(1, len(keys) // 5)], *keys[-1:], "p/", "p/a", "p/a/", "p/zz"]
    for after in steps:
        expected = [key for key in keys if key.encode() > after.encode()]
        assert [each.key for each in list_keys(bucket.fetch, "p/", after)] == expected, after


def test_going_on_at_the_end_asks_for_no_page_of_the_beginning() -> None:
    keys = [f"p/2026/{day:03d}/{number:03d}" for day in range(30) for number in range(100)]
    bucket = FakeBucket(keys)
    assert len(list(list_keys(bucket.fetch, "p/", keys[-5]))) == 4
    assert len(bucket.requests) <= 4


names = st.text(st.sampled_from("ab/-\u00e9"), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.sets(names, max_size=40), names, st.integers(1, 4), st.booleans())
def test_any_keys_come_once_and_in_order(keys: set[str], after: str, page_keys: int, knows_start: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MOST_FOLDERS", 2), ("LEAST_FOLDER_KEYS", 2), ("PARALLEL_FOLDERS", 2), ("PAGES_AHEAD", 2)):
            patch.setattr(paged_listing, name, value)
        bucket = FakeBucket(list(keys), page_keys=page_keys, knows_start=knows_start)
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


def test_a_reader_that_stops_soon_costs_little() -> None:
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


def test_trouble_with_a_page_reaches_the_reader() -> None:
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
