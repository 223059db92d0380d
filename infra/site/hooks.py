"""What mkdocs does beside rendering docs/: adds generated pages, and leads links that leave docs/ somewhere.

mkdocs calls the functions named `on_...` (mkdocs.org, "Hooks"); `mkdocs.yml` names this file.
"""

import os
import re
from pathlib import Path, PurePosixPath

from command_pages import command_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from python_pages import python_pages

ROOT = Path(__file__).resolve().parents[2]
# Pages that lie outside docs/, by their place in the site.
OUTSIDE = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "examples/photos/SOURCES.md": "project/photos.md",
    "examples/training/labelme/SOURCES.md": "project/labelme.md",
    "infra/README.md": "project/infra.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*([^)\s]+)\)")
_FENCE = re.compile(r"^( *```.*?^ *```)", re.MULTILINE | re.DOTALL)
_DRAWING = re.compile(r'<p>\s*<img alt="[^"]*" src="(?:\.\./)*(drawings/[\w-]+\.svg)"\s*/?>\s*</p>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference and the repository's own pages, and their places in the navigation."""
    commands = command_pages()
    python = python_pages(ROOT)
    for place, text in {**commands, **python}.items():
        files.append(File.generated(config, place, content=text))
    for path, place in OUTSIDE.items():
        if path != "README.md":
            files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    reference = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    reference.append({"Commands": _nav(commands)})
    reference.append({"Python": _nav(python)})
    project = [
        {"Contributing": "project/contributing.md"},
        {"Changelog": "project/changelog.md"},
        {"Files for other machines": "project/infra.md"},
        {"Sources of the photos": "project/photos.md"},
        {"Sources of the labelme example": "project/labelme.md"},
    ]
    (config.nav or []).append({"Project": project})
    return files


def _nav(pages: dict[str, str]) -> list[dict[str, str]]:
    return [{text.partition("\n")[0].removeprefix("# ").strip("`"): place} for place, text in pages.items()]


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link that leaves docs/ to the page made of that file; a file without a page is named, not linked."""
    place = page.file.src_uri
    source = next((path for path, there in OUTSIDE.items() if there == place and path != "README.md"), f"docs/{place}")
    # Code stays as it is.
    pieces = _FENCE.split(markdown)
    return "".join(piece if piece.lstrip().startswith("```") else _led(piece, source, place) for piece in pieces)


def _led(text: str, source: str, place: str) -> str:
    def lead(link: re.Match[str]) -> str:
        mark, label, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"\w+:", target):
            return link[0]
        there = os.path.normpath(PurePosixPath(source).parent / path).replace(os.sep, "/")
        if there.startswith("docs/"):
            page_there = there.removeprefix("docs/")
        elif there in OUTSIDE:
            page_there = OUTSIDE[there]
        else:
            # A file or folder of the repository; the site does not hold it.
            name = label.strip("`")
            return f"{label} (`{there}`)" if name not in (there, f"{there}/") else f"`{name}`"
        relative = os.path.relpath(page_there, PurePosixPath(place).parent).replace(os.sep, "/")
        return f"{mark}[{label}]({relative}{'#' + anchor if anchor else ''})"

    return _LINK.sub(lead, text)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put drawings into the page itself, where they follow its light and dark scheme and their text is found."""

    def inline(image: re.Match[str]) -> str:
        svg = (Path(config.docs_dir) / image[1]).read_text(encoding="utf-8")
        return f'<div class="drawing">{svg[svg.index("<svg") :]}</div>'

    return _DRAWING.sub(inline, html)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Name the search for screen readers; the theme leaves its dialog without a name."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
