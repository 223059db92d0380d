"""Images that were not ok before and are not ok again are no news; every other bad image counts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.driver.session
import pipeline.driver.worker_pool
from pipeline.driver.assemble import assemble_rows, build_report
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import load_spec
from pipeline.messages import ShardFailure, ShardOutcome
from pipeline.output.results import open_results
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.row_counts import RowCounts
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary, summarise
from tests.support.builders.planned_runs import OTHER_MODEL, IncrementalRuns
from tests.support.fakes.in_process_pool import InProcessPool
from tests.support.fakes.models import LoadFake, write_image, write_images

ALL_BAD: dict[str, ImageStatus] = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "failed")


@pytest.fixture
def nights(tmp_path: Path) -> IncrementalRuns:
    """Six images after a first night: three are ok."""
    nights = IncrementalRuns(tmp_path)
    nights.put("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg")
    nights.night(ALL_BAD)
    return nights


def counts_of(nights: IncrementalRuns, run: RunHandle) -> RowCounts:
    return RowCounts.from_tables(open_results(run.output_uri, nights.storage), run.name, run.repeats)


def tally(nights: IncrementalRuns, run: str, **options: object) -> RowCounts:
    """What a driver that begins now knows of a run: all of it comes from the tables."""
    return counts_of(nights, nights.open(run=run, **options))


def errors_of(nights: IncrementalRuns, statuses: dict[str, ImageStatus], **options: object) -> tuple[int, int]:
    """Do a night; returns its rows that are not ok, and those that count."""
    opened = nights.open(**options)
    nights.commit(opened, statuses)
    counted = tally(nights, opened.name, **options)
    return counted.errors, counted.fresh_errors


def test_what_fails_again_does_not_count(nights: IncrementalRuns) -> None:
    assert errors_of(nights, ALL_BAD) == (3, 0)
    # And no more in the night after.
    assert errors_of(nights, ALL_BAD) == (3, 0)


def test_that_images_are_tried_again_excuses_no_others(nights: IncrementalRuns) -> None:
    nights.put("x.jpg", "y.jpg", "z.jpg", content="junk")
    bad: dict[str, ImageStatus] = dict.fromkeys(("x.jpg", "y.jpg", "z.jpg"), "unreadable")
    assert errors_of(nights, bad) == (3, 3)


def test_one_of_each_kind(nights: IncrementalRuns) -> None:
    nights.put("x.jpg", "y.jpg")
    nights.put("b.jpg", "d.jpg", content="other")
    # a failed before, b is another file by now, d was ok, x is new.
    assert errors_of(nights, {"a.jpg": "failed", "b.jpg": "failed", "d.jpg": "unreadable", "x.jpg": "missing"}) == (
        4,
        3,
    )


def test_a_failure_after_an_image_was_ok_is_news(nights: IncrementalRuns) -> None:
    assert errors_of(nights, {}) == (0, 0)
    nights.put("a.jpg", content="other")
    assert errors_of(nights, {"a.jpg": "failed"}) == (1, 1)
    assert errors_of(nights, {"a.jpg": "failed"}) == (1, 0)


def test_a_changed_image_counts_also_where_only_failures_are_done(nights: IncrementalRuns) -> None:
    nights.put("a.jpg", content="other")
    assert errors_of(nights, ALL_BAD, select__retry="failed") == (3, 1)


def test_another_model_is_no_excuse_for_what_was_ok(nights: IncrementalRuns) -> None:
    everything: dict[str, ImageStatus] = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"), "failed")
    opened = nights.open(fingerprint=OTHER_MODEL)
    nights.commit(opened, everything)
    again = nights.open(run=opened.name, fingerprint=OTHER_MODEL)
    counted = counts_of(nights, again)
    assert (counted.errors, counted.fresh_errors) == (6, 3)


def test_a_full_run_excuses_nothing(nights: IncrementalRuns) -> None:
    opened = nights.open(select__mode="full", fresh=True)
    nights.commit(opened, ALL_BAD)
    counted = tally(nights, opened.name, select__mode="full")
    assert (counted.errors, counted.fresh_errors) == (3, 3)


def test_an_entry_that_is_missing_every_night_is_no_news(nights: IncrementalRuns) -> None:
    listing = nights.folder / "in.txt"
    listing.write_text("in/d.jpg\nin/gone.jpg\n")
    options: dict[str, object] = {"input__uri": str(listing)}
    assert errors_of(nights, {"gone.jpg": "missing"}, **options) == (1, 1)
    assert errors_of(nights, {"gone.jpg": "missing"}, **options) == (1, 0)
    # There is a file now, and it is junk.
    nights.put("gone.jpg", content="junk")
    assert errors_of(nights, {"gone.jpg": "unreadable"}, **options) == (1, 1)


def test_a_manifest_of_an_older_release_is_completed_from_the_earlier_rows(nights: IncrementalRuns) -> None:
    nights.put("x.jpg", content="junk")
    nights.put("b.jpg", content="other")
    opened = nights.open()
    assert opened.manifest.selection["retried"] == 2
    nights.commit(opened, {**ALL_BAD, "x.jpg": "unreadable"}, shards=1)
    parts = sorted((nights.folder / "out/runs" / opened.name / "manifest").glob("*.parquet"))
    assert parts
    for part in parts:
        table = pq.read_table(part)
        pq.write_table(table.drop_columns(["failed_before"]), part)
    again = nights.open(run=opened.name)
    flags = [ref.failed_before for index in range(again.shard_count) for ref in again.read_shard(index).images]
    assert flags == [True, False, True, False]
    nights.commit(again, {**ALL_BAD, "x.jpg": "unreadable"})
    counted = tally(nights, opened.name)
    assert (counted.errors, counted.fresh_errors) == (4, 2)


def test_the_manifest_says_which_images_failed_before(nights: IncrementalRuns) -> None:
    nights.put("x.jpg")
    opened = nights.open()
    part = nights.folder / "out/runs" / opened.name / "manifest/part-00000.parquet"
    table = pq.read_table(part)
    assert table.schema.field("failed_before").type == pa.bool_()
    assert table.column("failed_before").to_pylist() == [True, True, True, False]


def test_the_driver_counts_what_it_puts_together_itself() -> None:
    images = tuple(ImageRef(f"/in/{number}.png", failed_before=number < 2) for number in range(4))
    rest = ShardFailure(0, "storage", "the store is away")
    settled = ShardOutcome(0, 4, rest=rest)
    report = build_report(Shard(0, images), settled, assemble_rows(Shard(0, images), settled, model="fake"))
    assert (report.repeats, report.fresh_errors) == (2, 2)


def work(folder: Path, **overrides: object) -> RunSummary:
    values: dict[str, object] = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "compute.shard_images": 4,
    }
    values |= {key.replace("__", "."): value for key, value in overrides.items() if key != "run"}
    name = overrides.get("run")
    return run(
        load_spec(None, values),
        run=str(name) if name else None,
        progress=SilentProgress(),
        load_model=LoadFake(),
    )


@pytest.fixture
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    InProcessPool.forget()
    monkeypatch.setattr(pipeline.driver.worker_pool, "WorkerPool", InProcessPool)
    monkeypatch.setattr(
        pipeline.driver.session, "ray_cluster", lambda compute, *, shards: nullcontext(WorkerPlan(1, 1.0, 0.0))
    )


@pytest.mark.usefixtures("_one_worker")
def test_images_that_are_ok_by_now_do_not_excuse_new_junk(tmp_path: Path) -> None:
    """Six images too large; then the limit is lifted, and six new files are junk: half of the night failed."""
    for path in write_images(tmp_path / "in", 6):
        write_image(path, (300, 400))
    first = work(tmp_path, images__max_pixels=1000)
    assert (first.status, first.errors) == ("over_error_budget", 6)
    for number in range(6):
        (tmp_path / "in" / f"junk-{number}.png").write_text(f"junk {number}")
    second = work(tmp_path, select__mode="incremental")
    assert second.statuses == {"ok": 6, "unreadable": 6}
    assert (second.status, second.exit_code, second.error_rate) == ("over_error_budget", 1, 0.5)
    assert (second.errors, second.repeated_errors) == (6, 0)
    # Counted again from the tables.
    again = work(tmp_path, select__mode="incremental", run=second.run)
    assert (again.status, again.errors, again.repeated_errors) == ("over_error_budget", 6, 0)


@pytest.mark.usefixtures("_one_worker")
def test_a_session_counts_repeats_as_the_next_one_does(tmp_path: Path) -> None:
    for path in write_images(tmp_path / "in", 6):
        write_image(path, (300, 400))
    work(tmp_path, images__max_pixels=1000)
    (tmp_path / "in" / "junk.png").write_text("junk")
    options: dict[str, object] = {"select__mode": "incremental", "images__max_pixels": 1001}
    second = work(tmp_path, **options)
    assert (second.errors, second.repeated_errors, second.statuses) == (1, 6, {"too_large": 6, "unreadable": 1})
    # The one new image is bad, and no other is ok: no floor covers that.
    assert (second.status, second.max_errors) == ("over_error_budget", 5)
    third = work(tmp_path, **options, run=second.run)
    assert (third.errors, third.repeated_errors) == (1, 6)
    (tmp_path / "in" / "junk.png").unlink()
    (tmp_path / "out/runs" / second.run / "summary.json").unlink()
    fourth = work(tmp_path, **options, images__max_bytes=10**8)
    assert (fourth.errors, fourth.repeated_errors, fourth.status) == (0, 6, "complete")


def test_the_summary_of_excused_failures_is_complete(nights: IncrementalRuns) -> None:
    opened = nights.open()
    nights.commit(opened, ALL_BAD)
    summary = summarise(
        opened.name,
        tally(nights, opened.name),
        nights.spec().retry,
        images=opened.image_count,
        is_planned=opened.is_planned,
        model="htc_lite0_fpn",
        is_trained=True,
        has_bug=False,
    )
    assert (summary.status, summary.errors, summary.repeated_errors, summary.error_rate) == ("complete", 0, 3, 0.0)
