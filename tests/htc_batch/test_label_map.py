"""Semantic and panoptic maps in Python."""

from pathlib import Path

import pytest

import htc_batch
from pipeline.errors import InputError
from pipeline.job_spec.map_tables import MAP_TABLES
from tests.support.builders.finished_runs import finish_run, write_inputs


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A complete run of four images with maps."""
    finish_run(write_inputs(tmp_path / "in", 4), str(tmp_path / "out"), "r", maps=MAP_TABLES)
    return tmp_path / "out"


def test_a_notebook_reads_maps_as_arrays(output: Path) -> None:
    results = htc_batch.open(str(output))
    uri = results.images().column("uri")[0].as_py()
    seen = results.semantic_map(uri)
    assert (len(seen), seen.names, seen.areas.tolist()) == (2, ["person", "sky-other"], [4, 16])
    assert (seen.labels() == [[157] * 5, [157, 1, 1, 157, 157], [157, 1, 1, 157, 157], [157] * 5]).all()
    assert (seen[0] ^ seen[-1]).all()
    segments = results.panoptic_map(uri, "current")
    assert (segments.names, segments.labels().max(), segments.labels().sum()) == (["person"], 1, 4)
    assert repr(segments) == f"<LabelMap: 1 segment of {uri}, 5 x 4 pixels>"
    assert results.semantic(image=uri).num_rows == 2
    assert results.panoptic("latest", ["segment"], image=uri).to_pylist() == [{"segment": 0, "run": "r"}]
    assert len(results.to_pandas("semantic", run="current")) == 8
    with pytest.raises(InputError, match="no column klass; did you mean class"):
        results.semantic(columns=["klass"])


def test_a_run_that_was_not_asked_says_so(tmp_path: Path) -> None:
    finish_run(write_inputs(tmp_path / "in", 2), str(tmp_path / "out"), "r")
    results = htc_batch.open(str(tmp_path / "out"))
    assert results.semantic().num_rows == 0
    with pytest.raises(InputError, match="--semantic"):
        results.semantic_map(results.images().column("uri")[0].as_py())
