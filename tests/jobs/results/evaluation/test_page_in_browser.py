"""The page of `htc evaluate` in a real browser: nothing is asked for, names stay names, phones and readers can read."""

from pathlib import Path

import pytest

from tests.jobs.results.evaluation.test_page import HOSTILE, hostile_run
from tests.support.browser import PHONE, BrowserPages, browser, grave_faults, pages
from tests.support.htc import run_htc

__all__ = ["browser", "pages"]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_the_page_in_a_browser(pages: BrowserPages, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = hostile_run(tmp_path)
    folder = tmp_path / "to"
    assert run_htc(capsys, "evaluate", judged.uri, str(judged.truth), "--to", str(folder), "--worst", "2")[0] == 0
    for size in ((1280, 900), PHONE):
        page = pages.open(folder / "evaluation.html", size=size)
        assert HOSTILE in page.inner_text("main")
        assert page.locator("script").count() == 0
        loaded = page.eval_on_selector_all("img", "each => each.map(one => one.complete && one.naturalWidth > 0)")
        assert loaded == [True] * 5
        # Wide tables scroll by themselves, not the page.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert grave_faults(page) == []
