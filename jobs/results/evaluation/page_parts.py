"""Parts of the pages of `htc evaluate`: the frame, tables, pictures; no script, no request to anywhere."""

import base64
from collections.abc import Sequence
from html import escape

# Nothing is loaded from anywhere: pictures are in the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #c9c9c9; --soft: #5a5a5a; --bar: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --paper: #161616; --line: #4a4a4a; --soft: #b5b5b5; --bar: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, li { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; } .text { text-align: left; overflow-wrap: normal; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); }
img { max-width: 100%; height: auto; } .plot { background: #fff; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dd { margin: 0; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""


def whole_page(title: str, body: str) -> str:
    """Return a page with a title; the body is HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def figure(jpeg: bytes, caption: str) -> str:
    """Return a picture with a caption, in the page itself."""
    data = base64.b64encode(jpeg).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def page_table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: set[int] | None = None
) -> str:
    """Return a table; the first column names its rows, and those of `texts` are text."""
    texts = texts or {0}

    def attributes(column: int) -> str:
        return ' class="text"' if column in texts else ""

    head = "".join(f'<th scope="col"{attributes(place)}>{escape(text)}</th>' for place, text in enumerate(header))
    lines = []
    for row in rows:
        first = f'<th scope="row"{attributes(0)}>{escape(row[0])}</th>'
        rest = "".join(f"<td{attributes(place)}>{escape(text)}</td>" for place, text in enumerate(row) if place)
        lines.append(f"<tr>{first}{rest}</tr>")
    # A region that scrolls can be reached with the keyboard.
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
