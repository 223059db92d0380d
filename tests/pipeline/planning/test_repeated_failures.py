"""Images that were not ok before and are not ok again are no new failures; every other bad image counts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.driver.session
import pipeline.driver.worker_pool
from pipeline.cluster.connection import RayStarter
from pipeline.driver.assemble import assemble_rows, build_report
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import load_spec
from pipeline.messages import ShardFailure, ShardOutcome
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.counting import count_run
from pipeline.runs.row_counts import RowCounts
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary, summarise
from tests.support.builders.planned_runs import OTHER_MODEL, IncrementalRuns
from tests.support.fakes.in_process_pool import InProcessPool
from tests.support.fakes.models import LoadFake, write_image, write_images

ALL_BAD: dict[str, ImageStatus] = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "failed")


@pytest.fixture
def runs(tmp_path: Path) -> IncrementalRuns:
    """Six images after a first run; three are ok."""
    runs = IncrementalRuns(tmp_path)
    runs.put("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg")
    runs.run_again(ALL_BAD)
    return runs


def counts_of(runs: IncrementalRuns, run: RunHandle) -> RowCounts:
    return count_run(runs.storage, run.output_uri, run.name, shard_count=run.shard_count, find_repeats=run.repeats)


def counted_anew(runs: IncrementalRuns, run: str, **options: object) -> RowCounts:
    """The counts of a driver that starts now: it takes them from the tables."""
    return counts_of(runs, runs.open(run=run, **options))


def errors_of(runs: IncrementalRuns, statuses: dict[str, ImageStatus], **options: object) -> tuple[int, int]:
    """Do a run; return its rows that are not ok, and how many of these count."""
    opened = runs.open(**options)
    runs.commit(opened, statuses)
    counted = counted_anew(runs, opened.name, **options)
    return counted.errors, counted.new_errors


def test_what_fails_again_does_not_count(runs: IncrementalRuns) -> None:
    assert errors_of(runs, ALL_BAD) == (3, 0)
    # Nor in the run after that.
    assert errors_of(runs, ALL_BAD) == (3, 0)


def test_retried_images_excuse_no_others(runs: IncrementalRuns) -> None:
    runs.put("x.jpg", "y.jpg", "z.jpg", content="junk")
    bad: dict[str, ImageStatus] = dict.fromkeys(("x.jpg", "y.jpg", "z.jpg"), "unreadable")
    assert errors_of(runs, bad) == (3, 3)


def test_one_of_each_kind(runs: IncrementalRuns) -> None:
    runs.put("x.jpg", "y.jpg")
    runs.put("b.jpg", "d.jpg", content="other")
    # a failed before, b has changed since, d was ok, x is new.
    assert errors_of(runs, {"a.jpg": "failed", "b.jpg": "failed", "d.jpg": "unreadable", "x.jpg": "missing"}) == (
        4,
        3,
    )


def test_a_failure_after_an_image_was_ok_is_new(runs: IncrementalRuns) -> None:
    assert errors_of(runs, {}) == (0, 0)
    runs.put("a.jpg", content="other")
    assert errors_of(runs, {"a.jpg": "failed"}) == (1, 1)
    assert errors_of(runs, {"a.jpg": "failed"}) == (1, 0)


def test_a_changed_image_counts_also_when_only_failures_are_retried(runs: IncrementalRuns) -> None:
    runs.put("a.jpg", content="other")
    assert errors_of(runs, ALL_BAD, select__retry="failed") == (3, 1)


def test_images_that_were_ok_with_another_model_count(runs: IncrementalRuns) -> None:
    everything: dict[str, ImageStatus] = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"), "failed")
    opened = runs.open(fingerprint=OTHER_MODEL)
    runs.commit(opened, everything)
    again = runs.open(run=opened.name, fingerprint=OTHER_MODEL)
    counted = counts_of(runs, again)
    assert (counted.errors, counted.new_errors) == (6, 3)


def test_a_full_run_excuses_nothing(runs: IncrementalRuns) -> None:
    opened = runs.open(select__mode="full", fresh=True)
    runs.commit(opened, ALL_BAD)
    counted = counted_anew(runs, opened.name, select__mode="full")
    assert (counted.errors, counted.new_errors) == (3, 3)


def test_an_entry_that_is_missing_in_every_run_counts_once(runs: IncrementalRuns) -> None:
    listing = runs.folder / "in.txt"
    listing.write_text("in/d.jpg\nin/gone.jpg\n")
    options: dict[str, object] = {"input__uri": str(listing)}
    assert errors_of(runs, {"gone.jpg": "missing"}, **options) == (1, 1)
    assert errors_of(runs, {"gone.jpg": "missing"}, **options) == (1, 0)
    # The file exists now, and is junk.
    runs.put("gone.jpg", content="junk")
    assert errors_of(runs, {"gone.jpg": "unreadable"}, **options) == (1, 1)


def test_a_manifest_of_an_older_release_is_completed_from_the_earlier_rows(runs: IncrementalRuns) -> None:
    runs.put("x.jpg", content="junk")
    runs.put("b.jpg", content="other")
    opened = runs.open()
    assert opened.manifest.selection["retried"] == 2
    runs.commit(opened, {**ALL_BAD, "x.jpg": "unreadable"}, shards=1)
    parts = sorted((runs.folder / "out/runs" / opened.name / "manifest").glob("*.parquet"))
    assert parts
    for part in parts:
        table = pq.read_table(part)
        pq.write_table(table.drop_columns(["failed_before"]), part)
    again = runs.open(run=opened.name)
    flags = [ref.failed_before for index in range(again.shard_count) for ref in again.read_shard(index).images]
    assert flags == [True, False, True, False]
    runs.commit(again, {**ALL_BAD, "x.jpg": "unreadable"})
    counted = counted_anew(runs, opened.name)
    assert (counted.errors, counted.new_errors) == (4, 2)


def test_the_manifest_records_which_images_failed_before(runs: IncrementalRuns) -> None:
    runs.put("x.jpg")
    opened = runs.open()
    part = runs.folder / "out/runs" / opened.name / "manifest/part-00000.parquet"
    table = pq.read_table(part)
    assert table.schema.field("failed_before").type == pa.bool_()
    assert table.column("failed_before").to_pylist() == [True, True, True, False]


def test_the_driver_counts_repeats_in_shards_that_it_assembles() -> None:
    images = tuple(ImageRef(f"/in/{number}.png", failed_before=number < 2) for number in range(4))
    rest = ShardFailure(0, "storage", "the store is away")
    settled = ShardOutcome(0, 4, rest=rest)
    report = build_report(Shard(0, images), settled, assemble_rows(Shard(0, images), settled, model="fake"))
    assert (report.repeats, report.new_errors) == (2, 2)


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
    monkeypatch.setattr(RayStarter, "begin", lambda starter: None)


@pytest.mark.usefixtures("_one_worker")
def test_retried_images_that_are_ok_do_not_excuse_new_junk(tmp_path: Path) -> None:
    """Six images are too large; then the limit is lifted, and six new files are junk: half of the run fails."""
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
    # The one new image is bad and no other is ok, so max_errors does not apply.
    assert (second.status, second.max_errors) == ("over_error_budget", 5)
    third = work(tmp_path, **options, run=second.run)
    assert (third.errors, third.repeated_errors) == (1, 6)
    (tmp_path / "in" / "junk.png").unlink()
    (tmp_path / "out/runs" / second.run / "summary.json").unlink()
    fourth = work(tmp_path, **options, images__max_bytes=10**8)
    assert (fourth.errors, fourth.repeated_errors, fourth.status) == (0, 6, "complete")


def test_the_summary_of_repeated_failures_is_complete(runs: IncrementalRuns) -> None:
    opened = runs.open()
    runs.commit(opened, ALL_BAD)
    summary = summarise(
        opened.name,
        counted_anew(runs, opened.name),
        runs.spec().retry,
        images=opened.image_count,
        is_planned=opened.is_planned,
        model="htc_lite0_fpn",
        is_trained=True,
        has_bug=False,
    )
    assert (summary.status, summary.errors, summary.repeated_errors, summary.error_rate) == ("complete", 0, 3, 0.0)
