"""A run is begun, interrupted, resumed, complete, or refused with one sentence."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import InputError, OutputOccupiedError, RunMismatchError, SpecError, StorageError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import build_image_row
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
FINGERPRINT = {"preset": "htc_r50_fpn", "weights_sha256": "a" * 64, "config_sha256": "c" * 64, "trained": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, in shards of four."""
    (tmp_path / "in").mkdir()
    for index in range(10):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(b"x")
    return tmp_path


def spec_of(tmp_path: Path, **overrides: object) -> JobSpec:
    flags = {name.replace("__", "."): value for name, value in overrides.items()}
    paths = {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out")}
    return load_spec(None, {**paths, "model.preset": "htc_r50_fpn", "compute.shard_images": 4, **flags})


def begin(
    tmp_path: Path, *, hours: int = 0, run: str | None = None, fresh: bool = False, **overrides: object
) -> RunHandle:
    moment = NOON + timedelta(hours=hours)
    return open_run(spec_of(tmp_path, **overrides), FINGERPRINT, Storage(), run=run, fresh=fresh, now=moment)


def commit(run: RunHandle, index: int) -> None:
    rows = [build_image_row(ref, shard=index, model="m") for ref in run.read_shard(index).images]
    commit_shard(Storage(), run.output_uri, run.name, index, rows, [])


def test_a_new_run_is_named_by_time_and_planned(folder: Path) -> None:
    run = begin(folder)
    assert (run.name, run.state, run.image_count, run.shard_count) == ("run-20250601-120000", "new", 10, 3)
    assert run.todo() == [0, 1, 2]
    assert [len(run.read_shard(index).images) for index in range(3)] == [4, 4, 2]
    assert begin(folder, fresh=True, name="nightly").name == "nightly-20250601-120000"


def test_shards_are_handed_out_once_and_committed_ones_never(folder: Path) -> None:
    commit(begin(folder), 1)
    run = begin(folder, hours=1)
    assert (run.is_planned, run.take_new_shards(), run.take_new_shards()) == (True, [0, 2], [])


def test_the_record_has_spec_model_and_versions(folder: Path) -> None:
    run = begin(folder)
    content = json.loads((folder / "out/runs" / run.name / "run.json").read_text())
    assert content["spec"]["model"]["preset"] == "htc_r50_fpn"
    assert content["fingerprint"] == FINGERPRINT
    assert content["manifest"]["image_count"] == 10
    assert content["created"] == "2025-06-01T12:00:00+00:00"
    assert {"python", "torch", "ray", "pyarrow"} <= content["versions"].keys()


def test_the_same_command_resumes_and_then_has_nothing_to_do(folder: Path) -> None:
    commit(begin(folder), 1)
    (folder / "in" / "late.jpg").write_bytes(b"the manifest is frozen")
    again = begin(folder, hours=1, compute__workers=7, compute__batch_size=2, retry__max_attempts=9)
    assert (again.name, again.state, again.todo()) == ("run-20250601-120000", "resumed", [0, 2])
    for index in again.todo():
        commit(again, index)
    done = begin(folder, hours=2)
    assert (done.state, done.todo(), done.image_count) == ("complete", [], 10)


def test_the_newest_run_is_resumed(folder: Path) -> None:
    names = [begin(folder, hours=hours, fresh=True, name=name).name for hours, name in enumerate(["z", "a"])]
    assert begin(folder, hours=5).name == names[1]
    assert begin(folder, hours=5, run=names[0]).name == names[0]
    assert begin(folder, hours=5, run="mine").state == "new"
    assert begin(folder, hours=6, run="mine").state == "resumed"


def test_two_fresh_runs_of_one_second_have_two_names(folder: Path) -> None:
    assert [begin(folder, fresh=True).name for _ in range(3)] == [
        "run-20250601-120000",
        "run-20250601-120000-2",
        "run-20250601-120000-3",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__score_threshold": 0.3}, "- model.score_threshold: 0.05 then, 0.3 now"),
        ({"model__preset": "htc_r101_fpn"}, "- model.preset: htc_r50_fpn then, htc_r101_fpn now"),
        ({"compute__shard_images": 5}, "- compute.shard_images: 4 then, 5 now"),
        ({"input__limit": 3}, "- input.limit: None then, 3 now"),
        ({"images__max_pixels": 9}, "- images.max_pixels: 178956970 then, 9 now"),
    ],
)
def test_another_spec_is_refused_with_the_keys_that_differ(
    folder: Path, overrides: dict[str, object], words: str
) -> None:
    begin(folder)
    with pytest.raises(RunMismatchError) as caught:
        begin(folder, hours=1, **overrides)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [words]
    assert "--fresh" in lines[-1]
    assert begin(folder, hours=1, fresh=True, **overrides).state == "new"


