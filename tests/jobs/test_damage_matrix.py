"""Every kind of file of an output, damaged in every way, under every command: an exit code and one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_runs import finish_run, write_inputs

from jobs import cli
from pipeline.lease import take_lease
from pipeline.storage import Storage

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


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", FILES)
def test_every_command_ends_in_words(sound: Path, tmp_path: Path, htc: Htc, kind: str, harm: str) -> None:
    output = damaged_copy(sound, tmp_path, kind, harm)
    for command in commands(sound, tmp_path, output):
        code, told = htc(*command)
        assert code in (0, 1, 2), (command, told)
        assert "Unexpected" not in told, (command, told)
        assert "Traceback" not in told, (command, told)
        if " is damaged: " in told and command[0] != "doctor":
            assert Path(FILES[kind]).name in told, (command, told)
            assert f"htc doctor {output}" in told, (command, told)
