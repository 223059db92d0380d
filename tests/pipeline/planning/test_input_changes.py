"""A complete run lists its input again, and reports what is new, changed and gone."""

import io
import os
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.driver.session
import pipeline.driver.worker_pool
import pipeline.planning.input_changes
from pipeline.cluster.connection import RayStarter
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import ImageStatus, InputError, RunMismatchError
from pipeline.inputs.image_ref import ReadVersion
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.maintenance.compaction import compact_run
from pipeline.output.commit import commit_shard
from pipeline.output.results import open_results
from pipeline.output.rows import build_image_row
from pipeline.planning.input_changes import InputChanges, compare_input, suggest_command
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.outcomes import EXIT_INPUT_CHANGED
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.planned_runs import OTHER_MODEL, IncrementalRuns
from tests.support.fakes.in_process_pool import InProcessPool
from tests.support.fakes.models import LoadFake, write_image, write_images
from tests.support.servers.s3_server import S3Server


class Full:
    """A complete full run over an input, and how the input has changed since."""

    def __init__(self, runs: IncrementalRuns, **options: object) -> None:
        self.runs = runs
        self.options = {"select__mode": "full", **options}
        self.spec = runs.spec(**self.options)

    def done(self, **statuses: ImageStatus) -> "Full":
        """Do all images; `statuses` by file name without suffix."""
        opened = self.runs.open(**self.options)
        assert opened.state == "new"
        for index in opened.todo():
            rows = []
            for ref in opened.read_shard(index).images:
                status = statuses.get(Path(ref.uri).stem, "ok")
                etag, size = ref.etag, ref.bytes
                if status == "ok" and ref.container is None:
                    listed = self.runs.storage.stat(ref.uri)
                    etag, size = listed.etag, listed.bytes
                read = ReadVersion(size or 1, etag, None) if status == "ok" else None
                rows.append(build_image_row(ref, shard=index, model="m", status=status, read=read))
            commit_shard(self.runs.storage, opened.output_uri, opened.name, index, rows, [])
        opened.write_summary({"status": "complete"})
        self.run = opened.name
        return self

    def changes(self) -> InputChanges:
        return compare_input(self.spec.input, self.runs.storage, self.spec.output.uri, self.run)

    def counts(self) -> str:
        return self.changes().counts()


@pytest.fixture
def runs(tmp_path: Path) -> IncrementalRuns:
    runs = IncrementalRuns(tmp_path)
    runs.put("a.jpg", "b.jpg", "c.jpg", "deep/d.jpg", "e.jpg", "readme.txt")
    return runs


def test_an_unchanged_input_has_no_changes(runs: IncrementalRuns) -> None:
    found = Full(runs).done(b="unreadable", c="failed").changes()
    assert (found.has_any, found.counts(), found.known, found.unknown) == (False, "", 5, 0)


