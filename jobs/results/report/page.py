"""The page of a report: its texts and charts, put into the template."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from jobs.results.drawing import colour_of
from jobs.results.report import charts
from jobs.results.report.counts import LARGE_SIDE, MAX_CATEGORIES, SCORE_BINS, SIDE_EDGES, SMALL_SIDE, RunCounts
from jobs.results.report.drift import DriftSection
from jobs.results.report.evaluation import EvaluationSection
from jobs.results.report.pictures import MAX_INSTANCES, GalleryImage
from jobs.results.report.sample import Sample
from jobs.results.report.speed import Throughput
from jobs.results.status import RunStatus
from jobs.results.web import content_policy, joined_scripts, read_asset, script_json, style_sheet
from pipeline.output.run_record import RunRecord
from pipeline.redaction import redact
from pipeline.runs.bottleneck import IN_WORDS, shares_of
from pipeline.runs.outcomes import in_words
from pipeline.text import count_of, format_duration, printable

TEMPLATE, SCRIPT = "report.html", "report.js"
SHOWN_CATEGORIES = 25
_KINDS = {"complete": "good", "running": "plain", "over_error_budget": "bad"}
_START_UP = {
    "imports": "program loaded",
    "weights": "weights found",
    "listing": "first images listed",
    "ray": "Ray started",
    "worker": "first worker ready",
    "shard": "first shard committed",
}


@dataclass(frozen=True)
class PageContent:
    """What a report says.

    summary: of the last session, empty before one has ended. throughput: or why it is not known. evaluation: None
    without annotations. drift: None without other runs. min_score: from which instances are drawn at first; None for
    the best few.
    """

    output: str
    record: RunRecord
    status: RunStatus
    summary: Mapping[str, Any]
    counts: RunCounts
    throughput: Throughput | str
    evaluation: EvaluationSection | None
    drift: DriftSection | None
    sample: Sample
    gallery: Sequence[GalleryImage]
    min_score: float | None


@dataclass(frozen=True)
class Tile:
    """A number with its name, and what it means."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class BarRow:
    """A row of a table with a bar: name, numbers, the bar's picture, and the colour that pictures have for it."""

    name: str
    cells: tuple[str, ...]
    bar: Markup
    examples: tuple[str, ...] = ()
    swatch: Markup | None = None


