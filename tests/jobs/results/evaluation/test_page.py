"""The page, the folder with plots and pictures, CSV: complete, escaped, without a request to anywhere."""

import base64
import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from htc_model.training.coco_engines import METRICS
from jobs.results.evaluation import evaluate
from tests.support.builders.judged_runs import CATEGORIES, JudgedRun, judged_run
from tests.support.htc import Htc
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HOSTILE = "<script>alert(1)</script> & $a$ \"q\" 'r' 雪"
PLOTS = {"confusion.png", "curves.png", "errors.png"}
NUMBERS = {"evaluation.html", "evaluation.json", "metrics.csv"}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def hostile_run(folder: Path) -> JudgedRun:
    """Names of folders and of a category are HTML; the tables' category is renamed in the truth by `rename`."""
    judged = judged_run(folder / "<script>alert(2)<b>", images=8, seed=1)
    judged.document["categories"].append({"id": 99, "name": HOSTILE})
    judged.document["annotations"].append(judged.document["annotations"][0] | {"id": 999, "category_id": 99})
    judged.rewrite()
    return judged


def test_the_page_is_escaped_and_asks_nobody(htc: Htc, tmp_path: Path) -> None:
    judged = hostile_run(tmp_path)
    code, source, _ = htc("evaluate", judged.uri, str(judged.truth), "--format", "html", "--worst", "3")
    assert code == 0
    page = Page(source)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "b", "base", "form"}
    assert HOSTILE in page.text
    assert "<script>alert(2)<b>" in page.text
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert all(
            (attributes.get(name) or "data:").startswith("data:") for name in ("src", "href", "action", "srcset")
        )
    assert "http" not in source.replace("http-equiv", "")
    policy = next(attributes for tag, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in str(policy["content"])
    pictures = page.pictures()
    assert len(pictures) == 3 + 3
    assert all(attributes["alt"] for attributes in pictures)
    for attributes in pictures:
        head, _, data = str(attributes["src"]).partition(",")
        payload = base64.b64decode(data)
        if "svg" in head:
            assert b"<script" not in payload
        else:
            assert Image.open(io.BytesIO(payload)).size[0] > 1000
    plots = b"".join(base64.b64decode(str(each["src"]).partition(",")[2]) for each in pictures[:3]).decode()
    # Two dollar signs are no formula, and the font's gaps are the browser's to fill.
    assert "$a$" in plots
    assert "雪" in plots


def test_every_metric_is_on_the_page(htc: Htc, own_run: JudgedRun) -> None:
    _, source, _ = htc("evaluate", own_run.uri, str(own_run.truth), "--format", "html", "--worst", "0")
    text = Page(source).text
    found = evaluate(own_run.uri, str(own_run.truth))
    for name, value in found.metrics["mask"].items():
        assert name in text
        assert value < 0 or f"{100 * value:.1f}" in text
    assert all(category in text for category in CATEGORIES)


def test_the_folder_has_page_plots_numbers_and_pictures(htc: Htc, own_run: JudgedRun, tmp_path: Path) -> None:
    folder = tmp_path / "to" / "here"
    words = ("evaluate", own_run.uri, str(own_run.truth), "--to", str(folder))
    code, table, said = htc(*words)
    assert code == 0
    assert "AP50" in table
    assert "evaluation.html" in said
    assert {path.name for path in folder.iterdir()} == {*PLOTS, *NUMBERS, "worst"}
    for name in PLOTS:
        assert np.asarray(Image.open(folder / name).convert("L")).std() > 5
    found = evaluate(own_run.uri, str(own_run.truth))
    assert json.loads((folder / "evaluation.json").read_text())["metrics"] == found.metrics
    pictures = sorted(path.name for path in (folder / "worst").iterdir())
    assert len(pictures) == len(found.worst) > 2
    assert pictures[0] == f"001-{Path(found.worst[0].uri).stem}.jpg"
    # A later evaluation takes its own old pictures away, and nothing else.
    (folder / "worst" / "notes.txt").write_text("mine")
    assert htc(*words, "--worst", "1")[0] == 0
    assert sorted(path.name for path in (folder / "worst").iterdir()) == [pictures[0], "notes.txt"]


def test_an_image_that_is_gone_or_changed_is_a_grey_tile_with_the_reason(htc: Htc, own_run: JudgedRun) -> None:
    worst = evaluate(own_run.uri, str(own_run.truth)).worst
    Path(worst[0].uri).unlink()
    Image.new("RGB", (40, 30)).save(worst[1].uri)
    code, source, _ = htc("evaluate", own_run.uri, str(own_run.truth), "--format", "html", "--worst", "3")
    assert code == 0
    texts = [str(attributes["alt"]) for attributes in Page(source).pictures()[3:]]
    assert "does not exist" in texts[0] or "is gone" in texts[0] or "No such file" in texts[0]
    assert "changed since the run" in texts[1]
    assert "changed" not in texts[2]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).partition(",")[2]))).convert("RGB"))
        for attributes in Page(source).pictures()[3:]
    ]
    for tile in pixels[:2]:
        # Grey: no colour at all; JPEG rounds.
        assert np.ptp(tile.astype(int), axis=2).max() < 12
    assert np.ptp(pixels[2].astype(int), axis=2).max() > 100


