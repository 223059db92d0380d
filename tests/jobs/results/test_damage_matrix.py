"""Every kind of file of an output, damaged in every way, with every command: an exit code and one message."""

import shutil
from pathlib import Path

import pytest

from jobs.maintenance.doctor import examine_and_report
from pipeline.maintenance.compaction import compact_run
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from tests.support.builders.damaged_outputs import (
    FILES,
    HARMS,
    MODEL,
    Htc,
    contents_of,
    damaged_copy,
    htc_of,
    rows_of,
    write_sound_output,
)

SPOILT = frozenset({"truncated", "empty", "garbage", "other"})
# The commands that need a kind of file; the others report the damage, if they read the file, and continue.
NEEDED = {
    "images": {"runs", "query", "prune", "evaluate", "show", "plan", "run", "compact"},
    "instances": {"query", "evaluate", "show", "compact"},
    "deletions": {"runs", "query", "prune", "plan", "run"},
    "manifest": {"show"},
    "record": {"runs", "status", "prune", "evaluate", "show", "plan", "run"},
    "summary": set[str](),
    "progress": set[str](),
    "lease": {"compact"},
}
MOST_READING = frozenset({"doctor", "runs", "status", "query", "plan", "run", "compact"})
# Other missing files are normal: a shard that is not done, a summary that is not written, a run without a lease.
NEEDED_TO_BE_THERE = frozenset({"instances", "deletions", "manifest", "record"})


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    write_sound_output(root)
    assert all((root / "out" / name).exists() for kind, name in FILES.items() if kind not in ("progress", "lease"))
    return root


@pytest.fixture
def htc(capsys: pytest.CaptureFixture[str]) -> Htc:
    return htc_of(capsys)


def commands(sound: Path, folder: Path, output: Path) -> list[list[str]]:
    """Return every command that reads an output, once; those that write to it come last."""
    out, run = str(output), ["--run", "second"]
    truth = folder / "truth.json"
    truth.write_text(
        '{"images": [{"id": 1, "file_name": "more-image-003.png", "width": 48, "height": 32}], "annotations": '
        '[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0, "segmentation": '
        '[[0, 0, 9, 0, 9, 9, 0, 9]]}], "categories": [{"id": 1, "name": "person"}]}'
    )
    tables = "SELECT (SELECT count(uri) FROM current), count(score), (SELECT count(status) FROM images) FROM instances"
    return [
        ["doctor", out],
        ["runs", out],
        ["status", out, *run],
        ["query", out, tables],
        ["prune", out, "--keep-last", "1"],
        ["evaluate", out, str(truth), *run],
        ["show", out, "--to", str(folder / "png"), *run, "--sample", "4"],
        ["plan", str(sound / "in"), out, *MODEL, "--incremental", "--no-model"],
        ["run", str(sound / "in"), out, *MODEL, "--incremental"],
        ["compact", out],
    ]


def more_commands(sound: Path, folder: Path, output: Path) -> list[list[str]]:
    """Return further ways to read an output; used with one kind of damage."""
    out, where = str(output), [str(sound / "in"), str(output), *MODEL]
    return [
        ["doctor", out, "--json"],
        ["runs", out, "--json"],
        ["plan", *where, "--incremental", "--run", "second", "--no-model"],
        ["plan", *where, "--run", "first", "--no-model"],
        ["run", *where, "--run", "first"],
        ["run", *where, "--incremental", "--run", "second"],
        ["publish", out, "--iceberg", f"sqlite:///{folder}/catalog.db"],
    ]


@pytest.mark.parametrize("kind", FILES)
def test_every_command_ends_with_a_message(sound: Path, tmp_path: Path, htc: Htc, kind: str) -> None:
    for harm in HARMS:
        # For Parquet, this is garbage again.
        if harm == "other" and FILES[kind].endswith(".parquet"):
            continue
        folder = tmp_path / harm
        output = damaged_copy(sound, folder, kind, harm)
        more = more_commands(sound, folder, output) if harm == "truncated" else []
        for command in [*commands(sound, folder, output), *more]:
            # Empty or garbage files take the same path as truncated ones, and few commands read derived files.
            is_like_another = harm in ("empty", "garbage", "other") or kind in ("summary", "progress", "lease")
            if harm != "truncated" and is_like_another and command[0] not in MOST_READING:
                continue
            code, printed = htc(*command)
            asked = (harm, command, code, printed)
            assert code in (0, 1, 2, 3), asked
            assert "Unexpected" not in printed, asked
            assert "Traceback" not in printed, asked
            is_spoilt = harm in SPOILT or (kind in NEEDED_TO_BE_THERE and harm in ("deleted", "folder"))
            if command not in more and is_spoilt and command[0] in NEEDED[kind]:
                assert code == 1, asked
                assert Path(FILES[kind]).name in printed, asked
            if command == ["doctor", str(output)]:
                assert code == (0 if harm == "deleted" and kind in ("progress", "lease") else 1), asked
            if command[0] != "doctor" and (" is damaged: " in printed or " is missing: " in printed):
                assert Path(FILES[kind]).name in printed, asked
                assert f"htc doctor {output}" in printed, asked


