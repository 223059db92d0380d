"""S3 listings by pages: the order of all keys, the least requests, and nothing held that is not read."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.s3_listing import MOST_FOLDERS, PAGES_AHEAD, PARALLEL_FOLDERS, list_keys

PAGE_KEYS = 10


class FakeBucket:
    """Answers ListObjectsV2 as S3 does, ten entries a page."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = sorted(keys, key=str.encode)
        self.requests: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def fetch(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(request)
        prefix, delimiter = request["Prefix"], request.get("Delimiter")
        entries: dict[str, bool] = {}
        for key in self.keys:
            if key.startswith(prefix):
                head, slash, _ = key[len(prefix) :].partition("/")
                is_folder = bool(delimiter and slash)
                entries.setdefault(prefix + head + "/" if is_folder else key, is_folder)
        start = int(request.get("ContinuationToken", 0))
        page = list(entries.items())[start : start + PAGE_KEYS]
        answer: dict[str, Any] = {"IsTruncated": start + PAGE_KEYS < len(entries)}
        if answer["IsTruncated"]:
            answer["NextContinuationToken"] = str(start + PAGE_KEYS)
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


def test_many_small_folders_cost_no_request_each() -> None:
    bucket = FakeBucket([f"p/{folder:03d}/x" for folder in range(200)])
    assert len(list(list_keys(bucket.fetch, "p/"))) == 200
    assert len(bucket.requests) == 1 + 200 // PAGE_KEYS


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
