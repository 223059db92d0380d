"""The documents agree with the repository: links lead somewhere, named files and names exist, tables are whole."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for top in ("docs", "infra", "tests") for page in (ROOT / top).rglob("*.md"))]
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
SPAN = re.compile(r"`([^`\n]+)`")
TOPS = "htc_batch|htc_model|pipeline|jobs|tests|benchmarks|infra|examples|docs"
# A path of the repository, also as an argument of a command; a pattern such as `tests/*.py` is none.
FILE = re.compile(rf"(?<![\w./*{{-])((?:{TOPS})/[\w./-]*[\w/])(?![\w.*{{<-])")
NAMED = re.compile(r"`((?:htc_batch|htc_model|pipeline|jobs)/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_files_exist(page: Path) -> None:
    named = [name for span in SPAN.findall(page.read_text()) for name in FILE.findall(span)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_file_in_a_command_is_named() -> None:
    assert FILE.findall("pytest tests/a.py -k x") == ["tests/a.py"]
    assert FILE.findall("tests/a-*.py") == FILE.findall("../tests/a.py") == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_are_in_the_files_that_are_named_with_them(page: Path) -> None:
    missing = []
    for path, words in NAMED.findall(page.read_text()):
        code = (ROOT / path).read_text()
        missing += [
            f"{path}: {word}"
            for word in re.findall(r"\w+", words)
            if not re.search(rf"^(class|def) {word}\b|^{word}\b.* = ", code, re.MULTILINE)
        ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_rows_of_tables_follow_a_heading(page: Path) -> None:
    lines = page.read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("|") and not lines[number - 1].strip()]
    assert [lines[number] for number in starts if not re.match(r"\|[-| :]+\|$", lines[number + 1])] == []


def test_tests_that_the_makefile_leaves_out_exist() -> None:
    named = re.findall(r"tests/[\w/.]+", (ROOT / "Makefile").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    decisions = sorted(page for page in folder.glob("*.md") if page.name != "README.md")
    assert [page.name for page in decisions if f"({page.name})" not in index] == []
    assert [page.name for page in decisions if not re.search(r"^Status: ", page.read_text(), re.MULTILINE)] == []
