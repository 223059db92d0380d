"""Thumbnails with things and stuff, where a run has panoptic segments."""

from pathlib import Path

import numpy as np
import pytest

from jobs.results.drawing import stuff_colour
from tests.jobs.results.browse.conftest import OpenApp
from tests.jobs.results.browse.test_pages import links_in, pixels_of
from tests.support.builders.panoptic_runs import panoptic_run

FOUND = {"a.png": ["tttt", "tddt"]}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    panoptic_run(folder, FOUND, {"a.png": ["t"]})
    return folder / "out"


def test_thumbnails_show_stuff_when_it_is_chosen(open_app: OpenApp, output: Path) -> None:
    client = open_app(output)
    page = client.get("/").text
    assert "Things and stuff" in page
    (plain,) = links_in(client.get("/?masks=0").text, "/picture")
    (instances,) = links_in(page, "/picture")
    (segments,) = links_in(client.get("/?map=1").text, "/picture")
    first, second, third = (pixels_of(client.get(address).content) for address in (plain, instances, segments))
    corner = slice(0, first.shape[0] // 3)
    # Without the choice the tree above the dog is not drawn on; with it, it is tinted.
    assert np.abs(first[corner] - second[corner]).mean() < 3
    expected = first * 0.4 + np.array(stuff_colour("tree")) * 0.6
    assert np.abs(third[corner] - expected[corner]).mean() < 6


def test_a_run_without_segments_has_no_such_choice(open_app: OpenApp, tmp_path: Path) -> None:
    panoptic_run(tmp_path, FOUND, {"a.png": ["t"]}, tables=())
    client = open_app(tmp_path / "out")
    assert "Things and stuff" not in client.get("/").text
    # An address from elsewhere shows instances.
    pictures = [links_in(client.get(address).text, "/picture")[0] for address in ("/", "/?map=1")]
    first, second = (pixels_of(client.get(address).content) for address in pictures)
    assert (first == second).all()