def test_damaged_derived_files_block_no_command(sound: Path, tmp_path: Path, htc: Htc) -> None:
    for kind in ("summary", "progress"):
        output = damaged_copy(sound, tmp_path / kind, kind, "truncated")
        assert [htc(name, str(output))[0] for name in ("runs", "status", "compact")] == [0, 0, 0]
        assert FILES[kind] in htc("doctor", str(output))[1]


def test_other_runs_are_read_beside_a_damaged_record(sound: Path, tmp_path: Path, htc: Htc) -> None:
    output = damaged_copy(sound, tmp_path, "record", "truncated")
    code, printed = htc("query", str(output), "SELECT count(*) AS n FROM images", "--format", "csv")
    assert (code, printed.splitlines()[:2]) == (0, ["n", "6"])
    assert "runs/second/run.json is damaged" in printed


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "manifest"])
def test_repaired_nothing_is_found_and_the_same_run_brings_back_every_row(
    sound: Path, tmp_path: Path, htc: Htc, kind: str
) -> None:
    is_redone = kind in ("images", "instances")
    for harm in ("truncated", "deleted", "folder"):
        output = damaged_copy(sound, tmp_path / harm, kind, harm)
        # As `htc doctor OUTPUT --repair`, without the minutes that a lease is watched.
        assert examine_and_report(str(output), is_repaired=True, sleep=lambda seconds: None) == 0, harm
        code, printed = htc("doctor", str(output))
        assert (code, "Nothing is damaged" in printed) == (0, True), (harm, printed)
        moved = {str(path.relative_to(output)).split("/", 2)[2] for path in output.glob("quarantine/*/*/*/*")}
        if harm == "folder" or (harm == "truncated" and kind not in ("progress", "lease")):
            assert FILES[kind] in moved, harm
        assert rows_of(output) == [
            row for row in rows_of(sound / "out") if not is_redone or row[1:] != ("second", 1)
        ], harm
        assert htc("run", str(sound / "in"), str(output), *MODEL, "--incremental", "--run", "second")[0] == 0, harm
        assert contents_of(str(output)) == contents_of(str(sound / "out")), harm


def test_two_damaged_runs_are_repaired_completely(sound: Path, tmp_path: Path, htc: Htc) -> None:
    output = Path(shutil.copytree(sound / "out", tmp_path / "out"))
    compact_run(Storage(), str(output), "first", target_bytes=1 << 30, check=lambda: None)
    for run, part in (("first", "parts-00000-00002.parquet"), ("second", "part-00000.parquet")):
        HARMS["truncated"](output / "images" / f"run={run}" / part)
        for name in ("run.json", "summary.json"):
            HARMS["truncated"](output / "runs" / run / name)
        shutil.copy(output / "instances" / f"run={run}" / part, output / "images" / f"run={run}/part-00077.parquet")
        shutil.copy(output / "instances" / f"run={run}" / part, output / "images" / f"{run}.parquet")
    HARMS["deleted"](output / "instances/run=second/part-00001.parquet")
    HARMS["garbage"](output / FILES["deletions"])
    assert htc("doctor", str(output))[0] == 1
    code, printed = htc("doctor", f"{output}/", "--repair")
    assert code == 0, printed
    assert "Nothing is damaged" in htc("doctor", str(output))[1]
    where = [str(sound / "in"), str(output), *MODEL]
    # One image of the first run is gone: it has a row, with the status missing.
    assert htc("run", *where, "--run", "first", "--max-errors", "9")[0] == 0
    assert htc("run", *where, "--run", "second", "--incremental")[0] == 0
    found, before = open_results(str(output)).images(), open_results(str(sound / "out")).images()
    assert sorted(found.column("uri").to_pylist()) == sorted(before.column("uri").to_pylist())
    statuses = dict(zip(found.column("uri").to_pylist(), found.column("status").to_pylist(), strict=True))
    gone = str(sound / "in" / "image-000.png")
    assert statuses == dict.fromkeys(statuses, "ok") | {gone: "missing"}
    assert "Nothing is damaged" in htc("doctor", str(output))[1]


def test_a_damaged_manifest_is_found_and_not_repaired(sound: Path, tmp_path: Path, htc: Htc) -> None:
    output = damaged_copy(sound, tmp_path, "manifest", "truncated")
    before = (output / FILES["manifest"]).read_bytes()
    (output / FILES["images"]).unlink()
    where = [str(sound / "in"), str(output), *MODEL]
    code, printed = htc("doctor", str(output), "--repair")
    assert (code, "restore it from a copy" in printed, "--fresh" in printed, "to do; the same" in printed) == (
        1,
        True,
        True,
        False,
    )
    assert (output / FILES["manifest"]).read_bytes() == before
    # Neither plan nor run reports that it resumes the run; and the way out that the doctor names works.
    for command in (["plan", *where, "--incremental", "--no-model"], ["run", *where, "--incremental"]):
        code, printed = htc(*command)
        assert (code, f"htc doctor {output}" in printed) == (1, True), printed
    assert htc("run", *where, "--incremental", "--fresh", "--run", "third")[0] == 0
    assert htc("query", str(output), "SELECT count(*) AS n FROM current", "--format", "csv")[1].splitlines()[:2] == [
        "n",
        "9",
    ]
