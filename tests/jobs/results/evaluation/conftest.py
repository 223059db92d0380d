"""Fixtures: a run with detections near annotated objects."""

from pathlib import Path

import pytest

from tests.support.builders.judged_runs import JudgedRun, judged_run


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> JudgedRun:
    """A run that no test changes."""
    return judged_run(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def own_run(tmp_path: Path) -> JudgedRun:
    """A small run that the test may change."""
    return judged_run(tmp_path, images=8, seed=1)
