"""Panoptic quality as tables for a terminal, as CSV, and as a page."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from jobs.results.evaluation.page_parts import figure, page_table, whole_page
from jobs.results.evaluation.text import percent
from jobs.results.formats import QueryResult, write_answer
from jobs.results.panoptic_quality.pictures import Picture
from jobs.results.panoptic_quality.quality import Quality
from jobs.results.panoptic_quality.result import JudgedImage, PanopticEvaluation
from jobs.terminal.console import Alignment, write_line, write_table
from pipeline.text import count_of

COMPUTED = "in percent, as panopticapi computes it"
EXPLAINED = "SQ is the mean IoU of the segments that match, RQ the F1 of matching, of a category PQ = SQ x RQ."
_COUNTS = ("right", "wrong", "missed")
_HEADER = ("PQ", "SQ", "RQ")


def write_text(evaluation: PanopticEvaluation, *, per_category: bool) -> None:
    """Write the means, each category if it is wanted, and the worst images to stdout."""
    means = [(name, *_numbers(quality), f"{quality.categories:,}") for name, quality in evaluation.qualities.items()]
    right: list[Alignment] = ["right"] * 4
    write_table(["", *_HEADER, "categories"], means, alignments=["left", *right])
    write_line(
        f"Run {evaluation.run}: {count_of(evaluation.images, 'image')}, "
        f"{count_of(evaluation.segments, 'segment')}; {COMPUTED}. {EXPLAINED}"
    )
    if per_category:
        right = ["right"] * 6
        rows = list(_category_cells(evaluation))
        write_table(["category", "", *_HEADER, *_COUNTS], rows, alignments=["left", "left", *right])
    if evaluation.worst:
        worst = [(*_counts(image), image.uri) for image in evaluation.worst]
        right = ["right"] * 3
        write_table(["wrong", "missed", "right", "worst images"], worst, alignments=[*right, "left"])


def _numbers(quality: Quality) -> tuple[str, str, str]:
    return percent(quality.pq), percent(quality.sq), percent(quality.rq)


def _counts(image: JudgedImage) -> tuple[str, str, str]:
    return f"{image.counts.wrong:,}", f"{image.counts.missed:,}", f"{image.counts.right:,}"


def _category_cells(evaluation: PanopticEvaluation) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the categories that have a segment, in the truth or found."""
    for row in evaluation.category_rows():
        if row["PQ"] >= 0 or row["right"] + row["wrong"] + row["missed"]:
            numbers = (percent(row[name]) for name in _HEADER)
            counts = (f"{row[name]:,}" for name in _COUNTS)
            yield (row["name"], "thing" if row["is_thing"] else "stuff", *numbers, *counts)


def write_csv(evaluation: PanopticEvaluation, file: Path | None, *, per_category: bool) -> None:
    """Write a row for all, things and stuff, and with `per_category` for each category; numbers in [0, 1] or -1."""
    columns = [("kind", "VARCHAR"), ("category", "VARCHAR"), *((name, "DOUBLE") for name in _HEADER)]
    columns += [(name, "BIGINT") for name in ("categories", *_COUNTS)]
    write_answer(QueryResult(columns, _csv_rows(evaluation, per_category=per_category)), "csv", file)


def _csv_rows(evaluation: PanopticEvaluation, *, per_category: bool) -> Iterator[list[object]]:
    """Yield the rows; the category of the means is null, so that no category is called "all"."""
    rows = evaluation.category_rows()
    for kind, quality in evaluation.qualities.items():
        own = [row for row in rows if kind == "all" or row["is_thing"] == (kind == "things")]
        counts = [sum(row[name] for row in own) for name in _COUNTS]
        yield [kind, None, quality.pq, quality.sq, quality.rq, quality.categories, *counts]
    for row in rows if per_category else ():
        kind = "things" if row["is_thing"] else "stuff"
        yield [kind, row["name"], *(row[name] for name in _HEADER), int(row["PQ"] >= 0), *(row[n] for n in _COUNTS)]


def build_page(evaluation: PanopticEvaluation, pictures: Sequence[Picture]) -> str:
    """Return the page: the means, the categories, the worst images."""
    return whole_page(f"Panoptic quality of {evaluation.run}", "\n".join(_sections(evaluation, pictures)))


def _sections(evaluation: PanopticEvaluation, pictures: Sequence[Picture]) -> Iterator[str]:
    facts = {
        "Truth": evaluation.truth,
        "Images": f"{evaluation.images:,} scored, {len(evaluation.missing):,} annotated ones without a row in the run",
        "Segments": f"{evaluation.segments:,}",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in evaluation.notes)
    yield f"<dl>{listed}</dl>" + (f"<ul>{notes}</ul>" if notes else "")
    yield "<h2>Panoptic quality</h2>"
    means = [[name, *_numbers(quality), f"{quality.categories:,}"] for name, quality in evaluation.qualities.items()]
    caption = f"{COMPUTED.capitalize()}; a dash where there is no segment. {EXPLAINED}"
    yield page_table(caption, ["", "PQ", "SQ (mean IoU)", "RQ (F1)", "categories"], means)
    yield "<h2>Categories</h2>"
    rows = list(_category_cells(evaluation))
    yield page_table("Those with a segment, in the truth or found.", ["category", "", *_HEADER, *_COUNTS], rows,
                     texts={0, 1})  # fmt: skip
    yield "<h2>The worst images</h2>"
    if not pictures:
        yield "<p>None is drawn.</p>"
        return
    yield "<p>Those with most segments that are wrong or missed: left the truth, right the run.</p>"
    for picture in pictures:
        counts = picture.image.counts
        said = f"{picture.image.uri}: {counts.wrong:,} wrong, {counts.missed:,} missed, {counts.right:,} right"
        yield figure(picture.jpeg, said + (f"; {picture.problem}" if picture.problem else ""))
