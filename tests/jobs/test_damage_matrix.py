"""Every kind of file of an output, damaged in every way, under every command: an exit code and one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_outputs import (
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

from jobs.doctor import examine_and_report

SPOILT = ("truncated", "empty", "garbage", "other")
# What each command cannot do without; the others report the file, if they read it at all, and go on.
NEEDED = {
    "images": {"query", "prune", "plan", "run", "compact", "runs", "publish", "evaluate", "show"},
    "instances": {"query", "compact", "publish", "evaluate", "show"},
    "deletions": {"query", "prune", "plan", "run", "runs"},
    "manifest": set[str](),
    "record": {"runs", "status", "prune", "plan", "run", "evaluate", "show"},
    "summary": set[str](),
    "progress": set[str](),
    "lease": {"compact", "publish"},
}


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
    """Every command that reads an output, once; those that write to it come last."""
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
    """The other ways that some of them read an output; tried with one kind of damage."""
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
def test_every_command_ends_in_words(sound: Path, tmp_path: Path, htc: Htc, kind: str) -> None:
    for harm in HARMS:
        if harm == "other" and FILES[kind].endswith(".parquet"):
            continue
        folder = tmp_path / harm
        output = damaged_copy(sound, folder, kind, harm)
        more = more_commands(sound, folder, output) if harm == "truncated" else []
        for command in [*more, *commands(sound, folder, output)]:
            code, told = htc(*command)
            asked = (harm, command, code, told)
            print("NEED", kind, harm, command[0], code)
            assert code in (0, 1, 2, 3), asked
            assert "Unexpected" not in told, asked
            assert "Traceback" not in told, asked
            if command[0] != "doctor" and (" is damaged: " in told or " is missing: " in told):
                assert Path(FILES[kind]).name in told, asked
                assert f"htc doctor {output}" in told, asked
