"""`htc browse` in a real browser."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from jobs.results.browse.access import Access
from jobs.results.browse.app import build_app
from jobs.results.browse.command import serving
from jobs.results.browse.tables import Tables
from pipeline.storage.storage import Storage
from tests.support.browser import PHONE, BrowserPages, browser, grave_faults, pages, scrolls_sideways
from tests.support.builders.browsed_outputs import PLAIN, SCRIPT_NAME, Found, write_photos, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "pages"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@dataclass(frozen=True)
class Server:
    """A server over an output. address: without a slash at its end. token: of its address."""

    address: str
    token: str
    photos: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    photos = write_photos(folder / "photos")
    write_run(photos, folder / "out", "monday")
    changed = {"a plain one.png": (Found("person", 0.88, (16, 10, 30, 20)), Found("dog", 0.8, is_damaged=True))}
    write_run(photos, folder / "out", "tuesday", changed)
    write_run(photos, folder / "out", "sunday", {SCRIPT_NAME: PLAIN[:1]})
    Image.new("RGB", (80, 60), (255, 0, 0)).save(photos / "z last.png")
    access = Access()
    app, state = build_app(Tables(str(folder / "out"), Storage()), access)
    with serving(app, 0) as served:
        yield Server(served.address, access.token, photos)
    state.close()


def admitted(pages: BrowserPages, server: Server, path: str = "/", **options: object) -> "Page":
    """Open a page in a browser that was there before."""
    joint = "&" if "?" in path else "?"
    return pages.open(f"{server.address}{path}{joint}token={server.token}", **options)  # type: ignore[arg-type]


def is_coloured(page: "Page", selector: str) -> bool:
    """Whether a tenth of a canvas is not grey; the edges of letters have colours, too."""
    return bool(
        page.eval_on_selector(
            selector,
            """canvas => {
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                let coloured = 0;
                for (let at = 0; at < data.length; at += 4)
                    coloured += Math.max(data[at], data[at + 1], data[at + 2]) -
                        Math.min(data[at], data[at + 1], data[at + 2]) > 40;
                return coloured > canvas.width * canvas.height / 10;
            }""",
        )
    )


def wait_until(page: "Page", is_so: Callable[[], bool]) -> None:
    """Wait for what a page draws in its own time; on a busy machine that is not the next frame."""
    for _ in range(200):
        if is_so():
            return
        page.wait_for_timeout(50)
    raise AssertionError("the page did not draw it within ten seconds")


def picture_of(page: "Page") -> str:
    return str(page.eval_on_selector("canvas", "canvas => canvas.toDataURL()"))


def test_a_browser_without_the_token_gets_a_page_that_says_what_to_do(pages: BrowserPages, server: Server) -> None:
    page = pages.open(server.address)
    assert "not admitted" in page.inner_text("h1")
    assert "htc browse" in page.inner_text("main")
    assert grave_faults(page) == []
    # The browser reports the 403 itself.
    pages.faults.clear()


def test_a_search_by_form_and_by_keys(pages: BrowserPages, server: Server) -> None:
    page = admitted(pages, server, "/?run=monday")
    assert "token" not in page.url
    page.wait_for_selector('input[name="category"]')
    assert page.inner_text("#images") == "5 images"
    assert page.locator(".cards li").count() == 5
    # Not `check`, which looks at the box afterwards, when the next page is there.
    page.click('input[type="checkbox"][value="unreadable"]')
    page.wait_for_url(re.compile("status=unreadable"))
    assert page.locator(".cards li").count() == 1
    page.go_back()
    page.fill('input[name="min_score"]', "0.85")
    page.fill("#name", "PLAIN")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("min_score=0.85"))
    # Fields that say nothing are not in the address.
    assert "max_area" not in page.url
    assert page.locator(".cards .name").all_inner_texts() == ["a plain one.png"]
    page.goto(f"{server.address}/?run=monday")
    page.focus(".cards a")
    page.keyboard.press("End")
    assert "z last.png" in page.evaluate("document.activeElement.innerText")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("canvas[data-loaded]")
    assert SCRIPT_NAME in page.inner_text("h2")
    assert page.evaluate("typeof window.alerted") == "undefined"


def test_a_mask_is_switched_and_the_address_keeps_it(pages: BrowserPages, server: Server) -> None:
    uri = f"{server.photos}/a plain one.png"
    page = admitted(pages, server, f"/image?run=monday&uri={uri}")
    page.wait_for_selector("canvas[data-loaded]")
    page.wait_for_timeout(100)
    whole = picture_of(page)
    page.locator(".viewer-instances input").nth(0).uncheck()
    page.wait_for_url(re.compile("off=0"))
    wait_until(page, lambda: picture_of(page) != whole)
    page.reload()
    page.wait_for_selector("canvas[data-loaded]")
    assert not page.locator(".viewer-instances input").nth(0).is_checked()
    page.focus("canvas")
    before = picture_of(page)
    page.keyboard.press("+")
    wait_until(page, lambda: picture_of(page) != before)
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("broken.png"))
    page.keyboard.press("Escape")
    page.wait_for_url(re.compile(r"/\?run=monday"))


def test_the_mask_and_the_link_are_copied(pages: BrowserPages, server: Server) -> None:
    uri = f"{server.photos}/a plain one.png"
    permissions = ["clipboard-read", "clipboard-write"]
    page = admitted(pages, server, f"/image?run=monday&uri={uri}", permissions=permissions)
    page.wait_for_selector("canvas[data-loaded]")
    page.locator(".viewer-instances button").nth(0).click()
    assert '"size":[60,80]' in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("button", name="Copy link").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url
    assert "token" not in copied


def test_an_image_that_has_changed_is_grey_and_a_damaged_mask_is_named(pages: BrowserPages, server: Server) -> None:
    page = admitted(pages, server, f"/image?run=tuesday&uri={server.photos}/z last.png")
    page.wait_for_selector(".viewer-note:not([hidden])")
    assert "changed since the run" in page.inner_text(".viewer-note")
    page.wait_for_timeout(200)
    assert not is_coloured(page, "canvas")
    page.goto(f"{server.address}/image?run=tuesday&uri={server.photos}/a plain one.png")
    page.wait_for_selector("canvas[data-loaded]")
    assert "cannot be read" in page.inner_text(".viewer-problem")
    wait_until(page, lambda: is_coloured(page, "canvas"))


def test_sql_answers_and_is_cancelled(pages: BrowserPages, server: Server) -> None:
    page = admitted(pages, server, "/sql")
    page.fill("#sql", "SELECT uri, run FROM images WHERE status = 'ok'")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#answer table")
    assert page.locator("#answer tbody tr").count() == 12
    assert "sql=SELECT" in page.url
    page.fill("#sql", "SELECT nope")
    page.click("text=Ask")
    page.wait_for_selector("#answer .is-bad")
    assert "nope" in page.inner_text("#answer")
    page.fill("#sql", "SELECT count(*) FROM range(10000000000) AS a, range(10000000000) AS b")
    page.click("text=Ask")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()


def test_two_runs_are_compared_side_by_side(pages: BrowserPages, server: Server) -> None:
    page = admitted(pages, server, "/compare?a=monday&b=sunday")
    page.get_by_role("button", name="Compare the whole runs").click()
    page.wait_for_selector("#whole .tiles")
    page.locator("td.name a").first.click()
    for side in range(2):
        page.locator(".side-view").nth(side).locator("canvas[data-loaded]").wait_for()
    page.wait_for_selector("#changes button")
    assert page.inner_text("#changes tbody td") == "vanished"
    page.focus("#changes button")
    before = picture_of(page)
    page.uncheck("[data-only-changed]")
    wait_until(page, lambda: picture_of(page) != before)
    assert grave_faults(page) == []


def test_a_damaged_mask_keeps_nothing_else_from_being_seen(pages: BrowserPages, server: Server) -> None:
    page = admitted(pages, server, "/compare?a=monday&b=tuesday")
    assert "is damaged" in page.inner_text("main")
    page.get_by_role("button", name="Compare the whole runs").click()
    page.wait_for_selector("#whole .is-bad")
    page.locator("td.name a", has_text="a plain one.png").click()
    for side in range(2):
        page.locator(".side-view").nth(side).locator("canvas[data-loaded]").wait_for()
    page.wait_for_selector("#changes .is-warn")


PATHS = (
    "/",
    "/image?uri={uri}",
    "/failures",
    "/compare?all=1",
    "/sql?sql=SELECT+uri,+run,+score+FROM+instances",
    "/runs",
    "/run",
)


@pytest.mark.parametrize("size", [(1280, 900), PHONE], ids=["desktop", "phone"])
def test_no_page_keeps_people_out_or_scrolls_sideways(
    pages: BrowserPages, server: Server, size: tuple[int, int]
) -> None:
    page = admitted(pages, server, size=size)
    for path in PATHS:
        page.goto(server.address + path.format(uri=f"{server.photos}/a plain one.png"))
        page.wait_for_load_state("networkidle")
        # Other pages differ between the two in their width only.
        if size != PHONE or path in PATHS[:2]:
            assert grave_faults(page) == [], path
        assert not scrolls_sideways(page), path


def test_without_scripts_the_pages_still_answer(pages: BrowserPages, server: Server) -> None:
    page = admitted(pages, server, "/?run=monday", java_script_enabled=False)
    assert page.locator(".cards li").count() == 5
    page.goto(f"{server.address}/sql?sql=SELECT+42&answer=page")
    assert "42" in page.inner_text("#answer")
    page.goto(f"{server.address}/image?run=monday&uri={server.photos}/a plain one.png")
    assert page.locator("img.drawn").count() == 1
