"""The site: every page has its place, links lead somewhere, it is built without a warning and asks no other host."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*([^)\s]+)\)")


class _Loader(yaml.SafeLoader):
    """mkdocs.yml names Python functions, which are left alone here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
CONFIG: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)


def places(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [place for inner in (nav.values() if isinstance(nav, dict) else nav) for place in places(inner)]


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(page.relative_to(DOCS)) for page in PAGES}
    records = {page for page in pages if re.match(r"adr/\d", page)}
    assert sorted(pages - records) == sorted(places(CONFIG["nav"]))


def test_the_readme_links_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    leading = {"docs/index.md", "docs/table1_small.md"}  # the site's own first page; a part of training
    pages = {str(page.relative_to(ROOT)) for page in PAGES if not re.match(r"\d", page.name)} - leading
    assert sorted(page for page in pages if f"({page}" not in text) == []


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md"), ROOT / "infra" / "README.md"], ids=lambda page: page.name)
def test_anchors_lead_to_headings(page: Path) -> None:
    lost = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if anchor and "://" not in path:
            there = (page.parent / path) if path else page
            if there.suffix == ".md" and anchor not in anchors_of(there):
                lost.append(link)
    assert lost == []


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_begin_after_an_empty_line(page: Path) -> None:
    """Python-Markdown would make them a part of the paragraph; GitHub would not."""
    item = re.compile(r" *[-*+] ")
    found = []
    for part in _FENCE.sub("", page.read_text()).split("\n\n"):
        first, *others = part.strip("\n").splitlines() or [""]
        if not item.match(first) and not re.match(r" *\d+\. |  ", first):
            found += [line for line in others if item.match(line)]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_in_a_list_is_indented_by_four(page: Path) -> None:
    """Python-Markdown would end the list before it; GitHub takes both."""
    assert [line for line in re.findall(r"^ +```.*", page.read_text(), re.MULTILINE) if line.index("`") % 4] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_have_a_text_alternative(page: Path) -> None:
    assert re.findall(r"!\[\]\([^)]*\)", page.read_text()) == []


def load_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "infra" / "site" / "check_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(tmp_path: Path, body: str) -> list[str]:
    (tmp_path / "index.html").write_text(f"<!doctype html><html><body>{body}</body></html>")
    return list(load_check().check_site(tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        '<script src="https://unpkg.com/mermaid"></script>',
        '<img src="//cdn.example/a.png">',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css">',
        '<p style="background:url(https://example.org/a.png)">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<iframe src="http://example.org"></iframe>',
        '<svg><use href="https://example.org/a.svg#b"/></svg>',
        '<a href="gone.html">x</a>',
        '<a href="#nowhere">x</a>',
    ],
)
def test_what_a_browser_would_fetch_or_not_find_is_a_fault(tmp_path: Path, body: str) -> None:
    assert len(faults(tmp_path, body)) == 1


def test_links_for_people_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("p { background: url(data:image/png;base64,AA) }")
    body = (
        '<a href="https://arxiv.org">x</a><a href="#here">y</a><p id="here"><link rel="canonical" href="https://x.y/">'
    )
    assert faults(tmp_path, body) == []
    (tmp_path / "a.css").write_text("@font-face { src: url(https://fonts.example/a.woff2) }")
    assert len(faults(tmp_path, body)) == 1


def test_the_keys_of_the_spec_are_the_programs() -> None:
    """Otherwise: python infra/site/spec_page.py --write"""
    script = [sys.executable, str(ROOT / "infra" / "site" / "spec_page.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (DOCS / "spec.md").read_text()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(
    built_site: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    site, built = built_site
    assert (built.returncode, built.stdout) == (0, ""), built.stderr
    assert load_check().check_site(site) == []
    # Made from the program: a flag, a function, a key; and the drawings lie in the pages.
    assert "--max-error-rate" in (site / "reference" / "commands" / "run.html").read_text()
    assert "load_spec" in (site / "reference" / "python" / "htc_batch.html").read_text()
    assert "retry.image_timeout_s" in (site / "spec.html").read_text()
    assert 'aria-labelledby="network-title' in (site / "network.html").read_text()
    assert (site / "project" / "contributing.html").exists()
