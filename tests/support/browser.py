"""A real browser for tests: Debian's chromium (or Chrome), headless, driven by playwright.

A page may load nothing but the address it was opened with (for a file: that file alone; else its host and port), and
must log no error; both are checked when the test ends.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request

VARIABLE = "HTC_CHROMIUM"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# As root, and in containers that allow no namespaces, chromium starts without its sandbox only; it opens our own pages.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking")
DESKTOP, PHONE = (1280, 900), (375, 740)
# What axe-core calls the impacts that keep people out.
GRAVE = ("serious", "critical")


def find_browser() -> str | None:
    """The program named by $HTC_CHROMIUM, or the first that is on the PATH; None without one."""
    named = os.environ.get(VARIABLE)
    if named:
        return shutil.which(named)
    return next((found for program in PROGRAMS if (found := shutil.which(program))), None)


@contextlib.contextmanager
def start_browser() -> Iterator["Browser"]:
    """Start the browser; a test is skipped, with the reason, where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip(
            f"no browser here: `python infra/get_browser.py` installs chromium, as root; {VARIABLE} names another"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class BrowserPages:
    """Opens pages, each in a context of its own, and collects what goes wrong in them.

    faults: errors of the console, exceptions, and requests to other addresses. A test that expects one removes it.
    """

    browser: "Browser"
    faults: list[str] = field(default_factory=list)
    _contexts: list["BrowserContext"] = field(default_factory=list)

    def open(self, address: str | Path, *, size: tuple[int, int] = DESKTOP, **options: Any) -> "Page":
        """Open a file or an address; `size` is in CSS pixels, `options` are those of playwright's `new_context`."""
        target = address.absolute().as_uri() if isinstance(address, Path) else address
        context = self.browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(20_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self._check(request, target))
        page.goto(target)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"{kind}: {text}")

    def _check(self, request: "Request", target: str) -> None:
        url, own = urlsplit(request.url), urlsplit(target)
        if url.scheme in ("data", "blob", "about"):
            return
        is_own = url.path == own.path if own.scheme == "file" else url.netloc == own.netloc
        if url.scheme != own.scheme or not is_own:
            self.faults.append(f"request to another address: {request.url}")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One browser for a file of tests."""
    with start_browser() as started:
        yield started


@pytest.fixture
def pages(browser: "Browser") -> Iterator[BrowserPages]:
    """Opens pages; afterwards none of them may have logged an error or asked for another address."""
    opened = BrowserPages(browser)
    try:
        yield opened
    finally:
        opened.close()
    assert opened.faults == []


def grave_faults(page: "Page") -> list[str]:
    """The faults of a page that axe-core calls serious or critical: rule, and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:160]} ({' '.join(node.get('failureSummary', '').split())})"
        for each in found
        if each["impact"] in GRAVE
        for node in each["nodes"]
    ]


def scrolls_sideways(page: "Page") -> bool:
    """Whether the page is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
