"""The page of `htc report` in a real browser: nothing fails, filters filter, masks switch, and names stay text."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.results.report import ReportRequest, write_report
from tests.support.browser import PHONE, BrowserPages, grave_faults, scrolls_sideways
from tests.support.builders.reported_runs import CHANGED, GONE, HOSTILE_CATEGORY, HOSTILE_ERROR, OK, make_reported_run

IS_WRITTEN_ON = """canvas => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  done(data.some((value, place) => place % 4 === 0 && value < 60 && data[place + 3] === 255));
})))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("report")
    made = make_reported_run(folder)
    path = folder / "report.html"
    write_report(made.uri, ReportRequest(path))
    return path


def shown(page: object) -> list[str]:
    """The names of the cards that are shown."""
    return page.locator("#cards li:visible .name").all_inner_texts()  # type: ignore[attr-defined]


def test_names_with_html_stay_text(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    assert OK in shown(page)
    assert HOSTILE_CATEGORY in page.locator("#instances").inner_text()
    assert HOSTILE_ERROR.split("\u2028", maxsplit=1)[0].strip() in page.locator("#failures").inner_text()
    page.locator("#cards button").filter(has_text="onerror").first.click()
    assert page.locator(".viewer-title").inner_text() == OK
    assert HOSTILE_CATEGORY in page.locator(".viewer-instances").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_filters(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    assert len(shown(page)) == 6
    page.get_by_label("Category", exact=True).select_option(HOSTILE_CATEGORY)
    assert shown(page) == [OK]
    assert page.locator("#gallery-status").inner_text() == "1 of 6 images"
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Status", exact=True).select_option("unreadable")
    assert shown(page) == ["broken.jpg"]
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Best score at least").fill("0.95")
    assert len(shown(page)) == 5
    page.get_by_label("Category", exact=True).select_option("dog")
    assert shown(page) == []
    assert page.get_by_text("No image matches these filters.").is_visible()
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Name contains").fill("SECOND")
    assert shown(page) == ["second.jpg"]


def test_a_mask_is_switched_off_and_on(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    page.locator("#cards button").filter(has_text="third.jpg").click()
    canvas = page.locator(".viewer-canvas[data-loaded]")
    canvas.wait_for()
    picture = "canvas => new Promise(done => setTimeout(() => done(canvas.toDataURL()), 60))"
    before = canvas.evaluate(picture)
    # Below the score of 0.3, an instance is not in the list.
    assert page.locator(".viewer-instances li:visible").count() == 2
    assert page.locator(".viewer-count").inner_text() == "2 of 3 instances"
    page.get_by_role("checkbox", name="person 0.95").uncheck()
    without = canvas.evaluate(picture)
    assert without != before
    assert page.locator(".viewer [role=status]").inner_text() == "person 1: mask hidden"
    page.get_by_role("checkbox", name="person 0.95").check()
    page.locator("canvas").focus()
    page.mouse.move(0, 0)
    assert canvas.evaluate(picture) == before
    page.get_by_role("button", name="Zoom in (+)").click()
    assert canvas.evaluate(picture) != before


def test_images_that_are_gone_or_changed_have_a_grey_tile_and_no_mask(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    for name, reason in ((GONE, "does not exist"), (CHANGED, "changed since the run")):
        card = page.locator("#cards li").filter(has_text=name)
        assert card.locator("img").count() == 0
        assert reason in card.locator(".no-picture").inner_text()
        card.locator("button").click()
        assert reason in page.locator(".viewer-note").inner_text()
        # The reason is also written on the grey area.
        assert page.locator(".viewer-canvas").evaluate(IS_WRITTEN_ON)
        item = json.loads(page.locator(f"#{card.get_attribute('data-item')}").text_content() or "")
        assert item["image"] is None
        assert [each["mask"] for each in item["instances"]] == [None] * 3
        page.keyboard.press("Escape")


def test_a_damaged_mask_is_named(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    page.locator("#cards button").filter(has_text="second.jpg").click()
    page.locator(".viewer-canvas[data-loaded]").wait_for()
    assert "run lengths cannot be read" in page.locator(".viewer-problem").inner_text()


def test_everything_by_keyboard(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#filter-name").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    names = page.locator("#cards .name").all_inner_texts()
    focused = "document.activeElement.querySelector('.name')?.textContent"
    assert page.evaluate(focused) == names[0]
    # One stop for the whole list.
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == names[1]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("End")
    assert page.evaluate(focused) == names[-1]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator(".viewer-title").inner_text() == names[0]
    page.keyboard.press("ArrowRight")
    assert page.locator(".viewer-title").inner_text() == names[1]
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    # Focus is where the viewer was left.
    assert page.evaluate(focused) == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_grave_fault_for_people_at_phone_width(pages: BrowserPages, report: Path, scheme: str) -> None:
    page = pages.open(report, size=PHONE, color_scheme=scheme, reduced_motion="reduce")
    assert not scrolls_sideways(page)
    for details in page.locator("summary").all():
        details.click()
    assert not scrolls_sideways(page)
    assert grave_faults(page) == []
    page.locator("#cards button").first.click()
    assert not scrolls_sideways(page)
    assert grave_faults(page) == []


def test_a_desktop_page_prints_without_its_controls(pages: BrowserPages, report: Path) -> None:
    page = pages.open(report)
    assert grave_faults(page) == []
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("#cards img").first.is_visible()
    assert len(page.pdf(format="A4")) > 10_000
