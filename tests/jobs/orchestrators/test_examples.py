"""The examples of docs/orchestrators.md, run by Airflow's and Dagster's own harnesses.

Both bring some hundred packages, so that they are in environments of their own, which these variables name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import PROGRAMS, ROOT

pytestmark = pytest.mark.slow

FAKE_HTC = [sys.executable, str(PROGRAMS / "fake_htc.py")]
needs_airflow = pytest.mark.skipif(
    "HTC_AIRFLOW_PYTHON" not in os.environ, reason="HTC_AIRFLOW_PYTHON names no interpreter that has Apache Airflow"
)
needs_dagster = pytest.mark.skipif(
    "HTC_DAGSTER_PYTHON" not in os.environ, reason="HTC_DAGSTER_PYTHON names no interpreter that has Dagster"
)


def answer(interpreter: str, program: str, folder: Path, *arguments: str, **plan: Any) -> Any:
    """Run a program with the orchestrator's interpreter and a stand-in for `htc`; return what it found."""
    done = subprocess.run(
        [os.environ[interpreter], str(PROGRAMS / program), *arguments, json.dumps(FAKE_HTC), "/photos"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "FAKE_HTC": json.dumps(plan), "FAKE_HTC_CALLS": str(folder / "calls.jsonl")},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def specs(folder: Path) -> list[str]:
    calls = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    return [call["spec"] for call in calls if call["words"][0] == "run"]


@needs_airflow
@pytest.mark.parametrize(
    ("plan", "states"),
    [
        ({}, ("success", "success")),
        ({"exit": 3, "says": "3 images are new."}, ("success", "success")),
        ({"exit": 2, "says": "input.uri is wrong."}, ("failed", "failed")),
    ],
)
def test_airflow_runs_the_example(tmp_path: Path, plan: dict[str, Any], states: tuple[str, str]) -> None:
    found = answer("HTC_AIRFLOW_PYTHON", "airflow_step.py", tmp_path, str(tmp_path / "airflow"), **plan)
    assert (found["run"], found["task"]) == states
    # Three retries are allowed; one that cannot help is not made.
    (spec,) = specs(tmp_path)
    assert "/photos/photos/2026-11-20/" in spec
    if states[0] == "success":
        assert found["result"]["run"].startswith("segment-street-scenes-")
        assert found["result"].get("note") == plan.get("says")


@needs_dagster
@pytest.mark.parametrize(
    ("plan", "is_success", "retries"),
    [
        ({}, True, 0),
        ({"exit": 3, "says": "3 images are new."}, True, 0),
        ({"exit": 2, "says": "input.uri is wrong."}, False, 0),
        ({"exit": 1, "outcome": {"status": "incomplete"}, "says": "a shard is left"}, False, 3),
    ],
)
def test_dagster_materializes_the_example(tmp_path: Path, plan: dict[str, Any], is_success: bool, retries: int) -> None:
    found = answer("HTC_DAGSTER_PYTHON", "dagster_step.py", tmp_path, **plan)
    assert (found["success"], found["retries"]) == (is_success, retries)
    made = specs(tmp_path)
    assert len(made) == retries + 1
    assert "/photos/photos/2026-11-20/" in made[0]
    if is_success:
        (metadata,) = found["metadata"]
        assert (metadata["run"], metadata["dagster/row_count"]) == ("street_masks-2026-11-20", 4)
        assert metadata.get("note") == plan.get("says")
    else:
        assert plan["says"] in found["failure"][-1]


def test_the_page_is_about_files_that_exist() -> None:
    page = (ROOT / "docs" / "orchestrators.md").read_text()
    for module in ("airflow", "dagster"):
        assert f"from jobs.orchestrators import {module} as htc" in page
        assert (ROOT / "jobs" / "orchestrators" / f"{module}.py").is_file()
