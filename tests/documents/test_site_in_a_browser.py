"""The built site in a real browser: no error, no request to another host, readable on a phone and without eyes."""

from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from typing import Any

import pytest

from tests.support.browser import PHONE, BrowserPages, grave_faults, scrolls_sideways
from tests.support.servers.http_server import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(browser: object, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the built site; it is not built where there is no browser."""
    folder, built = request.getfixturevalue("built_site")
    assert built.returncode == 0, built.stderr

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, directory=str(folder), **keywords)

        def log_message(self, *arguments: Any) -> None: ...

    with serving(Handler) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index", "tutorial", "network", "comparison"])
def test_a_page_keeps_nobody_out(site: str, pages: BrowserPages, page: str, scheme: str) -> None:
    opened = pages.open(f"{site}/{page}.html", color_scheme=scheme)
    assert grave_faults(opened) == []


def test_a_phone_shows_a_page_without_scrolling_sideways(site: str, pages: BrowserPages) -> None:
    for page in ("tutorial", "network", "spec", "comparison"):
        assert not scrolls_sideways(pages.open(f"{site}/{page}.html", size=PHONE)), page


def test_drawings_follow_the_scheme_that_is_chosen_on_the_site(site: str, pages: BrowserPages) -> None:
    opened = pages.open(f"{site}/walk.html", color_scheme="light")
    paper = opened.locator("svg.hd .p")
    light = paper.evaluate("each => getComputedStyle(each).fill")
    # From the system's choice to light, and from light to dark.
    for _ in range(2):
        opened.locator("label[for^=__palette]:visible").first.click()
    assert opened.locator("body").get_attribute("data-md-color-scheme") == "slate"
    assert paper.evaluate("each => getComputedStyle(each).fill") != light


def test_the_search_finds_a_page(site: str, pages: BrowserPages) -> None:
    opened = pages.open(f"{site}/index.html")
    opened.locator("input[name=query]").fill("interleaved")
    opened.locator(".md-search-result__link").first.wait_for()
    assert "network.html" in str(opened.locator(".md-search-result__link").first.get_attribute("href"))
