"""`htc export` of whole maps: COCO's panoptic format and label maps, read back pixel by pixel."""

import csv
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.results.export import command
from jobs.results.panoptic_quality import evaluate_panoptic
from pipeline.errors import InputError, SpecError
from tests.support.builders.panoptic_runs import IDS, LETTERS, THINGS, PanopticRun, drawn, panoptic_run
from tests.support.htc import Htc

FOUND = {
    "a/one.png": ["ssss", "ss..", "ddee", "pptt"],
    # Two images that differ by suffix only get PNGs of different names.
    "a/one.jpg": ["tttt", "dddd"],
    "b.png": ["...."],
}
TRUTH = {"b.png": ["ssss"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PanopticRun:
    return panoptic_run(tmp_path_factory.mktemp("maps"), FOUND, TRUTH)


def export(made: PanopticRun, folder: Path, chosen: str, **values: Any) -> Path:
    command.export_output(made.uri, command.ExportRequest(command.Format(chosen), folder, **values))
    return folder


def numbers_in(png: Path) -> np.ndarray:
    """The numbers of segments of a PNG, as panopticapi's rgb2id reads them."""
    colours = np.asarray(Image.open(png)).astype(np.int64)
    assert colours.shape[2] == 3
    return colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]


def test_panoptic_files_are_read_back(run: PanopticRun, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "coco-panoptic")
    document = json.loads((folder / "panoptic.json").read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in document["images"]}
    assert sorted(names.values()) == sorted(FOUND)
    categories = {each["id"]: each for each in document["categories"]}
    assert {each["name"]: (each["id"], each["isthing"]) for each in categories.values()} == {
        LETTERS[each]: (IDS[LETTERS[each]], int(LETTERS[each] in THINGS)) for each in "sdept"
    }
    assert sorted(each["file_name"] for each in document["annotations"]) == ["a/one-2.png", "a/one.png", "b.png"]
    for annotation in document["annotations"]:
        lines = drawn(FOUND[names[annotation["image_id"]]])
        found = numbers_in(folder / "panoptic" / annotation["file_name"])
        assert found.shape == lines.shape
        segments = {each["id"]: each for each in annotation["segments_info"]}
        assert set(np.unique(found)) - {0} == set(segments)
        assert ((found == 0) == (lines == ord("."))).all()
        for number, segment in segments.items():
            letters = set(np.unique(lines[found == number]))
            assert len(letters) == 1, "a segment is one letter, and the letter is nowhere else"
            letter = chr(letters.pop())
            assert (found == number).sum() == (lines == ord(letter)).sum() == segment["area"]
            assert categories[segment["category_id"]]["name"] == LETTERS[letter]
            assert segment["iscrowd"] == 0
            assert ("score" in segment) == (LETTERS[letter] in THINGS)


def test_a_run_judged_by_its_own_export_is_perfect(run: PanopticRun, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "coco-panoptic")
    found = evaluate_panoptic(run.uri, str(folder / "panoptic.json"))
    assert {name: quality.pq for name, quality in found.qualities.items()} == {"all": 1, "things": 1, "stuff": 1}
    assert (found.images, found.missing, found.notes) == (3, (), ())


def test_label_maps_are_read_back(run: PanopticRun, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "semantic-png")
    with (folder / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = {row["class"]: int(row["value"]) for row in rows}
    assert values == {**{LETTERS[each]: IDS[LETTERS[each]] for each in "sdept"}, "": 255}
    for name, png in (("a/one.png", "a/one-2.png"), ("a/one.jpg", "a/one.png"), ("b.png", "b.png")):
        with Image.open(folder / "semantic" / png) as image:
            assert image.mode == "L"
            found = np.asarray(image)
        lines = drawn(FOUND[name])
        for letter in np.unique(lines):
            category = LETTERS.get(chr(letter), "")
            assert (found[lines == letter] == values[category]).all()
    pixels = {row["class"]: (int(row["pixels"]), int(row["images"])) for row in rows[:-1]}
    assert pixels["dog"] == (sum((np.isin(drawn(lines), [100, 101])).sum() for lines in FOUND.values()), 2)


def test_ids_above_254_take_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IDS, "tree", 300)
    run = panoptic_run(tmp_path, {"a.png": ["t."]}, TRUTH)
    folder = export(run, tmp_path / "out16", "semantic-png")
    with Image.open(folder / "semantic" / "a.png") as image:
        assert image.mode == "I;16"
        assert np.unique(np.asarray(image)).tolist() == [300, 65535]
    monkeypatch.setitem(IDS, "tree", 70_000)
    with pytest.raises(InputError, match="70000"):
        export(panoptic_run(tmp_path / "more", {"a.png": ["t."]}, TRUTH), tmp_path / "none", "semantic-png")


def test_all_runs_and_compacted_ones(tmp_path: Path, htc: Htc) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH)
    before = {path.name: path.read_bytes() for path in export(run, tmp_path / "a", "coco-panoptic").rglob("*.png")}
    assert htc("compact", run.uri)[0] == 0
    for number, chosen in enumerate([None, "current"]):
        folder = export(run, tmp_path / f"b{number}", "coco-panoptic", run=chosen)
        assert {path.name: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_segments_of_one_image_have_colours_of_their_own() -> None:
    from jobs.results.export.coco_panoptic import _colours_of

    rows = [{"is_thing": number < 300, "category": "tree"} for number in range(320)]
    colours = _colours_of(rows)
    assert len(set(colours)) == 320
    assert (0, 0, 0) not in colours


@contextmanager
def small_files_only(most_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("chosen", ["coco-panoptic", "semantic-png"])
def test_a_full_disk_is_named_and_leaves_nothing(run: PanopticRun, tmp_path: Path, chosen: str) -> None:
    with small_files_only(20), pytest.raises(SpecError, match=r"out/.* cannot be written: File too large"):
        export(run, tmp_path / "out", chosen)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min-score", "0.5"], "--min-score chooses instances"),
        (["--where", "area > 3"], "--where chooses instances"),
        (["--polygons"], "--polygons is for the format coco"),
    ],
)
def test_choices_of_instances_are_refused(
    htc: Htc, run: PanopticRun, tmp_path: Path, arguments: list[str], words: str
) -> None:
    code, out, err = htc("export", run.uri, "--format", "coco-panoptic", "--to", str(tmp_path / "out"), *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(("chosen", "table"), [("coco-panoptic", "panoptic"), ("semantic-png", "semantic")])
def test_a_run_without_the_table_says_how_to_get_it(htc: Htc, tmp_path: Path, chosen: str, table: str) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, tables=[each for each in ("panoptic", "semantic") if each != table])
    code, out, err = htc("export", run.uri, "--format", chosen, "--to", str(tmp_path / "to"))
    assert (code, out) == (2, "")
    assert f"Run night has no {table} table" in err
    assert f"run again with --incremental --{table}" in err
    assert not (tmp_path / "to").exists()


def test_a_run_of_tiles_says_that_it_cannot_have_maps(htc: Htc, tmp_path: Path) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, tables=["semantic"])
    path = next((Path(run.uri) / "runs").glob("*/run.json"))
    record = json.loads(path.read_text())
    record["identity"]["tiles"] = {"side": 256, "overlap": 32, "above": 256}
    path.write_text(json.dumps(record))
    code, _, err = htc("export", run.uri, "--format", "coco-panoptic", "--to", str(tmp_path / "to"))
    assert code == 2
    assert "run with --panoptic and without --tiles" in err


@pytest.mark.parametrize("chosen", ["coco-panoptic", "semantic-png"])
def test_a_damaged_mask_is_named_and_nothing_is_left(htc: Htc, tmp_path: Path, chosen: str) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, damaged=["a/one.jpg"])
    code, out, err = htc("export", run.uri, "--format", chosen, "--to", str(tmp_path / "to"))
    assert (code, out) == (2, "")
    assert "a/one.jpg: a mask of its map is damaged" in err
    assert not (tmp_path / "to").exists()
