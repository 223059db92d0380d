"""The twelve metrics are those of pycocotools on the exported COCO JSON, by either engine."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from htc_model.training.coco_engines import FASTER, METRICS, PYCOCOTOOLS, choose_engine
from jobs.results.evaluation import evaluate
from jobs.results.evaluation.score import judge_run
from jobs.results.export.command import ExportRequest, Format, export_output
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from tests.support.builders.judged_runs import CATEGORIES, JudgedRun

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KINDS = {"box": "bbox", "mask": "segm"}
EXACT = 1e-9


def pycocotools_metrics(truth: Path, exported: Path, kind: str, category: str | None = None) -> dict[str, float]:
    """What a person gets who exports the run, and follows pycocotools' own page."""
    document: dict[str, Any] = json.loads(exported.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        ids = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
        numbers = {image["id"]: ids[image["file_name"]] for image in document["images"]}
        names = {each["id"]: each["name"] for each in document["categories"]}
        category_ids = {each["name"]: each["id"] for each in coco.dataset["categories"]}
        results = [
            {
                "image_id": numbers[each["image_id"]],
                "category_id": category_ids[names[each["category_id"]]],
                "score": each["score"],
                **({"bbox": each["bbox"]} if kind == "bbox" else {"segmentation": each["segmentation"]}),
            }
            for each in document["annotations"]
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        if category is not None:
            evaluation.params.catIds = [category_ids[category]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=True))


@pytest.fixture(scope="session")
def exported(shared_run: JudgedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "coco"
    export_output(shared_run.uri, ExportRequest(Format.COCO, folder))
    return folder / "annotations.json"


@pytest.mark.parametrize("engine", [FASTER, PYCOCOTOOLS])
def test_all_numbers_equal_pycocotools_on_the_exported_file(shared_run: JudgedRun, exported: Path, engine: str) -> None:
    if engine == FASTER:
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval has no wheel for this machine")
    found = judge_run(open_results(shared_run.uri), str(shared_run.truth), Storage(), engine=engine).evaluation
    assert found.engine.startswith(f"{engine} ")
    sizes = {name: found.objects[name] for name in ("small", "medium", "large")}
    assert min(sizes.values()) >= 5, f"the run does not try all sizes: {sizes}"
    for name, kind in KINDS.items():
        judged = pycocotools_metrics(shared_run.truth, exported, kind)
        assert found.metrics[name] == pytest.approx(judged, abs=EXACT)
        assert 0.1 < judged["AP"] < judged["AP50"] < 0.95
        assert found.kinds[name].errors.ap50 == pytest.approx(judged["AP50"], abs=EXACT)


def test_the_numbers_of_a_category_equal_pycocotools_on_it_alone(shared_run: JudgedRun, exported: Path) -> None:
    rows = {row["name"]: row for row in evaluate(shared_run.uri, str(shared_run.truth)).category_rows()}
    assert sorted(rows) == sorted(CATEGORIES)
    for category in CATEGORIES[:2]:
        for name, kind in KINDS.items():
            judged = pycocotools_metrics(shared_run.truth, exported, kind, category)
            assert {metric: rows[category][name][metric] for metric in METRICS} == pytest.approx(judged, abs=EXACT)
    assert sum(row["objects"] for row in rows.values()) == sum(
        not entry["iscrowd"] for entry in shared_run.document["annotations"]
    )


def test_without_the_fast_engine_pycocotools_scores_and_is_named(
    shared_run: JudgedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(shared_run.uri, str(shared_run.truth))
    # As an import of a package that is not installed.
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert choose_engine() == PYCOCOTOOLS
    found = evaluate(shared_run.uri, str(shared_run.truth))
    assert found.engine.startswith("pycocotools ")
    assert any("faster-coco-eval is not installed" in note for note in found.notes)
    for name, metrics in before.metrics.items():
        assert found.metrics[name] == pytest.approx(metrics, abs=EXACT)


def test_the_truth_may_be_a_mapping_and_the_answer_is_json(shared_run: JudgedRun) -> None:
    found = evaluate(shared_run.uri, shared_run.document)
    answer = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert answer["metrics"] == found.metrics
    for kind in KINDS:
        assert list(answer["metrics"][kind]) == list(METRICS)
        assert answer[f"{kind}_ap"] == answer["metrics"][kind]["AP"]
        assert len(answer["curves"][kind]["recall"]) == len(answer["curves"][kind]["precision"]["0.50"]) == 101
        # AP is the mean of the curve.
        curve = answer["curves"][kind]["precision"]["0.50:0.95"]
        assert sum(curve) / 101 == pytest.approx(answer["metrics"][kind]["AP"], abs=1e-5)
    counted = sum(cell["count"] for cell in answer["confusion"]["mask"] if cell["truth"] is not None)
    assert counted == answer["objects"]["all"]
    mistakes = [image["wrong"] + image["missed"] for image in answer["worst"]]
    assert mistakes == sorted(mistakes, reverse=True)
    assert mistakes[0] > 0