def test_other_weights_are_refused_and_the_same_weights_elsewhere_are_not(folder: Path) -> None:
    begin(folder)
    other = {**FINGERPRINT, "weights_sha256": "b" * 64}
    with pytest.raises(RunMismatchError, match="weights_sha256: aaaaaaaaaaaa… then, bbbbbbbbbbbb… now"):
        open_run(spec_of(folder), other, Storage())
    assert begin(folder, model__weights="/moved/weights.pth").state == "resumed"


def test_a_run_that_died_before_its_record_was_written_is_planned_again(folder: Path) -> None:
    class Dies(Storage):
        def write(self, uri: str, payload: bytes) -> None:
            if uri.endswith("run.json"):
                raise StorageError("power cut")
            super().write(uri, payload)

    with pytest.raises(StorageError):
        open_run(spec_of(folder), FINGERPRINT, Dies(), run="mine", now=NOON)
    (folder / "in" / "0.jpg").unlink()
    run = begin(folder, run="mine")
    assert (run.state, run.image_count) == ("new", 9)
    assert len([ref for index in run.todo() for ref in run.read_shard(index).images]) == 9


def test_an_output_with_foreign_files_is_refused(folder: Path) -> None:
    with pytest.raises(OutputOccupiedError, match=r"0\.jpg"):
        begin(folder, output__uri=str(folder / "in"))
    with pytest.raises(OutputOccupiedError, match="is a file"):
        begin(folder, output__uri=str(folder / "in/0.jpg"))
    assert sorted(path.name for path in (folder / "in").iterdir()) == [f"{index}.jpg" for index in range(10)]
    (folder / "out").mkdir()
    assert begin(folder).state == "new"
    (folder / "out/overlays").mkdir()
    (folder / "out/overlays/1.png").touch()
    assert begin(folder).state == "resumed"


def test_parts_without_a_record_do_not_count_as_done(folder: Path) -> None:
    run = begin(folder, run="mine")
    commit(run, 0)
    begin(folder, run="other")
    (folder / "out/runs/mine/run.json").unlink()
    with pytest.raises(OutputOccupiedError, match="mine"):
        begin(folder, run="mine")


def test_fresh_with_a_name_that_exists_and_bad_names_are_refused(folder: Path) -> None:
    begin(folder, run="mine")
    with pytest.raises(SpecError, match="leave out --fresh"):
        begin(folder, run="mine", fresh=True)
    for name in ("a/b", "../x", "", ".hidden", "a=b", "a b"):
        with pytest.raises(SpecError, match="letters, digits"):
            begin(folder, run=name)


def test_an_empty_input_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError):
        begin(tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_summary_is_kept_and_replaced(folder: Path) -> None:
    run = begin(folder)
    assert run.read_summary() is None
    run.write_summary({"status": "interrupted"})
    run.write_summary({"status": "complete", "reasons": {"caf\udce9": 1}})
    assert run.read_summary() == {"status": "complete", "reasons": {"caf\udce9": 1}}


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[]", "JSON object"), ('{"schema_version": 99}', "later version"), ("{}", "has no")],
)
def test_a_damaged_record_is_named(folder: Path, content: str, words: str) -> None:
    run = begin(folder)
    (folder / "out/runs" / run.name / "run.json").write_text(content)
    with pytest.raises(StorageError, match=words):
        begin(folder)


def test_runs_are_begun_and_resumed_on_a_remote_store(folder: Path) -> None:
    run = begin(folder, output__uri="memory://runs-test/out", compute__shard_images=6)
    commit(run, 0)
    again = begin(folder, hours=1, output__uri="memory://runs-test/out", compute__shard_images=6)
    assert (again.state, again.todo()) == ("resumed", [1])
