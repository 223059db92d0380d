"""Check a built site: no page asks another host for anything, and every link inside leads somewhere.

    python infra/site/check_site.py build/site

Links to other sites are for people to follow; what a browser fetches by itself must be in the folder.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# By tag, the attributes whose URL a browser fetches without being asked. `link` depends on what it links.
FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
# Names an address, fetches nothing.
_NAMING_LINKS = {"canonical", "next", "prev", "alternate", "license"}
_ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self._in_style = tag == "style"
        self.fetched += [values[name] for name in FETCHED.get(tag, ()) if name in values]
        self.fetched += _CSS_URL.findall(values.get("style", ""))
        if tag == "link" and not set(values.get("rel", "").lower().split()) & _NAMING_LINKS:
            self.fetched.append(values.get("href", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += _CSS_URL.findall(data)


def check_site(site: Path) -> list[str]:
    """Return what is wrong, one sentence each; nothing when all is well.

    Args:
        site: the folder with index.html.
    """
    pages = {}
    for file in sorted(site.rglob("*.html")):
        pages[file] = page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
    faults = [
        f"{file.relative_to(site)} fetches {url}"
        for file, page in pages.items()
        for url in page.fetched
        if _ELSEWHERE.match(url.strip())
    ]
    for file in sorted(site.rglob("*.css")):
        urls = _CSS_URL.findall(file.read_text(encoding="utf-8"))
        faults += [f"{file.relative_to(site)} fetches {url}" for url in urls]
    for file, page in pages.items():
        # The page for wrong addresses has absolute links, for a server.
        if file.name != "404.html":
            faults += [
                f"{file.relative_to(site)} links to {link}, which is not there"
                for link in [*page.links, *page.fetched]
                if not _leads_somewhere(link, file, pages)
            ]
    return faults


def _leads_somewhere(link: str, file: Path, pages: dict[Path, _Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file.resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return False
    page = pages.get(target)
    return not parts.fragment or page is None or unquote(parts.fragment) in page.anchors


if __name__ == "__main__":
    found = check_site(Path(sys.argv[1]).resolve())
    sys.stderr.writelines(f"{fault}\n" for fault in found)
    sys.stdout.write(f"{len(list(Path(sys.argv[1]).rglob('*.html')))} pages, {len(found)} faults\n")
    sys.exit(bool(found))
