"""SQL over tables in a store: the same results as locally, and only the parts that may hold rows are read."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.output.query_files import CommittedFiles
from pipeline.output.results import Results
from pipeline.output.views import open_database
from pipeline.storage.objects import ObjectData, ObjectInfo
from pipeline.storage.storage import Storage
from tests.support.builders.incremental_runs import WrittenRun, write_runs

QUERIES = [
    "SELECT uri, run, instances FROM current ORDER BY uri",
    "SELECT uri, category, run, bbox.width FROM current_instances ORDER BY uri",
    "SELECT run, count(*), min(uri) FROM images GROUP BY run ORDER BY run",
    "SELECT uri FROM images WHERE status <> 'ok' ORDER BY uri",
    "SELECT images.uri FROM images JOIN instances USING (run, image_id) WHERE score > 0.5 AND run > '3' ORDER BY 1",
    "SELECT count(*) FROM deletions",
    "SELECT count(*) FROM images WHERE run = 'none'",
]


class Recording(Storage):
    """Records the requests for parts."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []

    def stat(self, uri: str) -> ObjectInfo:
        self.requests.append(("stat", uri))
        return super().stat(uri)

    def fetch(self, uri: str, offset: int | None = None, length: int | None = None, **options: Any) -> ObjectData:
        self.requests.append(("fetch", uri))
        return super().fetch(uri, offset, length, **options)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Results, Results]:
    """The same six runs on disk and in a store."""
    first = WrittenRun({str(number): "ok" if number % 7 else "failed" for number in range(60)})
    write_runs(tmp_path, [first, *(WrittenRun({str(n): "ok", f"n{n}": "ok"}, [str(n + 50)]) for n in range(5))])
    remote, storage = f"memory://{uuid.uuid4().hex}/out", Recording()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            storage.write(f"{remote}/{path.relative_to(tmp_path)}", path.read_bytes())
    return Results(str(tmp_path), Storage()), Results(remote, storage)


def test_the_results_are_those_of_local_tables(stored: tuple[Results, Results]) -> None:
    local, remote = stored
    with open_database(local) as here, open_database(remote) as there:
        for query in QUERIES:
            assert there.execute(query).fetchall() == here.execute(query).fetchall(), query


def test_only_the_runs_of_the_filter_are_read(stored: tuple[Results, Results]) -> None:
    _, remote = stored
    with open_database(remote) as database:
        remote.storage.requests.clear()  # type: ignore[attr-defined]
        assert database.execute("SELECT count(uri) FROM images WHERE run = '3'").fetchall() == [(2,)]
    # A small part is read at once.
    assert [
        (verb, uri.rpartition("/images/")[2])
        for verb, uri in remote.storage.requests  # type: ignore[attr-defined]
    ] == [("stat", "run=3/part-00000.parquet"), ("fetch", "run=3/part-00000.parquet")]


def test_threads_that_share_an_open_part_each_have_their_position(stored: tuple[Results, Results]) -> None:
    for results in stored:
        files = CommittedFiles(results)
        path = files.find("htc-parts://images/*")[0]
        part = files.open(path)
        whole = part.read(-1)
        part.seek(10)
        # DuckDB calls seek and read one after the other; another thread may come in between.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: (part.tell(), part.seek(100), part.read(7))).result() == (0, 100, whole[100:107])  # noqa: B023
        assert part.tell() == 10
        assert part.read(5) == whole[10:15]
        assert part.seek(-4, 1) == 11
        assert part.read(2) == whole[11:13]
        assert part.seek(-4, 2) == len(whole) - 4
        assert part.read(-1) == b"PAR1"
