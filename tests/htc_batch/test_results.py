"""`htc_batch.open`: rows, data frames, masks and SQL of an output, as a notebook asks for them."""

import gc
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

import htc_batch
from pipeline.maintenance.compaction import compact_run
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from tests.support.builders.incremental_runs import WrittenRun, write_runs
from tests.support.builders.outputs import Output, ellipse_mask, make_output_folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return make_output_folder(tmp_path_factory.mktemp("door"))


@pytest.fixture
def results(output: Output) -> htc_batch.Results:
    return htc_batch.open(output.uri)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs: `a` is found again in the last one, `b` is deleted in it, `c` fails in it."""
    folder = tmp_path_factory.mktemp("nights") / "out"
    runs = [
        WrittenRun({"a": "ok", "b": "ok", "c": "ok"}),
        WrittenRun({"d": "ok"}),
        WrittenRun({"a": "ok", "c": "failed"}, deleted=("b",)),
    ]
    write_runs(folder, runs)
    return str(folder)


def test_without_a_choice_it_reads_what_it_always_read(output: Output, results: htc_batch.Results) -> None:
    tables = open_results(output.uri)
    assert results.instances().equals(tables.instances())
    assert results.images("night", ["uri"]).equals(tables.images("night", ["uri"]))


def test_rows_are_chosen_by_category_score_and_image(results: htc_batch.Results) -> None:
    every = results.instances()
    assert results.instances(category="dog").to_pylist() == [
        row for row in every.to_pylist() if row["category"] == "dog"
    ]
    assert results.instances(category=["dog", 1], min_score=0.5).to_pylist() == [
        row for row in every.to_pylist() if row["score"] >= 0.5
    ]
    assert len(results.instances(category=[])) == len(results.instances(category="cat")) == 0
    uri = every["uri"][3].as_py()
    chosen = results.instances("latest", ["instance", "score", "mask"], image=uri, min_score=0.5)
    assert chosen.schema.names == ["instance", "score", "mask", "run"]
    assert chosen.to_pylist() == [
        {name: row[name] for name in chosen.schema.names}
        for row in every.to_pylist()
        if row["uri"] == uri and row["score"] >= 0.5
    ]
    # The types are those of the table, also where nothing is chosen.
    for table in (results.instances(min_score=0.5), results.instances(min_score=1.0)):
        assert table.schema == every.schema
    assert results.images(status="unreadable").column("error").to_pylist() == ["the file is empty"]


def test_batches_hold_the_rows_of_the_table(results: htc_batch.Results) -> None:
    batches = list(results.batches(columns=["uri", "mask"], min_score=0.5, rows=2))
    assert max(map(len, batches)) <= 2
    assert pa.Table.from_batches(batches).equals(results.instances(columns=["uri", "mask"], min_score=0.5))
    assert list(results.batches(min_score=1.0)) == []


def test_data_frames(results: htc_batch.Results) -> None:
    frame = results.to_pandas(category="dog", columns=["score"])
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == ["score", "run"]
    assert len(frame) == 5
    other = results.to_polars("images", status="ok")
    assert isinstance(other, pl.DataFrame)
    assert other.height == 5
    with pytest.raises(htc_batch.HtcError, match="no table runs"):
        results.to_pandas("runs")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["uri", "ending", "id", "row"])
def test_masks_of_an_image(results: htc_batch.Results, way: str) -> None:
    row = results.images(status="ok").to_pylist()[1]
    named = {"uri": row["uri"], "ending": row["uri"].rsplit("/", 1)[-1], "id": row["image_id"], "row": row}[way]
    masks = results.masks(named)  # type: ignore[arg-type]
    assert masks.image == results.images().to_pylist()[results.images()["uri"].to_pylist().index(row["uri"])]
    assert masks.categories == ["person", "dog"]
    assert masks.scores.tolist() == pytest.approx([0.9, 0.25])
    expected = ellipse_mask(row["height"], row["width"])
    assert [(mask == expected).all() for mask in masks] == [True, True]
    assert (masks[-1] == expected).all()
    assert masks.stack().shape == (2, row["height"], row["width"])
    assert (masks.label_map() == expected).all()
    assert [(mask.categories, len(mask)) for mask in (masks[1:], masks[:0])] == [(["dog"], 1), ([], 0)]
    box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(expected.astype(np.uint8))))
    assert (masks.boxes_xywh == np.stack([box, box])).all()
    with pytest.raises(IndexError):
        masks[2]
    assert len(results.masks(row, min_score=0.5)) == 1


def test_a_damaged_mask_is_named(results: htc_batch.Results) -> None:
    masks = results.masks(results.images(status="ok")["uri"][0].as_py())
    rows = masks.rows.to_pylist()
    rows[1]["mask"]["counts"] = "7"
    rows[0]["mask"] = None
    broken = htc_batch.Masks(masks.image, pa.Table.from_pylist(rows, masks.rows.schema))
    with pytest.raises(htc_batch.HtcError, match="instance 1 is damaged"):
        broken[1]
    with pytest.raises(htc_batch.HtcError, match="instance 0 has no mask"):
        broken.stack()
    assert "instance 1 is damaged" in broken._repr_html_()


def test_current_and_latest_sum_up_the_runs(nights: str) -> None:
    results = htc_batch.open(nights)
    current = sorted((Path(row["uri"]).name, row["run"]) for row in results.images("current").to_pylist())
    assert current == [("a", "2"), ("c", "0"), ("d", "1")]
    # The category is the run's name.
    assert sorted(results.instances("current")["category"].to_pylist()) == ["0", "1", "2"]
    assert results.images("latest", ["uri"]).equals(results.images("2", ["uri"]))
    assert len(results.images()) == 6
    name = results.images("1")["uri"][0].as_py()
    assert results.find_image(name, "current")["run"] == "1"
    # Of an image in several runs the newest row.
    assert results.find_image(results.images("0")["uri"][0].as_py(), None)["run"] == "2"
    with pytest.raises(htc_batch.HtcError, match=r"There is no image .* in the run 2 "):
        results.masks(name)


def test_what_does_not_exist_is_named_with_what_is_near(results: htc_batch.Results) -> None:
    with pytest.raises(htc_batch.HtcError, match=r"did you mean night\? Its runs are night"):
        results.instances("nigth")
    with pytest.raises(htc_batch.HtcError, match=r"no column scor; did you mean score\?"):
        results.instances(columns=["scor"])
    with pytest.raises(htc_batch.HtcError, match=r"no image 1 a#b%20 u.jpg .*did you mean .*1 a#b%20 ü.jpg\?"):
        results.masks("1 a#b%20 u.jpg")
    with pytest.raises(htc_batch.HtcError, match='Referenced column "nothing" not found'):
        results.sql("SELECT nothing FROM images")
    with pytest.raises(htc_batch.HtcError, match=r"endpoint is not a key .*endpoint_url\?"):
        htc_batch.open(results.output_uri, {"endpoint": "x"})


def test_wrong_arguments_are_one_sentence(results: htc_batch.Results) -> None:
    with pytest.raises(htc_batch.HtcError, match=r'columns is a list of names, such as \["uri"\]'):
        results.instances(columns="uri")
    with pytest.raises(htc_batch.HtcError, match="min_score is a number from 0 to 1, not 'a'"):
        results.instances(min_score="a")  # type: ignore[arg-type]
    with pytest.raises(htc_batch.HtcError, match="rows is a whole number from 1, not 0"):
        next(results.batches(rows=0))
    row = results.images(status="unreadable").to_pylist()[0]
    assert repr(results.masks(row)) == f"<Masks: none of {row['uri']}, whose status is unreadable>"


def test_the_end_of_several_uris_is_no_name(tmp_path: Path) -> None:
    write_runs(
        tmp_path / "out", [WrittenRun({"x/same.jpg": "ok", "y/same.jpg": "ok"}), WrittenRun({"y/same.jpg": "ok"})]
    )
    results = htc_batch.open(str(tmp_path / "out"))
    with pytest.raises(
        htc_batch.HtcError, match=r"end of several uris \(.*x/same.jpg, [^,]*y/same.jpg\); give more of it"
    ):
        results.find_image("same.jpg", "0")
    assert results.find_image("same.jpg")["run"] == "1"
    assert results.find_image("y/same.jpg", None)["run"] == "1"
    with pytest.raises(htc_batch.HtcError, match="image_id, its uri, or a row"):
        results.find_image({"name": "same.jpg"})


def test_sql_sees_the_views_the_functions_and_the_callers_tables(results: htc_batch.Results) -> None:
    weights = pa.table({"category": ["dog"], "weight": [2.5]})  # noqa: F841 - the SQL names it
    sql = """SELECT category, count(*) AS n, bool_and(mask_area(mask) = area) AS equal
             FROM instances JOIN weights USING (category) WHERE score > $low GROUP BY category"""
    relation = results.sql(sql, {"low": 0.1})
    assert relation.fetchall() == [("dog", 5, True)]
    assert relation.pl().rows() == [("dog", 5, True)]
    results.sql("CREATE TEMP TABLE kept (x INTEGER)")
    assert results.sql("INSERT INTO kept VALUES (1)").fetchall() == [(1,)]
    assert results.sql("SELECT x FROM kept").fetchall() == [(1,)]


def test_a_relation_outlives_what_it_was_asked_of(output: Output) -> None:
    relation = htc_batch.open(output.uri).sql("SELECT mask_area(mask) AS pixels FROM instances")
    gc.collect()
    derived = relation.aggregate("count(*) AS n, min(pixels) > 0 AS full")
    del relation
    gc.collect()
    assert derived.fetchall() == [(10, True)]
    again = htc_batch.open(output.uri)
    counted = again.sql("SELECT count(*) FROM instances")
    again.refresh()
    assert counted.fetchall() == again.sql("SELECT count(*) FROM instances").fetchall() == [(10,)]


def test_a_process_ends_with_a_relation_still_held(output: Output) -> None:
    script = (
        "import sys, htc_batch\n"
        "sys.kept = htc_batch.open(sys.argv[1]).sql('SELECT mask_area(mask) FROM instances')\n"
        "assert len(sys.kept.fetchall()) == 10\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, output.uri], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_it_goes_on_where_parts_were_compacted_meanwhile(tmp_path: Path) -> None:
    output = make_output_folder(tmp_path)
    results = htc_batch.open(output.uri)
    before = results.instances("night", min_score=0.5)
    compact_run(Storage(), output.uri, "night", target_bytes=1 << 20, check=lambda: None)
    assert results.instances("night", min_score=0.5).equals(before)
    again = pickle.loads(pickle.dumps(results))
    assert again.instances("night", min_score=0.5).equals(before)


def test_a_run_in_progress_shows_what_is_committed(output: Output, results: htc_batch.Results) -> None:
    # The third shard is not committed.
    assert len(results.images()) == 6
    assert "orphan" not in results.instances()["category"].to_pylist()
    assert repr(results) == f"<Results: {output.uri}, 1 run; the newest is night of 7 images>"
    page = results._repr_html_()
    assert "<td>6 of 7</td><td>1</td><td>10</td>" in page
    assert "<td>person</td><td>5</td><td>0.900</td>" in page


def test_names_are_escaped_in_notebooks(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)</script>"
    write_runs(folder, [WrittenRun({"<b>": "ok"})])
    results = htc_batch.open(str(folder))
    for page in (results._repr_html_(), results.masks("<b>")._repr_html_()):
        assert "<script>" not in page
        assert "<b></b>" not in page


def test_a_run_without_instances(tmp_path: Path) -> None:
    output = make_output_folder(tmp_path, scores=())
    results = htc_batch.open(output.uri)
    assert len(results.instances(category="dog")) == 0
    row = results.images(status="ok").to_pylist()[0]
    masks = results.masks(row)
    assert (len(masks), masks.stack().shape, masks.boxes_xywh.shape) == (0, (0, row["height"], row["width"]), (0, 4))
    assert not masks.label_map().any()
    assert "0 masks" in masks._repr_html_()
    assert "0 masks" in repr(masks)