@dataclass(frozen=True)
class Chart:
    """A chart, and its numbers as rows of text."""

    title: str
    picture: Markup
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def render_page(content: PageContent, *, now: datetime | None = None) -> str:
    """Return the page as HTML, whole in itself; all text from outside is escaped."""
    environment = Environment(
        loader=FunctionLoader(lambda name: read_asset(name).decode()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = style_sheet(), joined_scripts(SCRIPT)
    status, counts = content.status, content.counts
    return environment.get_template(TEMPLATE).render(
        policy=content_policy(scripts=[script], styles=[style]),
        style=style,
        script=script,
        run=status.run,
        output=printable(content.output),
        state=in_words(status.state),
        state_kind=_KINDS.get(status.state, "warn"),
        notices=_notices(content),
        tiles=_tiles(content),
        facts=_facts(content),
        spec=redact(yaml.safe_dump(content.record.spec, sort_keys=False, allow_unicode=True)),
        versions=sorted(content.record.versions.items()),
        throughput=_throughput(content),
        bottleneck=_sentence_of(status.bottleneck),
        worker_time=_worker_time(status.worker_time_s),
        start_up=_start_up(content.summary.get("start_up_s")),
        failures=_failures(counts),
        failed=counts.images - counts.statuses.get("ok", 0),
        has_more_reasons=counts.has_more_reasons,
        categories=_categories(counts),
        shown_categories=SHOWN_CATEGORIES,
        category_count=len(counts.categories),
        scores=_scores(counts),
        sides=_sides(counts),
        evaluation=content.evaluation,
        drift=content.drift,
        gallery=content.gallery,
        items=[script_json(image.item) for image in content.gallery],
        score_texts=[script_json(dict(image.scores)) for image in content.gallery],
        sample=content.sample.sentence,
        filter_categories=_filter_categories(content.gallery),
        filter_statuses=sorted({image.status for image in content.gallery}),
        min_score=content.min_score or 0.0,
        drawn=_drawn_sentence(content.min_score),
        version=metadata.version("htc-batch"),
        written=_moment((now or datetime.now(UTC)).isoformat()),
    )


def _notices(content: PageContent) -> list[tuple[str, str]]:
    """Return (kind, sentence) of what the reader must know first."""
    status = content.status
    notices = []
    done = f"{content.counts.images:,} of {status.images:,} images"
    if status.state == "running":
        words = "so far listed; " if status.is_listing else ""
        notices.append(
            ("plain", f"This run is in progress. The report shows the {done} {words}whose rows were committed by then.")
        )
    elif status.state != "complete":
        notices.append((_KINDS.get(status.state, "warn"), status.reason or f"The run is {in_words(status.state)}."))
    if not content.counts.images and status.state != "running":
        notices.append(("warn", "No image of this run has its row yet: there is nothing to show below."))
    if not content.record.fingerprint.get("trained", True):
        notices.append(("warn", "The model's weights are untrained: what it found means nothing."))
    return [(kind, printable(sentence)) for kind, sentence in notices]


def _tiles(content: PageContent) -> list[Tile]:
    status, counts, summary = content.status, content.counts, content.summary
    failed = counts.images - counts.statuses.get("ok", 0)
    ok = counts.statuses.get("ok", 0)
    all_images = f"{status.images:,}" + ("+" if status.is_listing else "")
    tiles = [
        Tile("Images", f"{counts.images:,}", "all listed" if counts.images == status.images else f"of {all_images}"),
        Tile("Not ok", f"{failed:,}", _percent(failed, counts.images)),
        Tile("Instances", f"{counts.instances:,}", f"{counts.instances / ok:.1f} per image that is ok" if ok else ""),
        Tile(
            "Confident",
            f"{counts.confident:,}",
            f"{_percent(counts.confident, counts.instances)} score 0.5 or more",
        ),
    ]
    if status.images_per_s:
        note = "in the last minute" if status.state == "running" else "start included"
        tiles.append(Tile("Speed", charts.number(status.images_per_s), f"images per second, {note}"))
    if summary.get("seconds"):
        tiles.append(Tile("Last session", format_duration(summary["seconds"]), _session_note(summary)))
    cost = summary.get("cost") or {}
    if cost.get("amount") is not None:
        tiles.append(Tile("Cost", f"{cost['amount']:,.2f} {cost.get('currency') or ''}".strip(), "all sessions"))
    elif cost.get("worker_hours"):
        tiles.append(Tile("Workers' time", format_duration(3600 * cost["worker_hours"]), "all sessions"))
    return tiles


def _session_note(summary: Mapping[str, Any]) -> str:
    return f"{count_of(int(summary.get('session_images') or 0), 'image')} in it"


def _facts(content: PageContent) -> list[tuple[str, str]]:
    record, status, summary = content.record, content.status, content.summary
    fingerprint = record.fingerprint
    digest = str(fingerprint.get("weights_sha256") or "")
    weights = str((record.spec.get("model") or {}).get("weights") or "")
    facts = [
        ("Model", record.model_name),
        ("Network", network if (network := str(fingerprint.get("preset") or "")) != record.model_name else ""),
        ("Weights", f"{weights} (SHA-256 {digest[:16]}…)" if digest else weights),
        ("Input", str((record.spec.get("input") or {}).get("uri") or "")),
        ("Output", content.output),
        ("Begun", _moment(record.created)),
        ("Ended", _moment(summary.get("ended")) if status.state != "running" else ""),
        ("Workers", _workers(summary)),
        ("Machine", str(summary.get("machine") or "")),
        ("Device", " · ".join(filter(None, [summary.get("device"), summary.get("precision")]))),
        ("Shards", f"{status.shards:,}"),
        ("Mode", str((record.spec.get("select") or {}).get("mode") or "")),
        ("Image sizes", _dimensions(content.counts)),
        ("Cost", _cost(summary.get("cost") or {})),
        ("Deadline", _moment(summary.get("deadline")) + (", missed" if summary.get("is_late") else "")),
        ("Notifications", "; ".join(f"{name}: {how}" for name, how in (summary.get("notifications") or {}).items())),
    ]
    return [(name, printable(redact(value))) for name, value in facts if value]


def _workers(summary: Mapping[str, Any]) -> str:
    started = summary.get("workers_started")
    if not started:
        return ""
    words = f"{started} started"
    if summary.get("workers_lost"):
        words += f", {summary['workers_lost']} lost"
    return f"{words}; {count_of(int(summary.get('retries') or 0), 'attempt')} repeated"


def _cost(cost: Mapping[str, Any]) -> str:
    if not cost.get("worker_hours"):
        return ""
    hours = cost["worker_hours"]
    words = f"{charts.number(hours)} worker-hours" if hours >= 0.1 else f"{3600 * hours:.0f} worker-seconds"
    if cost.get("amount") is None:
        return f"{words}; no price was given (budget.price_per_hour)"
    return f"{cost['amount']:,.2f} {cost.get('currency') or ''} for {words}".replace("  ", " ")


def _dimensions(counts: RunCounts) -> str:
    if counts.dimensions is None:
        return ""
    least_width, least_height, width, height, megapixels = counts.dimensions
    if (least_width, least_height) == (width, height):
        return f"{width} x {height} pixels"
    return (
        f"{least_width} to {width} pixels wide, {least_height} to {height} high; "
        f"the median has {charts.number(megapixels)} megapixels"
    )


def _throughput(content: PageContent) -> Chart | str:
    found = content.throughput
    if isinstance(found, str):
        return found
    edges = [format_duration(found.width_s * place) if place else "0" for place in range(len(found.rates) + 1)]
    mean = sum(found.rates) / len(found.rates)
    description = (
        f"Images per second over the run's time, in steps of {format_duration(found.width_s)}: "
        f"{charts.number(mean)} on average, {charts.number(max(found.rates))} at most."
    )
    rows = tuple(
        (f"{begin} to {end}", charts.number(rate))
        for begin, end, rate in zip(edges, edges[1:], found.rates, strict=False)
    )
    return Chart(
        "Images per second",
        charts.columns(found.rates, edges, description=description),
        ("time since the begin", "images per second"),
        rows,
        note=f"By the time at which shards were committed, from {_moment(found.begin.isoformat())} on, "
        f"in steps of {format_duration(found.width_s)}.",
    )


def _worker_time(seconds: Mapping[str, float] | None) -> list[BarRow]:
    shares = shares_of(seconds or {})
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    return [
        BarRow(
            IN_WORDS[cause],  # type: ignore[index]
            (f"{share:.1%}", charts.number((seconds or {}).get(cause, 0.0))),
            charts.bar(share, kind="mark-good" if cause == "infer" else "mark"),
        )
        for cause, share in ranked
        if share > 0
    ]


def _start_up(seconds: Mapping[str, float] | None) -> list[tuple[str, str]]:
    return [(_START_UP.get(part, part), f"{value:.1f} s") for part, value in (seconds or {}).items()]


def _failures(counts: RunCounts) -> list[BarRow]:
    failed = counts.images - counts.statuses.get("ok", 0)
    return [
        BarRow(
            printable(reason.reason),
            (in_words(reason.status), f"{reason.images:,}"),
            charts.bar(reason.images / failed, kind="mark-bad"),
            tuple(printable(uri) for uri in reason.examples),
        )
        for reason in counts.reasons
    ]


def _categories(counts: RunCounts) -> list[BarRow]:
    most = max((category.instances for category in counts.categories), default=0)
    return [
        BarRow(
            printable(category.name),
            (
                f"{category.instances:,}",
                f"{category.images:,}",
                "" if category.mean_score is None else f"{category.mean_score:.2f}",
            ),
            charts.bar(category.instances / most),
            swatch=charts.swatch(colour_of(category.name)),
        )
        for category in counts.categories[:MAX_CATEGORIES]
    ]


def _scores(counts: RunCounts) -> Chart:
    edges = [f"{place / SCORE_BINS:g}" for place in range(SCORE_BINS + 1)]
    description = (
        f"Histogram of the scores of {counts.instances:,} instances, from 0 to 1 in {SCORE_BINS} equal parts; "
        f"{_percent(counts.confident, counts.instances)} score 0.5 or more."
    )
    return Chart(
        "Instances by score",
        charts.columns(counts.scores, edges, description=description),
        ("score", "instances"),
        tuple((f"{a} to {b}", f"{n:,}") for a, b, n in zip(edges, edges[1:], counts.scores, strict=False)),
    )


def _sides(counts: RunCounts) -> Chart:
    small = sum(n for edge, n in zip(SIDE_EDGES, counts.sides, strict=True) if edge < SMALL_SIDE)
    large = sum(n for edge, n in zip(SIDE_EDGES, counts.sides, strict=True) if edge >= LARGE_SIDE)
    total = sum(counts.sides)
    sentence = (
        f"Small (below {SMALL_SIDE}): {_percent(small, total)}, medium: {_percent(total - small - large, total)}, "
        f"large (from {LARGE_SIDE} on): {_percent(large, total)}, as COCO divides them."
    )
    names = [
        *(f"{low} to {high}" for low, high in itertools.pairwise(SIDE_EDGES)),
        f"{SIDE_EDGES[-1]} or more",
    ]
    labels = [*(str(edge) for edge in SIDE_EDGES), "…"]
    return Chart(
        "Instances by size",
        charts.columns(
            counts.sides,
            labels,
            description=f"Histogram of the sizes of {total:,} instances, in pixels of the side of a square of the same "
            f"area. {sentence}",
        ),
        ("side in pixels", "instances"),
        tuple((name, f"{n:,}") for name, n in zip(names, counts.sides, strict=True)),
        note=f"The side of a square with the instance's area, in pixels. {sentence}" if total else "",
    )


def _filter_categories(gallery: Sequence[GalleryImage]) -> list[tuple[str, int]]:
    """Return the categories of the gallery with the number of images that have one, the most frequent first."""
    counts: dict[str, int] = {}
    for image in gallery:
        for category in image.scores:
            counts[category] = counts.get(category, 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _drawn_sentence(min_score: float | None) -> str:
    which = "the best few instances" if min_score is None else f"instances that score {min_score:g} or more"
    return (
        f"Thumbnails show {which}. An open image has its {MAX_INSTANCES} best instances, each of which can be switched "
        "on and off."
    )


def _sentence_of(bottleneck: Mapping[str, Any] | None) -> str:
    return printable(str((bottleneck or {}).get("sentence") or ""))


def _percent(part: int, whole: int) -> str:
    if not whole:
        return ""
    share = 100 * part / whole
    return "0\u00a0%" if not part else "under 0.1\u00a0%" if share < 0.1 else f"{share:.1f}\u00a0%"


def _moment(text: object) -> str:
    """Return an ISO 8601 moment for people, in UTC; "" for none."""
    if not text:
        return ""
    moment = datetime.fromisoformat(str(text))
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
