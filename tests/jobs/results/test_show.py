"""`htc show`: the content and the names of overlays, and the messages if there is nothing to draw."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.results.drawing import Style, colour_of
from jobs.results.drawing.picture_files import is_own_picture
from jobs.results.show import ShowRequest, show_overlays
from pipeline.errors import InputError, SpecError
from pipeline.inputs.decode import decode_image
from tests.support.builders.drawn_outputs import Found, make_drawn_output
from tests.support.builders.images import encoded, gradient
from tests.support.builders.outputs import Output, ellipse_mask
from tests.support.htc import Htc
from tests.support.paths import ROOT


def show(output: Output, folder: Path, **choices: Any) -> int:
    return show_overlays(output.uri, ShowRequest(folder, **choices))


def rotated() -> Image.Exif:
    """EXIF of an image that is stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_mask_is_tinted_and_the_rest_is_left_alone(output: Output, tmp_path: Path) -> None:
    assert show(output, tmp_path / "png", uris=["0 a#b%20 ü.jpg"]) == 0
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
        assert show(output, tmp_path / name, sample=3) == 0
    one, two = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one == two
    assert len(one) == 3
    assert show(output, tmp_path / "all", sample=100) == 0
    assert len(list((tmp_path / "all").iterdir())) == 5


def test_gone_changed_and_failed_images_are_grey_tiles_that_say_so(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [pixels_of(output.photos / f"{number} a#b%20 ü.jpg").shape for number in range(4)]
    (output.photos / "1 a#b%20 ü.jpg").unlink()
    # Of the same size in pixels, and another picture.
    Image.new("RGB", (sizes[2][1], sizes[2][0]), (0, 200, 0)).save(output.photos / "2 a#b%20 ü.jpg")
    uris = ["broken.jpg", "1 a#b%20 ü.jpg", "2 a#b%20 ü.jpg", "0 a#b%20 ü.jpg"]
    assert show(output, tmp_path / "png", uris=uris) == 1
    said = capsys.readouterr().err
    assert "1 a#b%20 ü.jpg: the image does not exist any more." in said
    assert "2 a#b%20 ü.jpg: the image has changed since the run." in said
    assert "broken.jpg" not in said
    for name, size in (("1_a_b_20_ü", sizes[1]), ("2_a_b_20_ü", sizes[2]), ("broken", (480, 640, 3))):
        tile = pixels_of(tmp_path / "png" / f"{name}.png")
        assert tile.shape == size
        # Grey only: nothing is drawn on it, and nothing of another picture is on it.
        assert (tile.max(axis=2) == tile.min(axis=2)).all()
        assert len(np.unique(tile)) > 2
    assert (output.photos / "0 a#b%20 ü.jpg").exists()
    # Failed images alone were asked for, and are drawn as what they are.
    assert show(output, tmp_path / "failed", statuses=["unreadable"]) == 0
    assert [path.name for path in (tmp_path / "failed").iterdir()] == ["broken.png"]


def test_a_threshold_that_nothing_reaches(
    make_output: Callable[..., Output], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_output(scores=(0.2, 0.12, 0.11, 0.1, 0.09, 0.08, 0.07))
    assert show(output, tmp_path / "png", sample=1) == 0
    captured = capsys.readouterr()
    assert "the best 5 of each image" in captured.err
    assert " 5 " in captured.out
    assert show(output, tmp_path / "png", sample=1, min_score=0.5) == 0
    captured = capsys.readouterr()
    assert "No instance reaches 0.5; the best score is 0.200." in captured.err
    assert " 0 " in captured.out


def test_untrained_scores_are_ignored(
    make_output: Callable[..., Output], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_output(scores=(0.99,) * 9, trained=False)
    assert show(output, tmp_path / "png", sample=1) == 0
    captured = capsys.readouterr()
    assert "untrained" in captured.err
    assert " 5 " in captured.out
    assert show(output, tmp_path / "png", sample=1, min_score=0.5) == 0
    assert " 9 " in capsys.readouterr().out


def test_wrong_requests_name_the_way_out(output: Output, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image borken\.jpg; did you mean .*/broken\.jpg\?"):
        show(output, tmp_path, uris=["borken.jpg"])
    with pytest.raises(InputError, match="no run day"):
        show(output, tmp_path, run="day")
    with pytest.raises(SpecError, match="not both"):
        show(output, tmp_path, uris=["tiny.png"], sample=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be created"):
        show(output, tmp_path / "file" / "x", sample=1)
    with pytest.raises(SpecError, match="is a file"):
        show(output, tmp_path / "file")
    with pytest.raises(SpecError, match="not both"):
        show(output, tmp_path, limit=1, sample=3)
    with pytest.raises(InputError, match="category dgo; did you mean dog"):
        show(output, tmp_path, categories=["dgo"])
    with pytest.raises(InputError, match="category zebra; it has dog, person"):
        show(output, tmp_path, categories=["zebra"])
    with pytest.raises(InputError, match=r"dog that scores at least 0\.9; give a lower --min-score"):
        show(output, tmp_path, categories=["dog"], min_score=0.9)
    with pytest.raises(InputError, match="no image with the status failed"):
        show(output, tmp_path, statuses=["failed"])


def test_labels_without_room_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def find(_: str, height: int, width: int) -> list[Found]:
        return [Found("dog", 0.9, ellipse_mask(height, width))] * 40

    output = make_drawn_output(tmp_path, {"a.png": encoded(gradient(90, 120), "PNG")}, find)
    assert show(output, tmp_path / "png", style=Style(long_side=120)) == 0
    assert "have no label" in capsys.readouterr().err
    assert show(output, tmp_path / "plain", style=Style(long_side=120, has_labels=False)) == 0
    assert "have no label" not in capsys.readouterr().err


def test_filters_by_category_and_the_first_images(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(output, tmp_path / "dogs", categories=["dog"], limit=2) == 0
    captured = capsys.readouterr()
    assert "the best score is 0.250" in captured.err
    lines = [line.split() for line in captured.out.splitlines() if ".png" in line]
    assert [line[0] for line in lines] == ["0_a_b_20_ü.png", "1_a_b_20_ü.png"]
    assert [line[1] for line in lines] == ["1", "1"]
    assert show(output, tmp_path / "all", min_score=0.1, limit=1) == 0
    assert " 2 " in capsys.readouterr().out


@pytest.mark.parametrize(("picture_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_crops_and_sheets(output: Output, tmp_path: Path, picture_format: str, kind: str) -> None:
    choices = {"picture_format": picture_format, "min_score": 0.2, "limit": 2}
    assert show(output, tmp_path / "images", **choices) == 0
    assert show(output, tmp_path / "crops", content="crops", **choices) == 0
    assert show(output, tmp_path / "sheets", content="crops", is_sheet=True, **choices) == 0
    suffix = {"png": "png", "jpeg": "jpg", "webp": "webp"}[picture_format]
    names = {
        "images": ["0_a_b_20_ü", "1_a_b_20_ü"],
        "crops": ["0_a_b_20_ü_000", "0_a_b_20_ü_001", "1_a_b_20_ü_000", "1_a_b_20_ü_001"],
        "sheets": ["sheet-01"],
    }
    for folder, stems in names.items():
        paths = sorted((tmp_path / folder).iterdir())
        assert [path.name for path in paths] == [f"{stem}.{suffix}" for stem in stems]
        for path in paths:
            with Image.open(path) as image:
                assert image.format == kind
                image.load()


def test_an_earlier_calls_pictures_are_replaced_and_other_files_are_not(output: Output, tmp_path: Path) -> None:
    folder = tmp_path / "png"
    for _ in range(2):
        assert show(output, folder, limit=1) == 0
    photo = encoded(gradient(), "PNG")
    (folder / "1_a_b_20_ü.png").write_bytes(photo)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"1_a_b_20_ü\.png is not a picture of `htc show`.*--overwrite"):
        show(output, folder, limit=2)
    assert (folder / "1_a_b_20_ü.png").read_bytes() == photo
    assert show(output, folder, limit=2, is_overwriting=True) == 0
    assert (folder / "1_a_b_20_ü.png").read_bytes() != photo
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(SpecError, match=r"holds the images of the run"):
        show(output, output.photos, is_overwriting=True)
    for name, content in (("crops", "crops"), ("sheet", "images")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / {"crops": "0_a_b_20_ü_000.png", "sheet": "sheet-01.png"}[name]
        file.write_bytes(photo)
        with pytest.raises(SpecError, match="not replaced"):
            show(output, tmp_path / name, content=content, is_sheet=name == "sheet")
        assert file.read_bytes() == photo


def test_odd_names_stay_in_the_folder_and_apart(tmp_path: Path) -> None:
    names = ["a/it's.png", 'b/it"s.png', "c/it s.png", "x.y.png", "d/-rf.png", "e/<script>.png", "IT_S.png", "猫.png"]
    output = make_drawn_output(tmp_path, dict.fromkeys(names, encoded(gradient(), "PNG")))
    before = {path for path in tmp_path.rglob("*") if "shown" not in path.parts}
    assert show(output, tmp_path / "shown") == 0
    assert len({path.name.lower() for path in (tmp_path / "shown").iterdir()}) == len(names)
    assert {path for path in tmp_path.rglob("*") if "shown" not in path.parts} == before


def test_a_corrupt_mask_is_named_and_the_others_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def find(name: str, height: int, width: int) -> list[Found]:
        damaged = {"size": [height, width], "counts": "zzz"}
        return [Found("dog", 0.9, ellipse_mask(height, width)), Found("cat", 0.8, damaged)]

    output = make_drawn_output(tmp_path, {"a.png": encoded(gradient(200, 300), "PNG")}, find)
    for content, names in (("images", ["a.png"]), ("crops", ["a_000.png"])):
        assert show(output, tmp_path / content, content=content) == 1
        captured = capsys.readouterr()
        assert "a.png, instance 1 (cat): its mask's run lengths cannot be read." in captured.err
        assert " 1 " in captured.out
        assert sorted(path.name for path in (tmp_path / content).iterdir()) == names


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("rotated.jpg", encoded(gradient(60, 90), "JPEG", exif=rotated())),
        ("cmyk.jpg", encoded(gradient(90, 60).convert("CMYK"), "JPEG")),
        ("grey.png", encoded(gradient(90, 60).convert("L"), "PNG")),
        ("deep.png", encoded(gradient(90, 60).convert("L").convert("I;16"), "PNG")),
        ("palette.gif", encoded(gradient(90, 60).convert("P"), "GIF")),
        ("clear.webp", encoded(gradient(90, 60).convert("RGBA"), "WEBP", lossless=True)),
    ],
)
def test_masks_lie_on_every_kind_of_image_as_the_run_read_it(tmp_path: Path, name: str, payload: bytes) -> None:
    """Masks are those of the upright image: its top left corner is marked, and stays the top left."""

    def find(_: str, height: int, width: int) -> list[Found]:
        assert (height, width) == (90, 60)
        mask = np.zeros((height, width), bool)
        mask[:20, :10] = True
        return [Found("dog", 0.9, mask)]

    output = make_drawn_output(tmp_path, {name: payload}, find)
    style = Style(opacity=1, has_labels=False)
    assert show(output, tmp_path / "png", style=style) == 0
    (path,) = (tmp_path / "png").iterdir()
    drawn = pixels_of(path)
    assert drawn.shape == (90, 60, 3)
    assert (drawn[3:16, 3:7] == colour_of("dog")).all()
    plain = decode_image(payload)
    np.testing.assert_array_equal(drawn[26:], plain[26:])
    np.testing.assert_array_equal(drawn[:, 16:], plain[:, 16:])


def test_tables_without_images_or_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = make_drawn_output(tmp_path / "bare", {"a.png": encoded(gradient(), "PNG")})
    assert show(bare, tmp_path / "png") == 0
    assert "no instances" in capsys.readouterr().err
    with pytest.raises(InputError, match="no instances, so none of the category dog"):
        show(bare, tmp_path / "png", categories=["dog"])
    assert show(bare, tmp_path / "crops", content="crops") == 0
    assert "0 overlays" in capsys.readouterr().out
    begun = make_drawn_output(tmp_path / "begun", {"a.png": encoded(gradient(), "PNG")})
    for part in (begun.folder / "images").rglob("*.parquet"):
        part.unlink()
    with pytest.raises(InputError, match="night has no rows yet; `htc status`"):
        show(begun, tmp_path / "png")
    broken = make_drawn_output(tmp_path / "broken", {"a.png": b"no image"})
    with pytest.raises(InputError, match="no image with the status ok"):
        show(broken, tmp_path / "png")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_a_full_disk_is_one_sentence(output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, htc: Htc) -> None:
    """Each file is written to /dev/full, which behaves as a full disk."""
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return opened(Path("/dev/full") if path.name.endswith(".part") else path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SpecError, match=r"\.png cannot be written: No space left on device"):
        show(output, tmp_path / "png", limit=3)
    assert list((tmp_path / "png").iterdir()) == []


def test_the_command(output: Output, tmp_path: Path, htc: Htc) -> None:
    folder = str(tmp_path / "png")
    code, out, err = htc(
        "show",
        output.uri,
        "--to",
        folder,
        "--category",
        "dog",
        "--min-score",
        "0.2",
        "--colour-by",
        "instance",
        "--limit",
        "1",
        "--size",
        "200",
        "--format",
        "jpeg",
        "--boxes",
        "--no-labels",
    )
    assert code == 0, err
    assert "1 overlay in" in out
    with Image.open(tmp_path / "png" / "0_a_b_20_ü.jpg") as image:
        assert max(image.size) == 200
    code, _, err = htc("show", output.uri, "--to", folder, "--run", "nigth")
    assert (code, err.count("\n")) == (2, 1)
    assert "no run nigth" in err


def truth_of(folder: Path, names: list[str], size: tuple[int, int] = (200, 300)) -> str:
    """COCO annotations: a cat in the left half of each image."""
    height, width = size
    ring = [10.0, 10.0, width / 2, 10.0, width / 2, height - 10.0, 10.0, height - 10.0]
    box = [10.0, 10.0, width / 2 - 10, height - 20.0]
    document = {
        "categories": [{"id": 1, "name": "cat"}],
        "images": [{"id": n, "file_name": name, "height": height, "width": width} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": [ring], "bbox": box, "area": 9, "iscrowd": 0}
            for n in range(len(names))
        ],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_the_truth_is_drawn_beside_the_detections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def find(_: str, height: int, width: int) -> list[Found]:
        return [Found("dog", 0.9, ellipse_mask(height, width))]

    photo = encoded(gradient(200, 300), "PNG")
    output = make_drawn_output(tmp_path, dict.fromkeys(("a.png", "b.png", "c.png"), photo), find)
    style = Style(has_labels=False, opacity=1)
    assert show(output, tmp_path / "pairs", truth=truth_of(tmp_path, ["a.png", "c.png"]), style=style) == 0
    # Only what the truth names.
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == ["a.png", "c.png"]
    drawn = pixels_of(tmp_path / "pairs" / "a.png")
    assert drawn.shape[1] >= 600
    half = drawn.shape[1] - 300
    bar = drawn.shape[0] - 200
    assert (drawn[bar + 100, 75] == colour_of("cat")).all()
    assert (drawn[bar + 100, half + 150] == colour_of("dog")).all()
    assert not (drawn[bar + 100, 250] == colour_of("dog")).all()
    # An image that is asked for and has no truth is drawn with an empty one.
    capsys.readouterr()
    truth = truth_of(tmp_path, ["a.png"])
    assert show(output, tmp_path / "one", truth=truth, uris=["b.png"], style=style) == 0
    assert not (pixels_of(tmp_path / "one" / "b.png")[bar + 100, 75] == colour_of("cat")).all()
    assert show(output, tmp_path / "sheet", truth=truth, is_sheet=True) == 0
    assert [path.name for path in (tmp_path / "sheet").iterdir()] == ["sheet-01.png"]


def test_a_truth_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    output = make_drawn_output(tmp_path, {"a.png": encoded(gradient(200, 300), "PNG")})
    with pytest.raises(InputError, match="None of the images"):
        show(output, tmp_path / "png", truth=truth_of(tmp_path, ["z.png"]))
    with pytest.raises(InputError, match="another size"):
        show(output, tmp_path / "png", truth=truth_of(tmp_path, ["a.png"], (100, 150)))
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(SpecError, match="not a COCO annotation file"):
        show(output, tmp_path / "png", truth=str(tmp_path / "no.json"))
    with pytest.raises(SpecError, match="leave out --crops"):
        show(output, tmp_path / "png", truth=truth_of(tmp_path, ["a.png"]), content="crops")
    assert not (tmp_path / "png").exists()


def test_the_documents_pictures_are_small_and_ours() -> None:
    """`python -m tests.support.programs.overlay_pictures --write` remakes them."""
    pictures = sorted((ROOT / "docs" / "overlays").iterdir())
    assert len(pictures) > 4
    assert [path.name for path in pictures if not is_own_picture(path) or path.stat().st_size > 150_000] == []


def test_the_pages_python_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_: str, height: int, width: int) -> list[Found]:
        return [Found("dog", 0.9, ellipse_mask(height, width))]

    make_drawn_output(tmp_path, {"a.png": encoded(gradient(60, 80), "PNG")}, find)
    (tmp_path / "out").rename(tmp_path / "masks")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "show.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert pixels_of(tmp_path / "look.webp").shape == (600, 800, 3)


def test_the_pages_commands_are_flags_of_the_command() -> None:
    page = (ROOT / "docs" / "show.md").read_text()
    commands = re.findall(r"^htc show .*?(?=\s+#|$)", page, re.MULTILINE)
    assert len(commands) > 6
    known = set(re.findall(r"`(--[a-z-]+)`[^\n]*\bshow\b", (ROOT / "docs" / "flags.md").read_text()))
    assert {flag for line in commands for flag in re.findall(r"--[a-z-]+", line)} <= known