def test_without_matplotlib_there_are_tables_and_a_sentence(
    htc: Htc, own_run: JudgedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, said = htc("evaluate", own_run.uri, str(own_run.truth), "--to", str(tmp_path / "plain"))
    assert code == 0
    assert "pip install 'htc-batch[plots]'" in said
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {*NUMBERS, "worst"}
    page = Page((tmp_path / "plain" / "evaluation.html").read_text())
    assert "pip install" in page.text
    assert all(str(attributes["src"]).startswith("data:image/jpeg") for attributes in page.pictures())


def test_a_folder_that_cannot_be_written_is_one_sentence(htc: Htc, own_run: JudgedRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in (("file", "cannot be created"), ("s3://bucket/there", "not a local path")):
        target = folder if "://" in folder else str(tmp_path / folder)
        code, _, said = htc("evaluate", own_run.uri, str(own_run.truth), "--to", target)
        assert code == 2
        assert reason in said
        assert "Traceback" not in said


def test_csv_has_a_row_for_each_kind_and_category(htc: Htc, own_run: JudgedRun) -> None:
    words = ("evaluate", own_run.uri, str(own_run.truth), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(htc(*words)[1])))
    assert [(row["kind"], row["category"]) for row in rows] == [("box", ""), ("mask", "")]
    found = evaluate(own_run.uri, str(own_run.truth))
    for row in rows:
        assert {name: float(row[name]) for name in METRICS} == found.metrics[row["kind"]]
    more = list(csv.DictReader(io.StringIO(htc(*words, "--per-category")[1])))
    assert [row["category"] for row in more[2::2]] == list(CATEGORIES)
    assert sum(int(row["objects"]) for row in more[2::2]) == int(more[0]["objects"])


def test_the_table_names_errors_categories_and_worst_images(htc: Htc, own_run: JudgedRun) -> None:
    found = evaluate(own_run.uri, str(own_run.truth))
    code, table, _ = htc("evaluate", own_run.uri, str(own_run.truth), "--per-category")
    assert code == 0
    assert all(name in table for name in (*METRICS, *CATEGORIES, "localisation", "missed"))
    assert Path(found.worst[0].uri).name in table
    assert found.engine in table
    assert "tie" not in htc("evaluate", own_run.uri, str(own_run.truth), "--class", "dog")[1].split()


def test_json_is_indented_by_format_and_one_line_by_its_flag(htc: Htc, own_run: JudgedRun) -> None:
    words = ("evaluate", own_run.uri, str(own_run.truth))
    long, short = htc(*words, "--format", "json")[1], htc(*words, "--json")[1]
    assert short.count("\n") == 1 < long.count("\n")
    assert json.loads(long) == json.loads(short)
    # Ids are larger than what JavaScript can count.
    assert all(isinstance(image["image_id"], str) for image in json.loads(long)["worst"])


def test_the_python_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judged_run(tmp_path / "run", images=8, seed=1)
    (tmp_path / "masks").symlink_to(judged.uri)
    (tmp_path / "truth.json").symlink_to(judged.truth)
    monkeypatch.chdir(tmp_path)
    *_, code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluate.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["evaluation"].to_dict() == evaluate("masks/", "truth.json", min_score=0.5).to_dict()
