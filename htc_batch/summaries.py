"""What a Results object shows of itself, as text and in notebooks."""

import html
from typing import TYPE_CHECKING

from jobs.terminal.html_table import html_line, html_table
from pipeline.errors import HtcError
from pipeline.output.run_record import began
from pipeline.text import count_of

if TYPE_CHECKING:
    from htc_batch.results import Results

SHOWN_RUNS = 10
SHOWN_CATEGORIES = 10
_OUTCOMES = "SELECT run, status, count(*) AS images, sum(instances) AS instances FROM images GROUP BY ALL"
_CATEGORIES = """
SELECT category, count(*) AS instances, avg(score) AS score FROM current_instances
GROUP BY category ORDER BY instances DESC, category
"""


def text_of(results: "Results") -> str:
    """Return one line: the folder, its runs, the newest one's images."""
    newest = results.newest_run()
    images = next(record.image_count for record in results.records if record.run == newest)
    runs = count_of(len(results.runs()), "run")
    return f"<Results: {results.output_uri}, {runs}; the newest is {newest} of {count_of(images, 'image')}>"


def html_of(results: "Results") -> str:
    """Return the newest runs with the outcomes of their images, and the most frequent categories, as tables.

    Of an output that cannot be read, it says why.
    """
    title = f"<p><b>{html.escape(results.output_uri)}</b>: {count_of(len(results.runs()), 'run')}</p>"
    try:
        outcomes = results.ask(_OUTCOMES).to_pylist()
        categories = results.ask(_CATEGORIES).to_pylist()
    except HtcError as error:
        return title + html_line(str(error))
    rows = []
    for record in results.records[: -SHOWN_RUNS - 1 : -1]:
        found = [row for row in outcomes if row["run"] == record.run]
        failed = sum(row["images"] for row in found if row["status"] != "ok")
        done = sum(row["images"] for row in found)
        instances = sum(row["instances"] or 0 for row in found)
        numbers = [f"{done:,} of {record.image_count:,}", f"{failed:,}", f"{instances:,}"]
        rows.append([record.run, f"{began(record):%Y-%m-%d %H:%M} UTC", record.model_name, *numbers])
    older = len(results.records) - SHOWN_RUNS
    parts = [title, html_table(["run", "began", "model", "images", "not ok", "instances"], rows)]
    if older > 0:
        parts.append(f"<p>and {count_of(older, 'older run')}</p>")
    shown = [[row["category"], f"{row['instances']:,}", f"{row['score']:.3f}"] for row in categories[:SHOWN_CATEGORIES]]
    if shown:
        parts.append(html_table(["category", "instances", "mean score"], shown))
    if len(categories) > SHOWN_CATEGORIES:
        parts.append(f"<p>and {len(categories) - SHOWN_CATEGORIES} more categories</p>")
    return "".join(parts)
