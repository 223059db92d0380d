"""`htc diff`: what it prints, its exit code, its pictures."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.storage.storage import Storage
from tests.support.builders.compared_runs import ComparedRun, Found, Pictured, write_compared_runs
from tests.support.builders.finished_runs import begin_run, finish_run
from tests.support.builders.outputs import commit
from tests.support.htc import Htc
from tests.support.paths import PHOTOS

DOG = Found("dog", 0.9, (0, 0, 10, 10))
CAT = Found("cat", 0.8, (20, 5, 10, 10))


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Of 50 instances one has vanished, one image was added."""
    before = {f"{number:02d}": Pictured([DOG]) for number in range(50)}
    after = {**before, "07": Pictured([]), "new": Pictured([CAT])}
    write_compared_runs(tmp_path / "out", [ComparedRun("monday", before), ComparedRun("tuesday", after)])
    return str(tmp_path / "out")


def test_the_table(output: str, htc: Htc) -> None:
    code, out, _ = htc("diff", output, "monday", "tuesday")
    assert code == 0
    assert "50   compared" in out
    assert [line.split()[-1] for line in out.splitlines() if "added: only in B" in line] == ["new"]
    assert out.splitlines()[-1] == "1 of 50 instances that count changed: 2.00%."
    # A kind that nowhere occurs has no column.
    (heading,) = (line.split() for line in out.splitlines() if line.startswith(" category"))
    assert heading == ["category", "in", "A", "in", "B", "same", "vanished", "changed", "mean", "IoU"]
    (row,) = (line.split() for line in out.splitlines() if line.startswith(" dog"))
    assert row == ["dog", "50", "49", "49", "1", "2.0%", "1.000"]


@pytest.mark.parametrize(("limit", "code"), [("0.02", 0), ("0.019", 1), ("0", 1), ("1", 0)])
def test_the_exit_code_says_whether_more_has_changed(output: str, htc: Htc, limit: str, code: int) -> None:
    exit_code, out, _ = htc("diff", output, "monday", "tuesday", "--fail-over", limit)
    assert exit_code == code
    assert ("more than" if code else "within") in out.splitlines()[-1]
    exit_code, out, err = htc("diff", output, "--fail-over", limit, "--format", "json")
    assert exit_code == code
    assert json.loads(out)["changed_share"] == pytest.approx(0.02)
    assert "--fail-over" in err


def test_nothing_to_compare_does_not_pass(tmp_path: Path, htc: Htc) -> None:
    runs = [ComparedRun("1", {"a": Pictured([DOG])}), ComparedRun("2", {"a": Pictured([DOG], etag="v2")})]
    write_compared_runs(tmp_path, runs)
    code, _, err = htc("diff", str(tmp_path), "1", "2", "--fail-over", "0.5")
    assert code == 1
    assert "No image was compared (1 with other content), so nothing shows that --fail-over is kept." in err
    assert "--compare-changed" in err
    assert htc("diff", str(tmp_path), "1", "2")[0] == 0
    assert htc("diff", str(tmp_path), "1", "2", "--fail-over", "0.5", "--compare-changed")[0] == 0


def test_nothing_done_again_passes(tmp_path: Path, htc: Htc) -> None:
    runs = [ComparedRun("1", {"a": Pictured([DOG])}), ComparedRun("2", {}, mode="incremental")]
    write_compared_runs(tmp_path, runs)
    code, out, err = htc("diff", str(tmp_path), "1", "2", "--fail-over", "0")
    assert code == 0
    assert "not done again" in out
    assert "both runs have the same rows" in err


def test_images_that_were_not_done_again_speak_for_nothing(tmp_path: Path, htc: Htc) -> None:
    """Beside others that could not be compared."""
    first = {uri: Pictured([DOG]) for uri in "abc"}
    second = ComparedRun("2", {"c": Pictured([DOG], etag="v2")}, mode="incremental", deleted=["b"])
    write_compared_runs(tmp_path, [ComparedRun("1", first), second])
    code, out, err = htc("diff", str(tmp_path), "--fail-over", "0.5")
    assert code == 1
    assert "(1 not done again, 1 removed, 1 with other content)" in err
    # All are named, so that nothing follows.
    assert ", ..." not in out


def test_images_without_instances_that_count_pass_with_a_word(tmp_path: Path, htc: Htc) -> None:
    write_compared_runs(tmp_path, [ComparedRun(name, {"a": Pictured()}) for name in "12"])
    code, _, err = htc("diff", str(tmp_path), "--fail-over", "0.5")
    assert code == 0
    assert "In 1 compared image no instance scores 0.5 or more (--min-score)." in err


def test_thresholds_above_the_least_score_are_said(tmp_path: Path, htc: Htc) -> None:
    strict = ComparedRun("2", {"a": Pictured([DOG])}, record={"identity": {"model.score_threshold": 0.3}})
    write_compared_runs(tmp_path, [ComparedRun("1", {"a": Pictured([DOG])}), strict])
    assert "--min-score 0.3 or more leaves them out" in htc("diff", str(tmp_path), "--min-score", "0.1")[2]
    assert "--min-score" not in htc("diff", str(tmp_path), "--min-score", "0.3")[2]


