"""A folder in which the documents' commands are run: photos, and the output of one real run over them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.browser import browser, pages
from tests.support.documents import blocks_of, commands_in
from tests.support.paths import ROOT

__all__ = ["browser", "pages"]

# The folder is made by the tutorial's own first commands.
TUTORIAL = ROOT / "docs" / "tutorial.md"
OPENING = [
    command
    for block in blocks_of(TUTORIAL)
    if block.test == "tests/documents/conftest.py"
    for command in commands_in(block.text, block.language)
]
JOB = """\
input: {uri: photos/}
output: {uri: masks/}
"""


def shell_environment(programs: Path) -> dict[str, str]:
    """The environment of a command: `htc` and `python` of this checkout, history and caches in a folder of the test's.

    Args:
        programs: a folder in which `htc` and `python` are put.
    """
    programs.mkdir(exist_ok=True)
    for name, words in {"htc": "-m jobs", "python": ""}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    home = programs.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HTC_HOME": str(home / "htc"),
        "COLUMNS": "120",
    }


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of commands of the documents."""
    return shell_environment(tmp_path_factory.mktemp("documents") / "bin")


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The site as `make docs` builds it: its folder, and what came of the build."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return folder, subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Callable[[], Path]:
    """Give the folder as it was made: the same path each time, since tables hold the paths of images.

    It holds photos/ (40 bundled ones), masks/ (their run), job.yaml (of that run), truth.json (COCO annotations of 20
    of them) and examples/.
    """
    top = tmp_path_factory.mktemp("pages")
    folder, kept = top / "work", top / "kept"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "job.yaml").write_text(JOB)
    for command in OPENING:
        words = ["bash", "-c", command]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert {"masks", "photos", "truth.json"} <= {path.name for path in folder.iterdir()}
    shutil.copytree(folder, kept, symlinks=True)

    def refresh() -> Path:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)
        return folder

    return refresh
