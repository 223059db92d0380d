"""docs/compare.md: its commands, from two runs to pictures, and its Python."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "compare.md"


def block(kind: str) -> str:
    """The page's first block of a kind: "sh" or "python"."""
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def commands() -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block("sh").splitlines()]


def test_the_page_leads_from_runs_to_their_comparison() -> None:
    assert [words[1] for words in commands()] == ["run", "run", "diff", "diff", "diff", "drift"]


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def execute(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    printed = []
    for words in commands():
        done = execute("-m", "jobs", *words[1:])
        # How much two precisions differ depends on the processor.
        allowed = {0, 1} if "--fail-over" in words else {0}
        assert done.returncode in allowed, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    assert "16   compared" in printed[2]
    assert re.search(r"of \d+ instances that count changed", printed[3])
    assert "2.00% that --fail-over allows" in printed[4]
    assert printed[5].count("16 ok images, not compared; 30 are needed") == 2
    folder = tmp_path / "build" / "compare_pictures"
    assert {"diff.json", "images.parquet", "instances.parquet"} <= {path.name for path in folder.iterdir()}
    done = execute("-c", block("python"))
    assert done.returncode == 0, done.stderr
    assert "class_changed" in done.stdout
