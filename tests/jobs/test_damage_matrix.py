"""Every kind of file of an output, damaged in every way, under every command: an exit code and one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_runs import finish_run, write_inputs

from jobs import cli
from pipeline.lease import take_lease
from pipeline.storage import Storage
from pipeline.tables import open_results

Htc = Callable[..., tuple[int, str]]
FILES = {
    "images": "images/run=second/part-00001.parquet",
    "instances": "instances/run=second/part-00001.parquet",
    "deletions": "deletions/run=second/part-00000.parquet",
    "manifest": "runs/second/manifest/part-00000.parquet",
    "record": "runs/second/run.json",
    "summary": "runs/second/summary.json",
    "progress": "runs/second/progress.json",
    "lease": "runs/second/lease.json",
}
HARMS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xffPAR1 {" * 40),
    "deleted": lambda path: path.unlink(),
    "other": lambda path: path.write_bytes(b"[]"),
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full run and an incremental one that found an image deleted, both complete; a driver's leavings."""
    root = tmp_path_factory.mktemp("sound")
    images = Path(write_inputs(root / "in", 6))
    finish_run(str(images), str(root / "out"), "first")
    (images / "0000.jpg").unlink()
    for number in range(4):
        (images / f"1{number}.jpg").write_bytes(b"y")
    finish_run(str(images), str(root / "out"), "second", night=1, mode="incremental")
    assert all((root / "out" / name).exists() for kind, name in FILES.items() if kind not in ("progress", "lease"))
    (root / "out/runs/second/progress.json").write_text("{}")
    return root


@pytest.fixture
def htc(capsys: pytest.CaptureFixture[str]) -> Htc:
    """Type a command; returns its exit code and what it said."""

    def type_it(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main(list(arguments))
        told = capsys.readouterr()
        return int(leaving.value.code or 0), told.out + told.err

    return type_it


def damaged_copy(sound: Path, folder: Path, kind: str, harm: str) -> Path:
    output = folder / "out"
    shutil.copytree(sound / "out", output)
    if kind == "lease":
        lease = take_lease(Storage(), str(output), "second")
        content = Path(output, FILES["lease"]).read_bytes()
        lease.release()
        Path(output, FILES["lease"]).write_bytes(content)
    HARMS[harm](output / FILES[kind])
    return output


def commands(sound: Path, folder: Path, output: Path) -> list[list[str]]:
    out, run = str(output), ["--run", "second"]
    incremental = [str(sound / "in"), out, "--incremental", "--model", "htc_r50_fpn", "--weights", "untrained"]
    truth = folder / "truth.json"
    truth.write_text(
        '{"images": [{"id": 1, "file_name": "10.jpg", "width": 5, "height": 4}], "annotations": [],'
        ' "categories": [{"id": 1, "name": "person"}]}'
    )
    return [
        ["runs", out],
        ["runs", out, "--json"],
        ["prune", out, "--keep-last", "1"],
        ["query", out, "SELECT count(score) FROM instances, (SELECT count(status) FROM images)"],
        ["query", out, "SELECT count(uri) FROM current"],
        ["show", out, "--to", str(folder / "png"), *run],
        ["evaluate", out, str(truth), *run],
        ["status", out, *run],
        ["publish", out, "--iceberg", f"sqlite:///{folder}/catalog.db"],
        ["compact", out],
        ["plan", *incremental, "--no-model"],
        ["plan", *incremental, *run, "--no-model"],
        ["doctor", out],
        ["doctor", out, "--json"],
    ]


# All commands over two harms; those that read the file in the most ways over the others, which take the same path.
WHOLE = ("truncated", "deleted")
FEW = ("runs", "query", "status", "doctor")


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", FILES)
def test_every_command_ends_in_words(sound: Path, tmp_path: Path, htc: Htc, kind: str, harm: str) -> None:
    output = damaged_copy(sound, tmp_path, kind, harm)
    for command in commands(sound, tmp_path, output):
        if harm not in WHOLE and (command[0] not in FEW or "--json" in command):
            continue
        code, told = htc(*command)
        assert code in (0, 1, 2), (command, told)
        assert "Unexpected" not in told, (command, told)
        assert "Traceback" not in told, (command, told)
        if " is damaged: " in told and command[0] != "doctor":
            assert Path(FILES[kind]).name in told, (command, told)
            assert f"htc doctor {output}" in told, (command, told)


@pytest.mark.parametrize("harm", ["truncated", "deleted"])
@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("images", ["prune", "OUT", "--keep-last", "1"]),
        ("images", ["query", "OUT", "SELECT count(status) FROM images"]),
        ("instances", ["query", "OUT", "SELECT count(score) FROM instances"]),
        ("deletions", ["runs", "OUT"]),
        ("record", ["status", "OUT", "--run", "second"]),
        ("record", ["prune", "OUT", "--keep-last", "1"]),
    ],
)
def test_who_needs_a_damaged_file_names_it(
    sound: Path, tmp_path: Path, htc: Htc, *, kind: str, harm: str, command: list[str]
) -> None:
    if harm == "deleted" and kind in ("images", "deletions"):
        # A shard without its images part is one that is not done, and a run without records has deleted nothing.
        return
    output = damaged_copy(sound, tmp_path, kind, harm)
    code, told = htc(*(str(output) if word == "OUT" else word for word in command))
    assert code == 1
    assert str(output / FILES[kind]) in told
    assert f"htc doctor {output}" in told


