"""`htc export`: every format holds the masks of the tables, and DIR is whole or not there."""

import base64
import contextlib
import csv
import io
import json
import re
import resource
import shutil
import signal
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.geometry
import yaml
from PIL import Image
from pycocotools.coco import COCO

from jobs.results.export import command, selection
from jobs.results.export.names import relative_name, split_name
from pipeline.errors import HtcError, InputError, SpecError
from pipeline.job_spec.job import load_spec
from pipeline.maintenance.compaction import compact_run
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.jobs.results.export.conftest import CATEGORIES, SIZES, Bitmap, Drawn
from tests.support.builders.incremental_runs import WrittenRun, write_runs
from tests.support.builders.outputs import FINGERPRINT, make_output_folder
from tests.support.htc import Htc
from tests.support.paths import ROOT

# Those of instances; `test_export_maps.py` has those of whole maps.
FORMATS = [each for each in command.Format if command.ExportRequest(each, Path()).table == "instances"]


def export(drawn: Drawn, folder: Path, chosen: str, **values: Any) -> Path:
    request = command.ExportRequest(command.Format(chosen), folder, **values)
    command.export_output(drawn.uri, request)
    return folder


def filled(ring: np.ndarray, size: tuple[int, int]) -> Bitmap:
    """Fill a ring by the rule of even and odd crossings, at the pixels' centres."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (rows > min(y0, y1)) & (rows < max(y0, y1))
            inside ^= crosses & (columns < x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
    return inside


@pytest.mark.parametrize("is_polygons", [False, True])
def test_coco_is_read_by_pycocotools(drawn: Drawn, tmp_path: Path, is_polygons: bool) -> None:
    folder = export(drawn, tmp_path / "coco", "coco", is_polygons=is_polygons)
    coco = COCO(str(folder / "annotations.json"))
    assert {each["id"]: each["name"] for each in coco.cats.values()} == CATEGORIES
    assert sorted(each["file_name"] for each in coco.imgs.values()) == sorted(SIZES)
    by_name = {each["file_name"]: each["id"] for each in coco.imgs.values()}
    assert len(set(coco.anns)) == sum(map(len, drawn.masks.values()))
    for name, masks in drawn.masks.items():
        rows = sorted(coco.imgToAnns[by_name[name]], key=lambda row: -row["score"])
        assert len(rows) == len(masks)
        for mask, row in zip(masks, rows, strict=True):
            assert row["area"] == mask.sum()
            if mask.any() or not is_polygons:
                found = coco.annToMask(row).astype(bool)
                # pycocotools draws polygons by its own rule, half a pixel wide.
                assert (found == mask).all() or (is_polygons and (found ^ mask).mean() < 0.2)
            for ring in row["segmentation"] if is_polygons else ():
                assert len(ring) >= 8
            if is_polygons:
                parts = [filled(np.reshape(ring, (-1, 2)), mask.shape) for ring in row["segmentation"]]
                assert (np.logical_xor.reduce([np.zeros_like(mask), *parts]) == mask).all()


def test_the_code_of_the_page_scores_as_evaluate_does(
    drawn: Drawn, tmp_path: Path, htc: Htc, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = json.loads((export(drawn, tmp_path / "coco", "coco") / "annotations.json").read_text())
    # Other ids, an image that was never run; a third of the objects is left out, among them a ring that is small by its
    # mask and medium by its box.
    truth = {
        "images": [
            *(row | {"id": row["id"] + 700} for row in exported["images"]),
            {"id": 9, "file_name": "never_run.jpg", "width": 40, "height": 30},
        ],
        "categories": [*(row | {"id": row["id"] + 40} for row in exported["categories"]), {"id": 9, "name": "unseen"}],
        "annotations": [
            *({**row, "image_id": 9, "category_id": row["category_id"] + 40} for row in exported["annotations"][-1:]),
            *(
                row | {"image_id": row["image_id"] + 700, "category_id": row["category_id"] + 40}
                for row in exported["annotations"]
                if row["id"] % 3 != 1 and row["area"]
            ),
        ],
    }
    monkeypatch.chdir(tmp_path)
    Path("truth.json").write_text(json.dumps(truth))
    classes = [word for name in CATEGORIES.values() for word in ("--class", name)]
    ours = json.loads(
        htc("evaluate", drawn.uri, "truth.json", "--json", "--to", "judged", *classes)[1].splitlines()[-1]
    )
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    mark = r"<!-- run by tests/jobs/results/export/test_export\.py -->"
    block = re.search(mark + r"\n```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(compile(block[1], "docs/evaluate.md", "exec"), names)
    for kind, name in (("segm", "mask"), ("bbox", "box")):
        theirs = list(names["metrics"][kind])
        assert list(ours["metrics"][name].values()) == pytest.approx(theirs, abs=1e-12)
        assert theirs[0] > 0


def test_yolo_lines_fill_the_masks(drawn: Drawn, tmp_path: Path) -> None:
    folder = export(drawn, tmp_path / "yolo", "yolo")
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data["names"] == {0: "person", 1: "dog & <b>"}
    assert Path(data["path"]) == folder
    # One stem each: `one.jpg` and `one.png` would share a label file.
    assert {str(path.relative_to(folder)) for path in (folder / "images").rglob("*") if path.is_file()} == {
        "images/a/one.jpg",
        "images/a/one-2.png",
        "images/b/_script_ & _two_ ü.jpg",
        "images/b/none.jpg",
    }
    assert (folder / "labels/b/none.txt").read_text() == ""
    for name, label in (
        ("a/one.jpg", "a/one"),
        ("a/one.png", "a/one-2"),
        ('b/<script> & "two" ü.jpg', "b/_script_ & _two_ ü"),
    ):
        lines = (folder / f"labels/{label}.txt").read_text().splitlines()
        masks = [(number, mask) for number, mask in enumerate(drawn.masks[name]) if mask.any()]
        assert len(lines) == len(masks)
        for line, (number, mask) in zip(lines, masks, strict=True):
            index, *numbers = line.split()
            assert int(index) == number % 2
            ring = np.reshape(np.array(numbers, float), (-1, 2))
            assert ring.min() >= 0
            assert ring.max() <= 1
            assert (filled(np.round(ring * mask.shape[::-1]), mask.shape) == mask).all()


def test_geojson_is_valid_and_of_the_masks_area(drawn: Drawn, tmp_path: Path) -> None:
    document = json.loads((export(drawn, tmp_path / "geo", "geojson") / "instances.geojson").read_text())
    assert len(document["features"]) == sum(map(len, drawn.masks.values()))
    for feature in document["features"]:
        values = feature["properties"]
        mask = drawn.masks[values["image"]][values["instance"]]
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == values["area"] == mask.sum()
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        assert (shapely.contains_xy(shape, columns.ravel(), rows.ravel()) == mask.ravel()).all()
        for polygon in feature["geometry"]["coordinates"]:
            assert [shapely.LinearRing(ring).is_ccw for ring in polygon] == [True] + [False] * (len(polygon) - 1)


def test_labelme_shapes_are_the_masks(drawn: Drawn, tmp_path: Path) -> None:
    folder = export(drawn, tmp_path / "labelme", "labelme")
    for name, stem in (("a/one.jpg", "a/one"), ("a/one.png", "a/one-2")):
        document = json.loads((folder / f"{stem}.json").read_text())
        assert Path(document["imagePath"]) == drawn.photos / name
        assert (document["imageHeight"], document["imageWidth"]) == SIZES[name]
        for number, mask in enumerate(drawn.masks[name]):
            shapes = [shape for shape in document["shapes"] if shape["group_id"] == number]
            assert bool(shapes) is bool(mask.any())
            found = np.zeros_like(mask)
            for shape in shapes:
                if shape["shape_type"] == "mask":
                    (left, top), (right, bottom) = shape["points"]
                    part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
                    found[top : bottom + 1, left : right + 1] |= part
                else:
                    found |= filled(np.array(shape["points"]), mask.shape)
            assert (found == mask).all()


def test_cvat_masks_are_the_masks(drawn: Drawn, tmp_path: Path) -> None:
    root = ET.parse(export(drawn, tmp_path / "cvat", "cvat") / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(CATEGORIES.values())
    found = {image.get("name"): image for image in root.iter("image")}
    assert sorted(found) == sorted(SIZES)  # type: ignore[type-var]
    for name, masks in drawn.masks.items():
        shapes = found[name].findall("mask")
        shown = [mask for mask in masks if mask.any()]
        assert len(shapes) == len(shown)
        for shape, mask in zip(shapes, shown, strict=True):
            left, top, width, height = (int(shape.get(key, "")) for key in ("left", "top", "width", "height"))
            lengths = [int(text) for text in shape.get("rle", "").split(",")]
            assert sum(lengths) == width * height
            part = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(height, width).astype(bool)
            bitmap = np.zeros_like(mask)
            bitmap[top : top + height, left : left + width] = part
            assert (bitmap == mask).all()


def test_label_maps_give_overlaps_to_the_most_confident(drawn: Drawn, tmp_path: Path) -> None:
    folder = export(drawn, tmp_path / "png", "png")
    rows = list(csv.DictReader(io.StringIO((folder / "instances.csv").read_text())))
    for name, stem in (("a/one.jpg", "a/one"), ("a/one.png", "a/one-2"), ("b/none.jpg", "b/none")):
        instances = np.asarray(Image.open(folder / f"instances/{stem}.png"))
        categories = np.asarray(Image.open(folder / f"categories/{stem}.png"))
        left = np.ones(SIZES[name], bool)
        expected = np.zeros(SIZES[name], int)
        for number, mask in enumerate(drawn.masks[name]):
            expected[mask & left] = number + 1
            left &= ~mask
        assert (instances == expected).all()
        assert (categories == np.select([expected % 2 == 1, expected > 0], [1, 18], 0)).all()
        own = [row for row in rows if row["file"] == f"{stem}.png"]
        visible = [int((expected == value + 1).sum()) for value in range(len(own))]
        assert [int(row["visible_pixels"]) for row in own] == visible


def test_fiftyone_masks_fill_their_boxes(drawn: Drawn, tmp_path: Path) -> None:
    folder = export(drawn, tmp_path / "fo", "fiftyone")
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert [Path(sample["filepath"]) for sample in samples] == [drawn.photos / name for name in sorted(SIZES)]
    for sample in samples:
        masks = [mask for mask in drawn.masks[str(Path(sample["filepath"]).relative_to(drawn.photos))] if mask.any()]
        detections = sample["htc"]["detections"]
        assert len(detections) == len(masks)
        for detection, mask in zip(detections, masks, strict=True):
            packed = base64.b64decode(detection["mask"]["$binary"]["base64"])
            part = np.load(io.BytesIO(zlib.decompress(packed)))
            x, y, width, height = np.round(np.array(detection["bounding_box"]) * (mask.shape[::-1] * 2)).astype(int)
            assert part.shape == (height, width)
            # FiftyOne cuts the corners to whole pixels.
            left, top, across, down = detection["bounding_box"]
            corners = np.array([left, top, left + across, top + down]) * (mask.shape[::-1] * 2)
            assert corners.astype(int).tolist() == [x, y, x + width, y + height]
            bitmap = np.zeros_like(mask)
            bitmap[y : y + height, x : x + width] = part
            assert (bitmap == mask).all()


def test_a_choice_is_kept_by_every_format(drawn: Drawn, tmp_path: Path) -> None:
    for chosen in FORMATS:
        folder = export(drawn, tmp_path / chosen, chosen, where="category = 'person' AND area > 0", min_score=0.7)
        if chosen is command.Format.COCO:
            rows = json.loads((folder / "annotations.json").read_text())["annotations"]
            assert sorted({(row["category_id"], round(row["score"], 2)) for row in rows}) == [(1, 0.75), (1, 0.95)]


def test_thinned_polygons_have_fewer_corners_and_nearly_the_area(drawn: Drawn, tmp_path: Path) -> None:
    exact, thin = (
        json.loads((export(drawn, tmp_path / str(px), "geojson", tolerance_px=px) / "instances.geojson").read_text())
        for px in (0.0, 1.0)
    )
    corners = [sum(str(feature).count("[") for feature in document["features"]) for document in (exact, thin)]
    assert corners[1] < 0.8 * corners[0]
    areas = [
        sum(shapely.geometry.shape(f["geometry"]).area for f in document["features"]) for document in (exact, thin)
    ]
    assert areas[1] == pytest.approx(areas[0], rel=0.1)


def test_copies_are_the_images_and_a_changed_one_is_left_out(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = drawn.photos / "a/one.png"
    before, times = photo.read_bytes(), photo.stat()
    folder = export(drawn, tmp_path / "copied", "coco", images=command.Images.COPY)
    assert (folder / "images/a/one-2.png").read_bytes() == before
    names = [each["file_name"] for each in json.loads((folder / "annotations.json").read_text())["images"]]
    assert sorted(names) == sorted(str(path.relative_to(folder / "images")) for path in folder.rglob("*.[jp][pn]g"))
    folder = export(drawn, tmp_path / "cvat", "cvat", images=command.Images.COPY)
    shown = [str(image.get("name")) for image in ET.parse(folder / "annotations.xml").getroot().iter("image")]
    assert sorted(shown) == sorted(names)
    try:
        Image.new("RGB", (17, 31), (1, 2, 3)).save(photo)
        for way in (command.Images.COPY, command.Images.LINK):
            folder = export(drawn, tmp_path / way, "yolo", images=way)
            assert not (folder / "images/a/one-2.png").exists()
            assert (folder / "images/a/one.jpg").exists()
            assert "1 of the images not" in capsys.readouterr().err
    finally:
        photo.write_bytes(before)
        import os

        os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_choice_of_nothing_names_what_there_is(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(drawn, tmp_path / "none", "coco", where="category = 'persn'")
    assert "No instance was chosen; run night has dog & <b>, person." in capsys.readouterr().err


def test_images_that_are_gone_are_not_offered_as_copies(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = drawn.photos / "a/one.png"
    photo.rename(tmp_path / "elsewhere.png")
    try:
        export(drawn, tmp_path / "yolo", "yolo")
    finally:
        (tmp_path / "elsewhere.png").rename(photo)
    said = capsys.readouterr().err
    assert "1 of the images not put there: they are gone" in said
    assert "--image-files" not in said


def test_a_folder_with_files_is_refused_and_overwritten_only_when_asked(drawn: Drawn, tmp_path: Path) -> None:
    folder = export(drawn, tmp_path / "out", "coco")
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"is not empty; .*--overwrite"):
        export(drawn, folder, "coco")
    export(drawn, folder, "coco", is_overwriting=True, min_score=0.9)
    assert (folder / "mine.txt").read_text() == "mine"
    assert len(json.loads((folder / "annotations.json").read_text())["annotations"]) == 3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"where": "nothing > 1"}, r'"nothing" not found'),
        ({"where": "area"}, r"'area' is no condition \(its type is BIGINT\)"),
        ({"where": "score > 0.5) OR (1=1"}, r'syntax error at or near "\)"'),
        ({"where": "true GROUP BY 1"}, "syntax error"),
        ({"where": "/* true"}, "unterminated"),
        ({"where": " "}, "The condition is empty"),
        ({"where": "area > 0; DROP VIEW images"}, "several statements; give one condition"),
        ({"chosen": "png", "tolerance_px": 1.0}, "the format png has none"),
        ({"chosen": "yolo", "is_polygons": True}, "--polygons is for the format coco"),
        ({"tolerance_px": 1.0}, "add --polygons"),
    ],
)
def test_a_wrong_choice_is_one_sentence_and_leaves_nothing(
    drawn: Drawn, tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    chosen = values.pop("chosen", "coco")
    with pytest.raises(SpecError, match=sentence):
        export(drawn, tmp_path / "out", chosen, **values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", FORMATS)
def test_a_damaged_mask_is_named_with_the_way_out(damaged: str, tmp_path: Path, chosen: command.Format) -> None:
    request = command.ExportRequest(chosen, tmp_path / "out")
    with pytest.raises(HtcError, match=r"^/.*a\.jpg: the mask of instance 1 is damaged; --where .mask_is_valid"):
        command.export_output(damaged, request)
    assert list(tmp_path.iterdir()) == []
    command.export_output(damaged, replace(request, where="mask_is_valid(mask)"))


def test_a_run_that_is_not_there_is_named(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no run nights .*Its runs are night"):
        export(drawn, tmp_path / "out", "coco", run="nights")
    export(drawn, tmp_path / "now", "coco", run="current")


@contextlib.contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond this, as on a disk that is full: the system itself refuses the write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Else the signal would end the process in a shell that has not ignored it.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("chosen", FORMATS)
def test_a_full_disk_leaves_nothing_and_is_named(drawn: Drawn, tmp_path: Path, chosen: command.Format) -> None:
    with pytest.raises(SpecError, match=r"/out/.* cannot be written: File too large"), small_files(50):
        export(drawn, tmp_path / "out", chosen, images=command.Images.NONE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_images_is_named_too(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"/out/images/.* cannot be written: File too large"), small_files(50):
        export(drawn, tmp_path / "out", "coco", images=command.Images.COPY)
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, Any]:
    """Every file; of COCO's the annotations without their numbers, in any order."""
    found: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
    if "annotations.json" in found:
        document = json.loads(found["annotations.json"])
        assert [row.pop("id") for row in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
        document["annotations"].sort(key=lambda row: (row["image_id"], -row["score"]))
        found["annotations.json"] = document
    return found


@pytest.mark.parametrize(("run", "is_compacted"), [("night", True), ("current", False)])
def test_it_is_the_same_in_pieces(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, is_compacted: bool
) -> None:
    output = tmp_path / "output"
    shutil.copytree(drawn.uri, output)
    if is_compacted:
        compact_run(Storage(), str(output), "night", target_bytes=1 << 20, check=lambda: None)
    for chosen in FORMATS:
        request = command.ExportRequest(chosen, tmp_path / "whole" / chosen, run=run, images=command.Images.NONE)
        command.export_output(str(output), request)
    monkeypatch.setattr(selection, "PIECE_INSTANCES", 4)
    monkeypatch.setattr(selection, "BATCH_ROWS", 2)
    for chosen in FORMATS:
        request = command.ExportRequest(chosen, tmp_path / "whole" / chosen, run=run, images=command.Images.NONE)
        whole = contents(request.folder)
        # YOLO's data.yaml names its folder.
        request.folder.rename(tmp_path / "before")
        command.export_output(str(output), request)
        assert contents(request.folder) == whole
        shutil.rmtree(tmp_path / "before")


def test_a_run_in_progress_is_exported_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make_output_folder(tmp_path)
    command.export_output(output.uri, command.ExportRequest(command.Format.COCO, tmp_path / "coco"))
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert (len(document["images"]), len(document["annotations"])) == (5, 10)
    assert "10 instances of 5 images" in capsys.readouterr().out


def test_an_output_without_rows_is_refused_and_one_without_instances_is_not(tmp_path: Path) -> None:
    output = make_output_folder(tmp_path, scores=())
    for chosen in FORMATS:
        command.export_output(output.uri, command.ExportRequest(chosen, tmp_path / "to" / chosen))
    document = json.loads((tmp_path / "to/coco/annotations.json").read_text())
    assert (len(document["images"]), document["annotations"], document["categories"]) == (5, [], [])
    empty = load_spec(None, {"input.uri": str(output.photos), "output.uri": str(tmp_path / "empty")})
    open_run(empty, FINGERPRINT, Storage(), run="night").close()
    with pytest.raises(InputError, match="no row of an image yet; `htc status`"):
        command.export_output(str(tmp_path / "empty"), command.ExportRequest(command.Format.COCO, tmp_path / "x"))


def test_the_command_says_what_it_wrote(drawn: Drawn, tmp_path: Path, htc: Htc) -> None:
    code, out, err = htc("export", drawn.uri, "--format", "coco", "--to", str(tmp_path / "x"))
    assert code == 0
    assert "15 instances of 4 images of run night in" in out
    assert "Left out: 1 image without a result" in err


@pytest.mark.parametrize(
    ("uri", "root", "name"),
    [
        ("/in/a/b.jpg", "/in/", "a/b.jpg"),
        ("s3://bucket/x/y/b.jpg", "s3://bucket/x", "y/b.jpg"),
        ("tar:///m/1.jpg::/in/t/shard-0.tar", "/in", "t/shard-0/m/1.jpg"),
        ("/in/t.parquet#row=7", "/in", "t/7.jpg"),
        ("https://host/a/b.jpg?sig=1", "list.txt", "b.jpg"),
    ],
)
def test_names_are_relative_to_the_input(uri: str, root: str, name: str) -> None:
    assert relative_name(uri, root) == name


def test_file_names_are_safe() -> None:
    given = ["a.jpg", "../../etc/passwd", "x:y?.jpg", "/", "a.b/c", ".jpg"]
    assert [split_name(name) for name in given] == [
        ("a", ".jpg"),
        ("etc/passwd", ""),
        ("x_y_", ".jpg"),
        ("image", ""),
        ("a.b/c", ""),
        (".jpg", ""),
    ]
    stem, suffix = split_name("ä" * 300 + ".jpg")
    assert len((stem + suffix).encode()) <= 255


def test_two_files_never_have_one_name(tmp_path: Path) -> None:
    uris = ["x/a-2.jpg", "x/a.jpg", "x/A.png", "y/a.jpg", "y/a-3.jpg", "z/a-2.png"]
    write_runs(tmp_path / "out", [WrittenRun(dict.fromkeys(uris, "ok"))])
    folder = tmp_path / "yolo"
    request = command.ExportRequest(command.Format.YOLO, folder, images=command.Images.NONE)
    command.export_output(str(tmp_path / "out"), request)
    names = sorted(path.name for path in (folder / "labels").iterdir())
    assert len(names) == len({name.lower() for name in names}) == 6
    # Who has a name keeps it.
    assert {"a-2.txt", "a-3.txt"} < set(names)
