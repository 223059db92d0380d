"""Fixtures: a run of three images whose panoptic quality is worked out by hand."""

from pathlib import Path

import pytest

from tests.support.builders.panoptic_runs import PanopticRun, panoptic_run

FOUND = {
    "a.png": ["ssss", "ss..", "ddtt", "ddtt"],
    "b.png": ["ssssss", "pppppp", "gggggg"],
    "c.png": ["ddds", "gggg"],
}
TRUTH = {
    # As `test_a_match_a_miss_and_a_wrong_one`: sky 6/8, a dog found, a dog missed, a wrong tree.
    "a.png": ["ssss", "ssss", "ddee", "ddee"],
    # Sky and grass are right; the person's 4 letters are found with 2 void ones: IoU 4 / (4 + 6 - 4 - 2) = 1.
    "b.png": ["ssssss", "pppp..", "gggggg"],
    # A crowd of dogs: the dog on it is neither right nor wrong. Sky and grass are right.
    "c.png": ["cccs", "gggg"],
}
# Sky: IoUs 6/8, 1, 1. Dog: one right, one missed. Tree: one wrong. Person: right. Grass: two right.
QUALITIES = {
    "sky-other": ((6 / 8 + 2) / 3, (6 / 8 + 2) / 3, 1.0),
    "dog": (1 / 1.5, 1.0, 1 / 1.5),
    "tree": (0.0, 0.0, 0.0),
    "person": (1.0, 1.0, 1.0),
    "grass": (1.0, 1.0, 1.0),
}


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> PanopticRun:
    """A run that no test changes."""
    return panoptic_run(tmp_path_factory.mktemp("panoptic"), FOUND, TRUTH)


@pytest.fixture
def own_run(tmp_path: Path) -> PanopticRun:
    """A run that the test may change."""
    return panoptic_run(tmp_path, FOUND, TRUTH)