def test_csv_has_a_row_for_each_category(output: str, htc: Htc) -> None:
    _, out, _ = htc("diff", output, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["category"], row["in_a"], row["vanished"]) for row in rows] == [("dog", "50", "1")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["monday", "wednesday"], "There is no run wednesday"),
        (["monday", "monday"], "does not differ from itself"),
        (["--fail-over", "2"], "give a share from 0 to 1"),
        (["--match-iou", "0.95"], "--match-iou is 0.95"),
        (["--to", "s3://bucket/x"], "not a local path"),
        (["--other", "nowhere"], "nowhere holds no run"),
    ],
)
def test_wrong_input_is_one_sentence(output: str, htc: Htc, words: list[str], message: str) -> None:
    code, out, err = htc("diff", output, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_an_output_in_the_place_of_a_run_is_pointed_out(output: str, htc: Htc) -> None:
    code, _, err = htc("diff", output, output)
    assert code == 2
    assert f"write --other {output}" in err


def test_an_output_without_rows(tmp_path: Path, htc: Htc) -> None:
    photos, output = tmp_path / "photos", str(tmp_path / "out")
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"x")
    for day, name in enumerate(("monday", "tuesday")):
        finish_run(str(photos), output, name, day=day, only_shards=0)
    code, _, err = htc("diff", output)
    assert code == 2
    assert "no committed images yet" in err


def pictured_output(folder: Path, count: int = 2) -> tuple[str, Path]:
    """Two runs over bundled photos, written without a model; in the second the second instance is gone."""
    photos = folder / "photos"
    photos.mkdir()
    for photo in sorted(PHOTOS.glob("*.jpg"))[:count]:
        shutil.copy(photo, photos)
    output = str(folder / "out")
    for day, (name, scores) in enumerate((("monday", (0.9, 0.8)), ("tuesday", (0.9,)))):
        run = begin_run(str(photos), output, name, day=day, shard_images=count)
        commit(run, 0, Storage(), scores)
        run.close()
    return output, photos


def test_pictures_show_both_runs_and_no_other_picture(tmp_path: Path, htc: Htc) -> None:
    output, photos = pictured_output(tmp_path)
    folder = tmp_path / "pictures"
    code, _, err = htc("diff", output, "--to", str(folder))
    assert code == 0
    assert "2 pictures" in err
    names = sorted(path.name for path in photos.iterdir())
    drawn = sorted(path.name for path in folder.glob("*.png"))
    assert drawn == [f"{place:03d}-{Path(name).stem}.png" for place, name in enumerate(names, 1)]
    with Image.open(folder / drawn[0]) as picture, Image.open(photos / names[0]) as photo:
        assert picture.width > 2 * photo.width
        assert picture.height > photo.height
        shown = np.asarray(picture.convert("RGB")).astype(int)
        original = np.asarray(photo.convert("RGB")).astype(int)
    # Both sides show the photo below their titles, and A the instance that has vanished.
    bar = shown.shape[0] - original.shape[0]
    left, right = shown[bar:, : original.shape[1]], shown[bar:, -original.shape[1] :]
    assert np.median(np.abs(left - original)) == np.median(np.abs(right - original)) == 0
    assert np.abs(left - right).max() > 50
    assert json.loads((folder / "diff.json").read_text())["instances"]["vanished"] == 2

    # The file of one image is gone, that of the other is another picture now.
    (photos / names[0]).unlink()
    Image.new("RGB", (640, 480), (255, 0, 0)).save(photos / names[1])
    os.utime(photos / names[1], (0, 0))
    assert htc("diff", output, "--to", str(folder), "--pictures", "2")[0] == 0
    for name in drawn:
        with Image.open(folder / name) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (pixels.max(axis=2) - pixels.min(axis=2)).max() < 10, "only grey, no red picture and no instance"


def test_a_folder_has_the_pictures_of_one_comparison(tmp_path: Path, htc: Htc) -> None:
    output, _ = pictured_output(tmp_path, 2)
    folder = tmp_path / "pictures"
    assert htc("diff", output, "--to", str(folder))[0] == 0
    assert len(list(folder.glob("*.png"))) == 2
    (folder / "003-mine.png").write_bytes(b"x")
    summary = json.loads((folder / "diff.json").read_text())
    (folder / "diff.json").write_text(json.dumps({**summary, "pictures": [*summary["pictures"], "../x.png", 3]}))
    (tmp_path / "x.png").write_bytes(b"x")
    assert htc("diff", output, "--to", str(folder), "--pictures", "1")[0] == 0
    assert sorted(path.name[:4] for path in folder.glob("*.png")) == ["001-", "003-"]
    assert (tmp_path / "x.png").exists()


def test_pictures_can_be_left_out(tmp_path: Path, htc: Htc) -> None:
    output, _ = pictured_output(tmp_path, 1)
    assert htc("diff", output, "--to", str(tmp_path / "tables"), "--pictures", "0")[0] == 0
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "diff.json",
        "images.parquet",
        "instances.parquet",
    ]
