"""No command imports from its current folder; the caller's own model is found nevertheless."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fakes.models import write_images
from tests.support.paths import ROOT

# Modules that this program and its libraries import, as a user may have named a script or a folder.
FILES = ("pipeline", "htc_model", "torch", "numpy", "pyarrow", "types", "random", "typing", "queue", "utils")
HTC = "import sys; from jobs.cli.program import main; main(sys.argv[1:])"
TRAP = "raise ImportError('imported from the current folder: ' + __name__)\n"
OWN_MODEL = """
import sys
sys.path.insert(0, {tests!r})
from tests.support.fakes.models import LoadFake
def load(section):
    return LoadFake()(section)
"""
OWN_SCRIPT = """
import sys
from own_model import load
from pipeline.job_spec.job import load_spec
from pipeline.driver.run_job import run
from pipeline.driver.progress import SilentProgress
if __name__ == "__main__":
    sys.exit(run(load_spec("job.json"), progress=SilentProgress(), load_model=load).exit_code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photos and a job, in which other files have the names of modules of this program."""
    write_images(tmp_path / "in", 2)
    compute = {"workers": 1, "shard_images": 4}
    spec = {"input": {"uri": "in"}, "output": {"uri": "out"}, "compute": compute}
    spec["model"] = {"preset": "htc_lite0_fpn", "weights": "untrained", "max_detections": 1}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    return tmp_path


def set_traps(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / f"{name}.py").write_text(TRAP)


def run_in(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    root = str(ROOT)
    # After everything else, like an installed package.
    environment["PYTHONPATH"] = root
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_workers_import_nothing_from_the_current_folder(folder: Path) -> None:
    set_traps(folder, (*FILES, "jobs"))
    (folder / "ray").mkdir()
    (folder / "PIL").mkdir()
    done = run_in(folder, "-P", "-c", HTC, "run", "--spec", "job.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("names", [FILES[:5], ("pipeline",)])
def test_python_m_jobs_imports_nothing_from_the_current_folder(folder: Path, names: tuple[str, ...]) -> None:
    set_traps(folder, names)
    done = run_in(folder, "-m", "jobs", "plan", "--spec", "job.json", "--no-model")
    assert done.returncode == 0, done.stderr
    assert "2 images" in done.stdout


@pytest.mark.slow
def test_the_callers_own_model_is_found_after_everything_else(folder: Path) -> None:
    (folder / "own_model.py").write_text(OWN_MODEL.format(tests=str(ROOT)))
    (folder / "script.py").write_text(OWN_SCRIPT)
    # Scripts search their own folder first: only modules that a worker alone imports can be hidden here.
    set_traps(folder, ("jobs",))
    done = run_in(folder, "script.py")
    assert done.returncode == 0, done.stderr
