"""Tables for notebooks: what objects of the Python door show of themselves."""

import html
from collections.abc import Iterable, Sequence


def html_table(heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; every cell is escaped."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def html_line(text: str) -> str:
    """Return a paragraph of a text, escaped."""
    return f"<p>{html.escape(text)}</p>"
