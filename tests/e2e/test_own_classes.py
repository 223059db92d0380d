"""docs/own_classes.md: its commands, from labelme files to the scores of a run with the trained weights."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "own_classes.md"


def commands() -> list[list[str]]:
    """The words of each command of the page's first block."""
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_the_page_leads_from_annotations_to_scores() -> None:
    assert [words[1] for words in commands()] == ["dataset", "dataset", "dataset", "train", "train", "run", "evaluate"]


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for words in commands():
        assert words[0] == "htc"
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    # The last one scores both classes.
    assert re.search(r"^ AP  .* 2  ", done.stdout, re.MULTILINE)
    assert "detections of person, skis" in done.stdout
    assert (tmp_path / "build" / "own_sheets" / "contact-01.jpg").exists()
    # The same check, from Python.
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block[1], names)
    assert names["report"].has_errors is False
