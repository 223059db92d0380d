"""`htc report`: gathers a run's numbers and pictures, and writes them as one page."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.results.folders import check_apart
from jobs.results.image_lookup import CURRENT
from jobs.results.report.counts import SCORE_BINS, RunCounts, count_run
from jobs.results.report.drift import drift_section
from jobs.results.report.evaluation import evaluation_section
from jobs.results.report.page import PageContent, render_page
from jobs.results.report.pictures import Bounds, GalleryReader, read_gallery
from jobs.results.report.sample import Sample, choose_sample, shards_in_order
from jobs.results.report.speed import Throughput, measure_throughput
from jobs.results.status import read_status
from jobs.terminal.console import say, size_of, write_line
from jobs.terminal.output_file import atomic_output, check_local
from jobs.terminal.progress import ImageProgress
from pipeline.errors import SpecError
from pipeline.output.layout import partition_folder
from pipeline.output.results import Results, open_results
from pipeline.output.run_record import RunRecord, began
from pipeline.output.views import query_views
from pipeline.runs.summary import read_summary
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    import duckdb

    from pipeline.storage.config import StorageSection

DEFAULT_IMAGES, MAX_IMAGES = 500, 2000
# As `htc show` draws.
DEFAULT_MIN_SCORE = 0.3
_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class ReportRequest:
    """What is reported, and where to.

    path: the file, .html; one that exists is replaced. run: None for the newest run with images. truth: URI of COCO
    annotations to score the run with. images: at most so many are in the gallery. min_score: what instances score that
    are drawn at first; None takes 0.3, and the best few of each image if none reaches that.
    """

    path: Path
    run: str | None = None
    truth: str | None = None
    images: int = DEFAULT_IMAGES
    min_score: float | None = None


def write_report(output_uri: str, request: ReportRequest, *, storage_section: "StorageSection | None" = None) -> None:
    """Write a report on one run of an output, and say what was written.

    Raises:
        InputError: there is no such run, or the annotations are of other images.
        SpecError: the file cannot be written, the annotations cannot be read, or the run is "current".
        DamagedFileError: a part of the tables is damaged or missing.
        StorageError: storage failed.
    """
    _check(request.path)
    storage = Storage(storage_section)
    results = open_results(output_uri, storage)
    check_apart(request.path.parent, [results], has_pictures=False)
    run = results.newest_run() if request.run is None else request.run
    if run == CURRENT and CURRENT not in results.runs():
        raise SpecError(
            "A report is about one run: its speed, its outcome and its images. The newest rows of all runs are taken "
            "by --run current of `htc show`, `htc export` and `htc evaluate`, and shown by `htc browse`."
        )
    results.check_run(run)
    evaluation = evaluation_section(results, request.truth, run) if request.truth else None
    status = read_status(output_uri, storage, run=run, report=say)

    def ask(database: "duckdb.DuckDBPyConnection") -> tuple[RunCounts, Sample]:
        counts = count_run(database, run)
        return counts, choose_sample(database, run, counts.statuses, request.images)

    counts, sample = query_views(results, ask)
    record = next(record for record in results.records if record.run == run)
    summary = read_summary(storage, results.output_uri, run) or {}
    min_score = _least_score(request.min_score, counts, record)
    reader = GalleryReader(results, run, Bounds.of(len(sample.rows)), min_score=min_score)
    with ImageProgress() as progress:
        gallery = read_gallery(reader, sample.rows, shards_in_order(sample.rows), progress.show)
    content = PageContent(
        output=results.output_uri,
        record=record,
        status=status,
        summary=summary,
        counts=counts,
        throughput=_throughput(results, record, counts, summary),
        evaluation=evaluation,
        drift=drift_section(results, run),
        sample=sample,
        gallery=gallery,
        min_score=min_score,
    )
    page = render_page(content).encode("utf-8")
    with atomic_output(request.path) as sink:
        sink.write(page)
    if not counts.images:
        say(f"Run {run} has no rows yet; `htc status` shows how far it is.")
    without = sum(image.thumbnail is None and image.status == "ok" for image in gallery)
    if without:
        say(f"{count_of(without, 'image')} could not be shown, because gone or changed since the run; tiles say why.")
    write_line(f"{request.path}: run {run}, {count_of(len(gallery), 'image')} in the gallery, {size_of(len(page))}")


def _check(path: Path) -> None:
    check_local(path)
    if path.is_dir():
        raise SpecError(f"{path} is a folder; name a file, such as {path / 'report.html'}.")
    if path.suffix.lower() not in _SUFFIXES:
        raise SpecError(f"{path} does not end in .html; name a file, such as {path.with_name(path.name + '.html')}.")
    if not path.parent.is_dir():
        raise SpecError(f"{path} cannot be written: there is no folder {path.parent}.")


def _least_score(wanted: float | None, counts: RunCounts, record: RunRecord) -> float | None:
    """Return the score from which instances are drawn; None for the best few of each image, whatever they score."""
    if wanted is not None:
        return wanted
    is_reached = sum(counts.scores[int(DEFAULT_MIN_SCORE * SCORE_BINS) :]) > 0
    return DEFAULT_MIN_SCORE if is_reached and record.fingerprint.get("trained", True) else None


def _throughput(results: Results, record: RunRecord, counts: RunCounts, summary: dict[str, Any]) -> Throughput | str:
    written = results.storage.written_times(partition_folder(results.output_uri, "images", record.run))
    ended = summary.get("ended")
    return measure_throughput(
        results.committed(record.run),
        written,
        counts.images_of_shard,
        began=began(record),
        ended=datetime.fromisoformat(ended) if ended else None,
    )
