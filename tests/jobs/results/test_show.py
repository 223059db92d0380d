"""`htc show`: the content and the names of overlays, and the messages if there is nothing to draw."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.results.overlay import DrawnInstance, draw_overlay, instance_colour, text_colour
from jobs.results.show import overlay_paths, show_overlays
from pipeline.errors import InputError, SpecError
from tests.support.builders.outputs import Output, ellipse_mask


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_mask_is_tinted_and_the_rest_is_left_alone(output: Output, tmp_path: Path) -> None:
    assert show_overlays(output.uri, tmp_path / "png", uris=["0 a#b%20 ü.jpg"]) == 0
    (path,) = (tmp_path / "png").iterdir()
    overlay = pixels_of(path)
    original = pixels_of(output.photos / "0 a#b%20 ü.jpg")
    changed = (overlay != original).any(axis=2)
    mask = ellipse_mask(*changed.shape)
    assert overlay.shape == original.shape
    assert changed[mask].mean() > 0.95
    # Outside the mask: only the box's lines and one label.
    assert changed[~mask].mean() < 0.05


def test_a_sample_is_the_same_every_time_and_only_of_ok_images(output: Output, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert show_overlays(output.uri, tmp_path / name, sample=3) == 0
    one, two = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one == two
    assert len(one) == 3
    assert show_overlays(output.uri, tmp_path / "all", sample=100) == 0
    assert len(list((tmp_path / "all").iterdir())) == 5


def test_unreadable_and_changed_images_are_reported_and_the_rest_is_drawn(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output.photos / "1 a#b%20 ü.jpg").unlink()
    Image.new("RGB", (10, 10)).save(output.photos / "2 a#b%20 ü.jpg")
    uris = ["broken.jpg", "1 a#b%20 ü.jpg", "2 a#b%20 ü.jpg", "0 a#b%20 ü.jpg"]
    assert show_overlays(output.uri, tmp_path / "png", uris=uris) == 1
    said = capsys.readouterr().err
    assert "broken.jpg: unreadable: the file is empty" in said
    assert "1 a#b%20 ü.jpg does not exist" in said
    assert "10 x 10 pixels now" in said
    assert len(list((tmp_path / "png").iterdir())) == 1


def test_a_threshold_that_nothing_reaches(
    make_output: Callable[..., Output], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_output(scores=(0.2, 0.12, 0.11, 0.1, 0.09, 0.08, 0.07))
    assert show_overlays(output.uri, tmp_path / "png", sample=1) == 0
    captured = capsys.readouterr()
    assert "the best 5 of each image" in captured.err
    assert " 5 " in captured.out
    assert show_overlays(output.uri, tmp_path / "png", sample=1, min_score=0.5) == 0
    captured = capsys.readouterr()
    assert "No instance reaches 0.5; the best score is 0.200." in captured.err
    assert " 0 " in captured.out


def test_untrained_scores_are_ignored(
    make_output: Callable[..., Output], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_output(scores=(0.99,) * 9, trained=False)
    assert show_overlays(output.uri, tmp_path / "png", sample=1) == 0
    captured = capsys.readouterr()
    assert "untrained" in captured.err
    assert " 5 " in captured.out
    assert show_overlays(output.uri, tmp_path / "png", sample=1, min_score=0.5) == 0
    assert " 9 " in capsys.readouterr().out


def test_wrong_requests_name_the_way_out(output: Output, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image borken\.jpg; did you mean .*/broken\.jpg\?"):
        show_overlays(output.uri, tmp_path, uris=["borken.jpg"])
    with pytest.raises(InputError, match="no run day"):
        show_overlays(output.uri, tmp_path, run="day")
    with pytest.raises(SpecError, match="not both"):
        show_overlays(output.uri, tmp_path, uris=["tiny.png"], sample=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be created"):
        show_overlays(output.uri, tmp_path / "file" / "x", sample=1)


def test_overlay_names_are_safe_and_distinct() -> None:
    uris = [
        "/in/Cat.jpg",
        "/in/cat.JPG",
        "s3://bucket/a b#c%20.png",
        "tar://deep/cat.jpg::/shards/0.tar",
        "/in/../...jpg",
        "/shards/x.parquet#row=7",
        "/in/" + "x" * 300 + ".jpg",
        "/in/line\nbreak.png",
    ]
    names = [path.name for path in overlay_paths(uris, Path())]
    assert len({name.lower() for name in names}) == len(uris)
    assert names[:4] == ["Cat.png", "cat-2.png", "a_b_c_20.png", "cat-3.png"]
    assert names[5] == "x.parquet_row_7.png"
    for name in names:
        assert len(name) < 120
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        assert not name.startswith(".")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (33, 47)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    height, width = size
    instance = DrawnInstance("person", 0.5, (0, 0, width, height), lambda: np.ones(size, bool))
    overlay = draw_overlay(np.full((height, width, 3), 100, np.uint8), [instance])
    assert overlay.width % width == 0
    assert overlay.height % height == 0
    assert (np.asarray(overlay) != 100).any()


def test_an_empty_mask_and_a_box_without_mask_are_drawn() -> None:
    image = np.full((500, 500, 3), 100, np.uint8)
    box_only = DrawnInstance("dog", 0.5, (100, 100, 50, 50), None)
    empty = DrawnInstance("cat", 0.5, (300, 300, 50, 50), lambda: np.zeros((500, 500), bool))
    overlay = np.asarray(draw_overlay(image, [box_only, empty]))
    assert (overlay[100, 100:150] != 100).any()
    assert (overlay[300, 300:350] != 100).any()
    assert (overlay[120:140, 120:140] == 100).all()
    assert (image == 100).all()


def test_small_instances_stay_visible_under_large_ones() -> None:
    image = np.zeros((500, 500, 3), np.uint8)
    small_mask = np.zeros((500, 500), bool)
    small_mask[240:260, 240:260] = True
    small = DrawnInstance("ball", 0.9, (240, 240, 20, 20), lambda: small_mask)
    large = DrawnInstance("wall", 0.8, (0, 0, 500, 500), lambda: np.ones((500, 500), bool))
    overlay = np.asarray(draw_overlay(image, [small, large]))
    assert tuple(overlay[240, 245]) == instance_colour(0)


def test_labels_are_legible_on_every_colour() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [(c / 255) ** 2.2 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for index in range(100):
        plate = instance_colour(index)
        bright, dark = sorted([luminance(plate), luminance(text_colour(plate))], reverse=True)
        # WCAG 2.1, success criterion 1.4.3: 4.5 to 1; 0.1 off for the simpler curve here.
        assert (bright + 0.05) / (dark + 0.05) > 4.4
    assert len({instance_colour(index) for index in range(100)}) == 100