@pytest.mark.parametrize("kind", ["summary", "progress", "lease"])
def test_derived_files_block_nothing(sound: Path, tmp_path: Path, htc: Htc, kind: str) -> None:
    output = damaged_copy(sound, tmp_path, kind, "truncated")
    for command in (["runs", str(output)], ["status", str(output)], ["compact", str(output)]):
        assert htc(*command)[0] == 0, command
    assert FILES[kind] in htc("doctor", str(output))[1]


def test_other_runs_are_read_beside_a_damaged_record(sound: Path, tmp_path: Path, htc: Htc) -> None:
    output = damaged_copy(sound, tmp_path, "record", "truncated")
    code, told = htc("query", str(output), "SELECT count(*) AS n FROM images", "--format", "csv")
    assert (code, told.splitlines()[:2]) == (0, ["n", "6"])
    assert "runs/second/run.json is damaged" in told


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("manifest", "lease")])
def test_repaired_nothing_is_found_and_no_row_is_lost(
    sound: Path, tmp_path: Path, htc: Htc, kind: str, harm: str
) -> None:
    output = damaged_copy(sound, tmp_path, kind, harm)
    if (kind, harm) != ("progress", "deleted"):
        assert htc("doctor", str(output))[0] == 1
    assert htc("doctor", str(output), "--repair")[0] == 0
    code, told = htc("doctor", str(output))
    assert (code, "Nothing is damaged" in told) == (0, True), told
    sound_rows, rows = rows_of(sound / "out"), rows_of(output)
    if kind in ("images", "instances"):
        # The shard is to be done again, and what could be read of it is kept.
        assert rows == [row for row in sound_rows if row[1:] != ("second", 1)]
        kept = list(output.glob("quarantine/*/images/run=second/part-00001.parquet"))
        assert len(kept) == (0 if (kind, harm) == ("images", "deleted") else 1)
    else:
        assert rows == sound_rows


def rows_of(output: Path) -> list[tuple[str, str, int]]:
    table = open_results(str(output)).images(columns=["uri", "shard"])
    return sorted((row["uri"], row["run"], row["shard"]) for row in table.to_pylist())


def test_a_damaged_manifest_is_found_and_not_repaired(sound: Path, tmp_path: Path, htc: Htc) -> None:
    output = damaged_copy(sound, tmp_path, "manifest", "truncated")
    before = (output / FILES["manifest"]).read_bytes()
    code, told = htc("doctor", str(output), "--repair")
    assert (code, "restore it from a copy" in told) == (1, True)
    assert (output / FILES["manifest"]).read_bytes() == before
