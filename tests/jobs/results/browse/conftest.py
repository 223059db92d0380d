"""Outputs to look at, and the app over them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from starlette.testclient import TestClient

from jobs.results.browse.access import Access
from jobs.results.browse.app import build_app
from jobs.results.browse.tables import Tables
from pipeline.storage.storage import Storage
from tests.support.builders.browsed_outputs import Found, write_photos, write_run

OpenApp = Callable[..., TestClient]
ADDRESS = "http://127.0.0.1:8484"


@pytest.fixture
def open_app() -> Iterator[OpenApp]:
    """Open an output in an app; the client is admitted unless `is_admitted` is False."""
    opened = []

    def open_output(
        output: Path | str, *, is_admitted: bool = True, storage: Storage | None = None, **limits: float
    ) -> TestClient:
        access = Access()
        app, browser = build_app(Tables(str(output), storage or Storage()), access, **limits)
        opened.append(browser)
        client = TestClient(app, base_url=ADDRESS, follow_redirects=False)
        if is_admitted:
            assert client.get(f"/?token={access.token}").status_code == 303
        return client

    yield open_output
    for browser in opened:
        browser.close()


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with the runs `monday` and `tuesday`: an instance moved, one has another class, one vanished."""
    folder = tmp_path_factory.mktemp("browsed")
    photos = write_photos(folder / "photos")
    write_run(photos, folder / "out", "monday")
    moved = (Found("person", 0.88, (16, 10, 30, 20)),)
    other_class = (Found("person", 0.9), Found("cat", 0.6, (40, 30, 30, 20)))
    write_run(photos, folder / "out", "tuesday", {"a plain one.png": moved, "z last.png": other_class})
    return folder / "out"
