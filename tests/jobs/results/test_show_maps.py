"""`htc show --panoptic` and `--semantic`: stuff in muted colours below things with outlines, each named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.results.drawing import DrawnInstance, Style, colour_of, render_overlay, stuff_colour, stuff_segment
from tests.support.builders.panoptic_runs import PanopticRun, panoptic_run
from tests.support.htc import Htc

FOUND = {"a.png": ["ssss", "sdds", "gggg"], "b.png": ["tttt", "tttt"]}
TRUTH = {"a.png": ["ssss", "ssss", "gggg"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PanopticRun:
    return panoptic_run(tmp_path_factory.mktemp("shown"), FOUND, TRUTH)


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    mask[rows, columns] = True
    return mask


def test_stuff_has_no_outline_and_lies_below_things() -> None:
    pixels = np.full((120, 160, 3), 128, np.uint8)
    ground = stuff_segment("grass", block(slice(0, 120), slice(0, 160)))
    dog = DrawnInstance("dog", 0.9, mask=block(slice(40, 80), slice(40, 100)), label="")
    style = Style(has_labels=False)
    for order in ([ground, dog], [dog, ground]):
        found = render_overlay(pixels, order, style).pixels
        expected = 128 * (1 - style.stuff_opacity) + np.array(stuff_colour("grass")) * style.stuff_opacity
        # At the edge as in the middle: no line.
        for place in ((0, 0), (10, 80), (119, 159)):
            np.testing.assert_allclose(found[place], expected, atol=2)
        np.testing.assert_allclose(found[40, 70], colour_of("dog"), atol=60)
        assert np.abs(found[60, 70].astype(int) - expected).max() > 10


def test_the_name_of_stuff_lies_inside_its_region() -> None:
    pixels = np.full((240, 320, 3), 128, np.uint8)
    right = np.zeros((240, 320), bool)
    right[:, 200:] = True
    plain = render_overlay(pixels, [stuff_segment("tree", right)], Style(has_labels=False)).pixels
    named = render_overlay(pixels, [stuff_segment("tree", right)]).pixels
    rows, columns = np.nonzero((plain != named).any(axis=2))
    assert len(rows) > 0
    assert columns.min() >= 200
    # In the middle of the region.
    assert 230 < columns.mean() < 290
    assert 100 < rows.mean() < 140


def test_small_regions_have_no_name_and_are_not_counted_as_missing_one() -> None:
    pixels = np.full((240, 320, 3), 128, np.uint8)
    small = np.zeros((240, 320), bool)
    small[100:110, 100:110] = True
    overlay = render_overlay(pixels, [stuff_segment("tree", small)])
    assert overlay.unlabelled == 0
    assert (
        overlay.pixels == render_overlay(pixels, [stuff_segment("tree", small)], Style(has_labels=False)).pixels
    ).all()


@pytest.mark.parametrize("kind", ["panoptic", "semantic"])
def test_maps_are_drawn(htc: Htc, run: PanopticRun, tmp_path: Path, kind: str) -> None:
    code, out, err = htc("show", run.uri, "--to", str(tmp_path), f"--{kind}", "--no-labels")
    assert (code, err) == (0, "")
    assert "segments" in out if kind == "panoptic" else "regions" in out
    drawn = {name: np.asarray(Image.open(tmp_path / name)) for name in FOUND}
    original = np.asarray(Image.open(run.photos / "b.png").resize((480, 240)))
    expected = original * 0.4 + np.array(stuff_colour("tree")) * 0.6
    np.testing.assert_allclose(drawn["b.png"][120, 50:430], expected[120, 50:430], atol=4)
    # The dog is in its colour in both: with an outline where things are drawn as such, else as a region.
    near = np.abs(drawn["a.png"].astype(int) - colour_of("dog")).max(axis=2) < 25
    dog = np.zeros((360, 480), bool)
    dog[120:240, 120:360] = True
    assert near[dog].any()
    middle = drawn["a.png"][180, 240].astype(int)
    image = np.asarray(Image.open(run.photos / "a.png").resize((480, 360)))[180, 240].astype(int)
    share = 0.38 if kind == "panoptic" else 0.6
    np.testing.assert_allclose(middle, image * (1 - share) + np.array(colour_of("dog")) * share, atol=4)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_image_itself_and_the_truth_are_beside(htc: Htc, run: PanopticRun, tmp_path: Path) -> None:
    arguments = ["--panoptic", "--beside", "--truth", str(run.truth)]
    code, out, err = htc("show", run.uri, "--to", str(tmp_path), *arguments)
    assert code == 0, err
    # Only the image that the truth names: the image, the truth, the run.
    assert "b.png" not in out
    width, height = size_of(tmp_path / "a.png")
    assert width > 3 * 480 > height
    code, _, err = htc("show", run.uri, "--to", str(tmp_path / "plain"), "--beside")
    assert (code, err) == (0, "")
    assert size_of(tmp_path / "plain" / "a.png")[0] > 2 * 480


def test_images_with_a_category_of_stuff(htc: Htc, run: PanopticRun, tmp_path: Path) -> None:
    code, out, _ = htc("show", run.uri, "--to", str(tmp_path), "--panoptic", "--category", "grass")
    assert code == 0
    assert "a.png" in out
    assert "b.png" not in out
    code, _, err = htc("show", run.uri, "--to", str(tmp_path), "--panoptic", "--category", "gras")
    assert code == 2
    assert "no segment of the category gras; did you mean grass?" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--panoptic", "--semantic"], "not both"),
        (["--panoptic", "--crops"], "not both"),
        (["--crops", "--beside"], "leave out --crops"),
        (["--panoptic", "--min-score", "0.2"], "draws all of a map"),
        (["--semantic", "--truth", "t.json"], "leave out --semantic"),
    ],
)
def test_contradictions_are_refused(
    htc: Htc, run: PanopticRun, tmp_path: Path, arguments: list[str], words: str
) -> None:
    code, out, err = htc("show", run.uri, "--to", str(tmp_path / "x"), *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_run_without_the_table_says_how_to_get_it(htc: Htc, tmp_path: Path) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, tables=())
    for kind in ("panoptic", "semantic"):
        code, out, err = htc("show", run.uri, "--to", str(tmp_path / "x"), f"--{kind}")
        assert (code, out) == (2, "")
        assert f"Run night has no {kind} table" in err


def test_a_truth_of_instances_is_refused(htc: Htc, run: PanopticRun, tmp_path: Path) -> None:
    truth = tmp_path / "t.json"
    truth.write_text('{"images": [], "annotations": [], "categories": []}')
    code, _, err = htc("show", run.uri, "--to", str(tmp_path / "x"), "--panoptic", "--truth", str(truth))
    assert code == 2
    assert "not in COCO's panoptic format" in err


def test_a_damaged_segment_is_left_out_and_named(htc: Htc, tmp_path: Path) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, damaged=["a.png"], failed=["b.png"])
    arguments = ["--panoptic", "--status", "ok", "--status", "unreadable"]
    code, out, err = htc("show", run.uri, "--to", str(tmp_path / "x"), *arguments)
    assert code == 1
    assert "a.png, segment 2 (sky-other): its mask's run lengths cannot be read" in err
    # Two of three segments, and the failed image without any.
    assert [line.split()[:2] for line in out.splitlines() if ".png" in line] == [["a.png", "2"], ["b.png", "0"]]
