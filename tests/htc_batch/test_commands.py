"""`evaluate` and `diff` from Python: the numbers of the commands, and something to see in a notebook."""

import json
from pathlib import Path
from typing import Any

import pytest

import htc_batch
from pipeline.output.results import open_results
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.support.builders.damaged_outputs import htc_of
from tests.support.builders.outputs import FINGERPRINT, Output, commit, make_output_folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Two runs of the same images; the second one does not find the less confident instance."""
    output = make_output_folder(tmp_path_factory.mktemp("commands"))
    later = open_run(output.spec, FINGERPRINT, Storage(), run="later", fresh=True)
    for shard in (0, 1):
        commit(later, shard, Storage(), (0.9,))
    later.close()
    return output


@pytest.fixture(scope="module")
def truth(output: Output) -> dict[str, Any]:
    """What the first run found, as annotations."""
    tables = open_results(output.uri)
    images = {row["uri"]: row for row in tables.images("night").to_pylist() if row["status"] == "ok"}
    numbers = {uri: number for number, uri in enumerate(images, 1)}
    annotations = [
        {
            "id": number,
            "image_id": numbers[row["uri"]],
            "category_id": 1,
            "segmentation": row["mask"],
            "area": row["area"],
            "bbox": list(row["bbox"].values()),
            "iscrowd": 0,
        }
        for number, row in enumerate(tables.instances("night").to_pylist(), 1)
        if row["category"] == "person"
    ]
    return {
        "images": [
            {"id": numbers[uri], "file_name": Path(uri).name, "width": row["width"], "height": row["height"]}
            for uri, row in images.items()
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }


def test_evaluate_gives_the_numbers_of_the_command(
    output: Output, truth: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    found = htc_batch.open(output.uri).evaluate(str(path), "night")
    assert found.metrics["mask"]["AP"] == pytest.approx(1.0)
    assert "mask AP 1.000 on 5 images" in repr(found)
    assert "<td>mask</td><td>1.000</td>" in found._repr_html_()
    code, text = htc_of(capsys)("evaluate", output.uri, str(path), "--run", "night", "--format", "json")
    assert code == 0
    assert json.JSONDecoder().raw_decode(text)[0]["metrics"] == found.to_dict()["metrics"]
    assert htc_batch.evaluate(output.uri, truth, "night").metrics == found.metrics
    with pytest.raises(htc_batch.HtcError, match="There is no run x"):
        htc_batch.evaluate(output.uri, truth, "x")


def test_diff_counts_what_changed(output: Output) -> None:
    found = htc_batch.open(output.uri).diff("night", "later", min_score=0.2)
    assert (found.counts["same"], found.counts["vanished"], found.counts["appeared"]) == (5, 5, 0)
    assert found.changed_share == pytest.approx(0.5)
    assert repr(found) == "<Diff of night and later: 5 of 10 instances changed (50.0%)>"
    assert "<td>dog</td><td>5</td><td>0</td>" in found._repr_html_()
    assert htc_batch.diff(output.uri, "night", "later", other=output.uri).changed == 0
    with pytest.raises(htc_batch.HtcError, match="does not differ from itself"):
        htc_batch.diff(output.uri, "night", "night")
