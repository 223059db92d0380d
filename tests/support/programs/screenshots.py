"""The screenshots of README and docs, remade: `python -m tests.support.programs.screenshots`, or `make screenshots`.

Segments the bundled photos with the bundled model, writes a report, and photographs it and the web app in the browser.
Each entry of SHOTS makes some of the pictures; so one command remakes them all.
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.support.browser import BrowserPages, find_browser, start_browser
from tests.support.paths import PHOTOS, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "docs" / "screenshots"
PHONE = (390, 844)
# A page of the docs should load at once.
MAX_BYTES = 150_000


def htc(*words: str | Path, folder: Path) -> None:
    """Run one command of htc in a folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "jobs", *map(str, words)], cwd=folder, env=environment, check=True)


def save(page: "Page", name: str, *, full_page: bool = False) -> None:
    """Save what the page shows as a JPEG that keeps the limit."""
    with Image.open(io.BytesIO(page.screenshot(full_page=full_page))) as shot:
        picture = shot.convert("RGB")
    for quality in range(88, 40, -4):
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=quality, optimize=True, progressive=True)
        if sink.tell() <= MAX_BYTES:
            break
    (FOLDER / f"{name}.jpg").write_bytes(sink.getvalue())
    sys.stdout.write(f"{name}.jpg: {picture.width} x {picture.height}, {sink.tell() // 1000} kB\n")


def report(pages: BrowserPages, output: Path) -> None:
    """The report: its top, an image in the viewer, and the gallery on a phone."""
    htc("report", output.name, "--to", "report.html", folder=output.parent)
    path = output.parent / "report.html"
    page = pages.open(path, size=(1280, 1480))
    page.locator("#overview").wait_for()
    save(page, "report")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.locator("#cards button").filter(has_text="000000319492").click()
    page.locator(".viewer-canvas[data-loaded]").wait_for()
    page.get_by_label("A colour each").check()
    page.locator("canvas").focus()
    page.wait_for_timeout(300)
    save(page, "report-viewer")
    phone = pages.open(path, size=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    phone.locator("#gallery").scroll_into_view_if_needed()
    phone.evaluate("document.getElementById('cards').scrollIntoView()")
    phone.wait_for_timeout(200)
    save(phone, "report-phone")


def browse(pages: BrowserPages, output: Path) -> None:
    """The web app: the gallery, and two runs side by side, of which the second one finds what scores 0.9 and more."""
    from jobs.results.browse.access import Access
    from jobs.results.browse.app import build_app
    from jobs.results.browse.command import serving
    from jobs.results.browse.tables import Tables
    from pipeline.storage.storage import Storage

    folder = output.parent
    htc("run", "photos", output.name, "--fresh", "--run", "strict", "--score-threshold", "0.9", folder=folder)
    access = Access()
    with contextlib.chdir(folder):
        app, browser = build_app(Tables(output.name, Storage()), access)
        with contextlib.closing(browser), serving(app, 0) as served:
            page = pages.open(f"{served.address}/?run=demo&token={access.token}", size=(1280, 860))
            page.wait_for_load_state("networkidle")
            save(page, "browse")
            page.goto(f"{served.address}/compare?a=demo&b=strict")
            page.locator("td.name a").filter(has_text="000000319492").click()
            page.locator("#changes button").first.wait_for()
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(300)
            save(page, "browse-compare")
            phone = pages.open(
                f"{served.address}/?run=demo&token={access.token}",
                size=PHONE,
                device_scale_factor=2,
                is_mobile=True,
                has_touch=True,
            )
            phone.wait_for_load_state("networkidle")
            save(phone, "browse-phone")


SHOTS: tuple[Callable[[BrowserPages, Path], None], ...] = (report, browse)


def main() -> int:
    """Make the pictures; 1 where there is no browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="an output of the bundled photos; made anew without it")
    parser.add_argument("--only", choices=[shot.__name__ for shot in SHOTS], help="only these; all without it")
    arguments = parser.parse_args()
    given = arguments.output
    if find_browser() is None:
        sys.stderr.write("There is no browser: `python infra/get_browser.py` installs Debian's chromium, as root.\n")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    # A short name and always the same, because the pictures show it.
    place = Path(tempfile.gettempdir()) / "htc-screenshots"
    shutil.rmtree(place, ignore_errors=True)
    try:
        shutil.copytree(PHOTOS, place / "photos", ignore=shutil.ignore_patterns("*.md"))
        output = given.absolute() if given else place / "masks"
        if not given:
            htc("run", "photos", "masks", "--shard-images", "2", "--run", "demo", folder=place)
        with start_browser() as browser:
            pages = BrowserPages(browser)
            for shot in SHOTS:
                if arguments.only in {None, shot.__name__}:
                    shot(pages, output)
            pages.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for fault in pages.faults:
        sys.stderr.write(f"{fault}\n")
    return 1 if pages.faults else 0


if __name__ == "__main__":
    sys.exit(main())
