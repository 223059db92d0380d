"""Each reader lists the parts again when they are compacted between listing and reading."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from jobs.results.image_lookup import ImageLookup, Wanted
from jobs.results.query import query_output
from pipeline.job_spec.job import load_spec
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.doctor.examine import examine_output
from pipeline.maintenance.needed_runs import needed_runs
from pipeline.output.results import Results, open_results
from pipeline.planning.incremental import IncrementalPlan, NewRun
from pipeline.planning.where_filter import select_image_ids
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import FINGERPRINT, finish_run, tables_of, write_inputs


def compact(output: str) -> None:
    compact_run(Storage(), output, "r", target_bytes=1 << 30, check=lambda: None)


def listed_and_compacted(output: str) -> Results:
    """Results that have listed the parts, which are compacted then."""
    results = open_results(output)
    results.image_parts()
    compact(output)
    return results


@pytest.fixture
def output(tmp_path: Path) -> str:
    finish_run(write_inputs(tmp_path / "in", 8), str(tmp_path / "out"), "r")
    return str(tmp_path / "out")


READERS: dict[str, Callable[[Results], object]] = {
    "images": lambda results: len(results.images()) == 8,
    "instances": lambda results: len(results.instances("r")) == 16,
    "needed": lambda results: needed_runs(results) == {"r"},
    "where": lambda results: len(select_image_ids(results, "SELECT uri FROM images")) == 8,
    "sample": lambda results: len(ImageLookup(results, "r").choose(Wanted(), 8, is_spread=True)) == 8,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_lists_the_parts_again(output: str, reader: str) -> None:
    assert READERS[reader](listed_and_compacted(output))


def test_the_masks_of_an_image_are_found_after_a_compaction(output: str) -> None:
    images = ImageLookup(open_results(output), "r")
    (image, *_) = images.choose(Wanted(), 8, is_spread=False)
    compact(output)
    assert [row["instance"] for row in images.instances(image)] == [0, 1]


def test_deletion_records_are_written_after_a_compaction(tmp_path: Path, output: str) -> None:
    overrides: dict[str, object] = {"input.uri": str(tmp_path / "in"), "output.uri": output}
    overrides |= {"select.mode": "incremental", "select.max_deleted_share": 1.0}
    spec = load_spec(None, {**overrides, "model.preset": "htc_r50_fpn", "model.weights": "untrained"})
    new_run = NewRun("2027", "next", FINGERPRINT, spec.identity())
    incremental = IncrementalPlan(spec.input, spec.select, Storage(), output, run=new_run)
    compact(output)
    assert incremental.record_deletions(Event()) == 8


def test_a_query_and_the_doctor_see_all_rows(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tables_of(output)
    compact(output)
    query_output(output, "SELECT count(*) AS n FROM instances", output_format="csv")
    assert capsys.readouterr().out == "n\n16\n"
    assert examine_output(Storage(), output).findings == ()
    assert tables_of(output) == before