def test_new_changed_and_gone_images_are_counted_and_named(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.put("0.jpg", "deep/f.jpg")
    runs.put("b.jpg", content="other")
    runs.remove("deep/d.jpg", "e.jpg")
    assert full.counts() == "2 new (0.jpg, deep/f.jpg), 1 changed (b.jpg), 2 gone (deep/d.jpg, e.jpg)"


def test_only_the_first_names_are_given(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.put(*(f"n{number:04d}.jpg" for number in range(3000)))
    runs.remove("a.jpg", "b.jpg", "c.jpg", "e.jpg")
    assert full.counts() == "3,000 new (n0000.jpg, n0001.jpg, n0002.jpg, ...), 4 gone (a.jpg, b.jpg, c.jpg, ...)"


def test_the_changes_are_what_an_incremental_run_does(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.put("0.jpg")
    runs.put("b.jpg", "c.jpg", content="other")
    runs.remove("a.jpg")
    found = full.changes()
    opened = runs.open()
    counts = opened.manifest.selection
    assert (found.new, found.changed, found.gone) == (counts["new"], counts["changed"], counts["deleted"])
    runs.commit(opened)


def test_all_images_are_gone(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.remove("a.jpg", "b.jpg", "c.jpg", "deep/d.jpg", "e.jpg")
    found = full.changes()
    assert (found.new, found.changed, found.gone) == (0, 0, 5)
    sentence = suggest_command(found, is_named=False, max_deleted_share=0.5)
    assert "--max-deleted-share 1" in sentence
    assert "--max-deleted-share" not in suggest_command(found, is_named=False, max_deleted_share=1.0)


@pytest.mark.parametrize("is_named", [True, False])
def test_the_suggested_command_works(runs: IncrementalRuns, is_named: bool) -> None:
    full = Full(runs).done()
    runs.put("0.jpg")
    assert (
        "another name for --run" in suggest_command(full.changes(), is_named=is_named, max_deleted_share=0.5)
    ) == is_named
    assert runs.open(run="other" if is_named else None).manifest.selection["new"] == 1


def test_an_input_that_cannot_be_listed_is_an_error_that_names_the_complete_run(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    (runs.folder / "in").rename(runs.folder / "moved")
    with pytest.raises(InputError, match="is complete and stays as it is") as caught:
        full.changes()
    assert caught.value.exit_code == 2
    assert "does not exist" in str(caught.value)


def test_images_beyond_the_limit_are_not_gone(runs: IncrementalRuns) -> None:
    full = Full(runs, input__limit=3).done()
    assert not full.changes().has_any
    runs.put("0.jpg")
    # c.jpg is the fourth now, and still exists.
    assert full.counts() == "1 new (0.jpg)"
    runs.remove("c.jpg")
    assert full.counts() == "1 new (0.jpg), 1 gone (c.jpg)"


def write_tar(path: Path, **members: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{name}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_members_of_a_tar(runs: IncrementalRuns) -> None:
    shard = runs.folder / "shard.tar"
    write_tar(shard, a=b"1", b=b"22", c=b"333")
    full = Full(runs, input__uri=str(shard)).done()
    assert not full.changes().has_any
    write_tar(shard, a=b"1", b=b"22", d=b"4444")
    found = full.changes()
    # The version of a member is its container's.
    assert (found.new, found.changed, found.gone) == (1, 2, 1)
    assert found.new_names == (f"tar://d.jpg::{shard}",)


def test_rows_of_a_parquet_file(runs: IncrementalRuns) -> None:
    shard = runs.folder / "shard.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2"]}), shard)
    full = Full(runs, input__uri=str(shard)).done()
    assert not full.changes().has_any
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"]}), shard)
    found = full.changes()
    assert (found.new, found.changed, found.gone, found.new_names) == (1, 2, 0, (f"{shard}#row=2",))


def test_entries_of_a_listing(runs: IncrementalRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = runs.folder / "in.txt"
    listing.write_text("in/a.jpg\nin/b.jpg\nin/e.jpg\nin/never.jpg\n")
    full = Full(runs, input__uri=str(listing)).done(never="missing", e="failed")
    assert not full.changes().has_any
    runs.put("b.jpg", content="other")
    runs.remove("a.jpg")
    runs.put("never.jpg")
    listing.write_text("in/a.jpg\nin/b.jpg\nin/never.jpg\nin/c.jpg\n")
    found = full.changes()
    assert (found.new, found.changed, found.gone) == (1, 2, 2)
    assert [Path(name).name for name in found.gone_names] == ["a.jpg", "e.jpg"]
    assert [Path(name).name for name in found.changed_names] == ["b.jpg", "never.jpg"]
    monkeypatch.setattr(pipeline.planning.input_changes, "MAX_STATS", 1)
    found = full.changes()
    assert (found.changed, found.gone, found.unknown) == (0, 2, 2)
    assert "2 images" in found.unknown_note()


def test_a_history_on_disk_gives_the_same_changes(runs: IncrementalRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.history.EVENTS_IN_MEMORY", 2)
    full = Full(runs).done()
    runs.put("0.jpg")
    runs.remove("b.jpg")
    assert full.counts() == "1 new (0.jpg), 1 gone (b.jpg)"


def test_a_compacted_run_has_the_same_changes(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    output = full.spec.output.uri
    compact_run(runs.storage, output, full.run, target_bytes=1 << 20, check=lambda: None)
    assert not full.changes().has_any
    runs.remove("b.jpg")
    assert full.counts() == "1 gone (b.jpg)"


def test_what_later_runs_did_is_not_new(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.put("z.jpg")
    runs.put("c.jpg", content="other")
    runs.remove("a.jpg")
    assert full.counts() == "1 new (z.jpg), 1 changed (c.jpg), 1 gone (a.jpg)"
    assert runs.run_again() == ["c.jpg", "z.jpg"]
    assert not full.changes().has_any
    # A run of another input changes nothing.
    other = IncrementalRuns(runs.folder / "other")
    other.put("x.jpg")
    other.days = 10
    other.commit(other.open(output__uri=str(runs.folder / "out")))
    assert not full.changes().has_any


def test_the_command_of_a_full_run_finds_it_behind_incremental_ones(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.put("z.jpg")
    assert runs.run_again() == ["z.jpg"]
    again = runs.open(**full.options)
    assert (again.name, again.state) == (full.run, "complete")
    assert runs.run_again() == []
    assert runs.open(**full.options).name == full.run
    # Another model's run is not what this command is for.
    runs.run_again(fingerprint=OTHER_MODEL)
    with pytest.raises(RunMismatchError):
        runs.open(**full.options)


def test_an_unfinished_incremental_run_is_not_passed_over(runs: IncrementalRuns) -> None:
    full = Full(runs).done()
    runs.put("z.jpg")
    runs.open()
    with pytest.raises(RunMismatchError):
        runs.open(**full.options)


def test_an_unfinished_full_run_is_not_resumed_behind_others(runs: IncrementalRuns) -> None:
    opened = runs.open(select__mode="full")
    runs.commit(opened, shards=1)
    runs.commit(runs.open())
    with pytest.raises(RunMismatchError):
        runs.open(select__mode="full")


def test_the_output_inside_the_input_is_not_input(runs: IncrementalRuns) -> None:
    full = Full(runs, output__uri=str(runs.folder / "in/out")).done()
    (runs.folder / "in/out/overlay.jpg").write_bytes(b"x")
    assert not full.changes().has_any


def test_names_that_are_not_valid_unicode_are_unchanged(runs: IncrementalRuns) -> None:
    odd = os.fsencode(runs.folder / "in") + b"/odd-\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    full = Full(runs).done()
    assert not full.changes().has_any
    Path(os.fsdecode(odd)).unlink()
    assert full.counts() == r"1 gone (odd-\xff.jpg)"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str, list[str]]]:
    """Runs the driver over tmp_path/in; returns exit code, status, reason and notes."""
    InProcessPool.forget()
    monkeypatch.setattr(pipeline.driver.worker_pool, "WorkerPool", InProcessPool)
    monkeypatch.setattr(
        pipeline.driver.session, "ray_cluster", lambda compute, *, shards: nullcontext(WorkerPlan(1, 1.0, 0.0))
    )
    monkeypatch.setattr(RayStarter, "begin", lambda starter: None)

    class Notes(SilentProgress):
        def __init__(self) -> None:
            self.sentences: list[str] = []

        def note(self, sentence: str) -> None:
            self.sentences.append(sentence)

    def work_on(name: str | None = None, **overrides: object) -> tuple[int, str, str, list[str]]:
        notes = Notes()
        summary = run(spec_of(tmp_path, **overrides), run=name, progress=notes, load_model=LoadFake())
        return summary.exit_code, summary.status, summary.reason, notes.sentences

    return work_on


def spec_of(folder: Path, **overrides: object) -> JobSpec:
    values: dict[str, object] = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "compute.shard_images": 4,
    }
    return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


Work = Callable[..., tuple[int, str, str, list[str]]]


def test_the_same_command_reports_nothing_to_do_or_the_changes(tmp_path: Path, work: Work) -> None:
    paths = write_images(tmp_path / "in", 5)
    assert work()[:3] == (0, "complete", "")
    code, status, reason, notes = work()
    assert (code, status, reason) == (0, "complete", "")
    assert any(sentence.endswith("is complete already; nothing to do.") for sentence in notes)
    write_image(tmp_path / "in" / "new.png", (20, 20))
    paths[0].unlink()
    summary_before = (next((tmp_path / "out/runs").iterdir()) / "summary.json").read_text()
    code, status, reason, notes = work()
    assert (code, status) == (EXIT_INPUT_CHANGED, "complete")
    assert f"1 new (new.png), 1 gone ({paths[0].name})" in reason
    assert "--incremental" in reason
    assert not any("nothing to do" in sentence for sentence in notes)
    # The run and its summary are unchanged.
    (run_folder,) = (tmp_path / "out/runs").iterdir()
    assert (run_folder / "summary.json").read_text() == summary_before
    assert len(open_results(str(tmp_path / "out"), Storage()).images()) == 5
    # The suggested command does what was reported.
    code, status, _, _ = work(select__mode="incremental")
    assert (code, status) == (0, "complete")
    assert len(open_results(str(tmp_path / "out"), Storage()).images()) == 6
    assert work()[:3] == (0, "complete", "")


def test_a_run_over_its_budget_stays_over_it_when_its_input_has_changed(tmp_path: Path, work: Work) -> None:
    write_images(tmp_path / "in", 1)
    for number in range(3):
        (tmp_path / "in" / f"junk-{number}.jpg").write_text("junk")
    assert work()[:2] == (1, "over_error_budget")
    write_image(tmp_path / "in" / "new.png", (20, 20))
    code, status, reason, _ = work()
    assert (code, status) == (1, "over_error_budget")
    assert "3 of 4 images failed" in reason
    assert "1 new (new.png)" in reason


def test_a_named_incremental_run_has_nothing_to_do_once_it_is_complete(tmp_path: Path, work: Work) -> None:
    write_images(tmp_path / "in", 2)
    options: dict[str, object] = {"select__mode": "incremental"}
    assert work("night", **options)[0] == 0
    write_image(tmp_path / "in" / "new.png", (20, 20))
    assert work("night", **options)[:2] == (0, "complete")


def test_a_lost_summary_is_written_with_the_exit_code_of_the_run(tmp_path: Path, work: Work) -> None:
    write_images(tmp_path / "in", 2)
    work("night")
    write_image(tmp_path / "in" / "new.png", (20, 20))
    summary = tmp_path / "out/runs/night/summary.json"
    summary.unlink()
    code, _, reason, _ = work("night")
    assert code == EXIT_INPUT_CHANGED
    assert "another name for --run" in reason
    assert '"exit_code": 0' in summary.read_text()


@pytest.mark.xdist_group("s3")
def test_a_bucket(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    files = s3_server.files()
    for name in ("a.jpg", "b.jpg", "c d.jpg"):
        files.pipe_file(f"{s3_bucket}/in/{name}", b"x")
    runs = IncrementalRuns(tmp_path, storage=Storage(StorageSection(endpoint_url=s3_server.endpoint_url)))
    full = Full(runs, input__uri=f"{s3_bucket}/in/", output__uri=f"{s3_bucket}/out").done()
    assert not full.changes().has_any
    files.pipe_file(f"{s3_bucket}/in/b.jpg", b"y")
    files.pipe_file(f"{s3_bucket}/in/e.jpg", b"x")
    files.rm_file(f"{s3_bucket}/in/c d.jpg")
    assert full.counts() == "1 new (e.jpg), 1 changed (b.jpg), 1 gone (c d.jpg)"
