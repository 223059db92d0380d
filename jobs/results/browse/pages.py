"""The pages as HTML: templates that escape every value, and the words of numbers and names in them."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib import resources
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.responses import HTMLResponse, JSONResponse, Response

from jobs.results.drawing import short_names
from jobs.results.formats import json_value
from jobs.results.web import read_asset
from pipeline.text import count_of, printable

# Files of this package and of `jobs.results.web` that a page may ask for.
OWN_FILES = {"browse.css": "text/css", "browse.js": "text/javascript"}
SHARED_FILES = {
    "style.css": "text/css",
    "viewer.js": "text/javascript",
    "image_view.js": "text/javascript",
    "masks.js": "text/javascript",
}
MAX_CELL_CHARS = 200


class Pages:
    """Renders pages of one output."""

    def __init__(self, output_uri: str) -> None:
        """`output_uri`: what the pages are about."""
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("jobs.results.browse"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "number": _number,
            "score": _score,
            "file_name": file_name,
            "cell": cell_text,
            "query": urlencode,
        }
        self._templates.globals |= {"output": output_uri, "count_of": count_of, "names_of": _names_of}

    def render(self, template: str, status: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
        """Render a template, such as "gallery.html"."""
        return HTMLResponse(self._templates.get_template(template).render(**values), status)

    def problem(self, status: int, sentence: str, excerpt: str = "", *, back: str = "/") -> HTMLResponse:
        """Render what went wrong: one sentence, and an excerpt of SQL."""
        title = HTTPStatus(status).phrase
        return self.render("problem.html", status, title=title, sentence=sentence, excerpt=excerpt, back=back)

    def refusal(self, reason: str = "") -> HTMLResponse:
        """Render the page for a browser that may not read; it says nothing about the output."""
        return self.render("refusal.html", HTTPStatus.FORBIDDEN, reason=reason)


def static_file(name: str) -> Response | None:
    """Return a file of the program; None when there is none of this name."""
    if name in SHARED_FILES:
        return Response(read_asset(name), media_type=SHARED_FILES[name], headers={"Cache-Control": "no-cache"})
    if name in OWN_FILES:
        source = (resources.files("jobs.results.browse") / "static" / name).read_bytes()
        return Response(source, media_type=OWN_FILES[name], headers={"Cache-Control": "no-cache"})
    return None


def json_answer(value: Mapping[str, Any], status: int = HTTPStatus.OK) -> JSONResponse:
    """Return JSON whose numbers every browser reads exactly."""
    return JSONResponse(json_value(value, is_float32=True), status)


def file_name(uri: str) -> str:
    """Return the last part of an image's name, with a tar's member before its container."""
    last = uri.removeprefix("tar://").split("::")[0].rstrip("/")
    return printable(last.rsplit("/", 1)[-1] or uri)


def cell_text(value: object) -> str:
    """Return a value of an answer on one line, shortened."""
    if value is None:
        return "NULL"
    plain = json_value(value, is_float32=True)
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    shown = printable(text[: MAX_CELL_CHARS + 1])
    return shown if len(text) <= MAX_CELL_CHARS else f"{shown[:MAX_CELL_CHARS]}…"


def _names_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return short names by URI, of which no two of a page are alike."""
    uris = [str(row["uri"]) for row in rows]
    return {uri: printable(name) for uri, name in zip(uris, short_names(uris), strict=True)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
