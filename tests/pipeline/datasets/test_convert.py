"""Conversion to COCO: every format, what is left out and changed, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from numpy.typing import NDArray
from PIL import Image

from htc_model.training.annotations import decode_mask
from htc_model.training.coco_reader import read_annotations
from pipeline.datasets import Conversion, ConvertOptions, convert_dataset
from pipeline.errors import InputError, OutputOccupiedError, SpecError
from pipeline.inputs import decode_image
from tests.support.builders.annotated_photos import (
    HEIGHT,
    SQUARE,
    WIDTH,
    labelme_shape,
    png_base64,
    square_annotation,
    write_coco,
    write_cvat,
    write_labelme,
    write_photo,
    write_yolo,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Convert = Callable[..., Conversion]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def convert(source: Path, tmp_path: Path) -> Convert:
    return lambda **options: convert_dataset(source, tmp_path / "to", ConvertOptions(**options))


def document(conversion: Conversion, name: str = "annotations.json") -> Any:
    return json.loads((conversion.folder / name).read_text())


def masks(conversion: Conversion) -> list[NDArray[np.uint8]]:
    """The masks that training gets, image by image."""
    read = read_annotations(document(conversion))
    return [decode_mask(entry, image.height, image.width) for image in read.images for entry in image.objects]


SQUARE_MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE_MASK[5:25, 10:30] = 1


# labelme


def test_labelme_polygons_become_the_same_masks(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png")
    write_labelme(source / "a.json", [labelme_shape(SQUARE), labelme_shape([[1, 1], [5, 1], [1, 5]], "ant")])
    conversion = convert()
    assert (conversion.format, conversion.images, conversion.objects) == ("labelme", 1, 2)
    # Without an order of its own, by name.
    assert document(conversion)["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    first = document(conversion)["annotations"][0]
    assert (first["bbox"], first["area"], first["category_id"]) == ([10, 5, 20, 20], 400, 2)
    np.testing.assert_array_equal(masks(conversion)[0], SQUARE_MASK)
    assert (conversion.folder / "images" / "a.png").read_bytes() == (source / "a.png").read_bytes()


def test_labelme_shapes_of_one_group_are_one_object(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png")
    shapes = [labelme_shape(SQUARE, group=1), labelme_shape([[40, 5], [50, 5], [50, 15], [40, 15]], group=1)]
    other = labelme_shape(SQUARE, "dog", group=1)
    write_labelme(source / "a.json", [*shapes, other])
    conversion = convert()
    assert conversion.classes == {"cat": 1, "dog": 1}
    assert masks(conversion)[0].sum() == 400 + 100


def test_labelme_masks_keep_their_holes(source: Path, convert: Convert) -> None:
    ring = np.ones((11, 21), np.uint8)
    ring[3:8, 5:15] = 0
    write_photo(source / "a.png")
    shape = labelme_shape([[10, 5], [30, 15]], kind="mask", mask=png_base64(ring))
    write_labelme(source / "a.json", [shape])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:16, 10:31] = ring
    conversion = convert()
    np.testing.assert_array_equal(masks(conversion)[0], expected)
    assert document(conversion)["annotations"][0]["bbox"] == [10, 5, 21, 11]


def test_labelme_rectangles_stay_boxes_and_circles_are_round(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png")
    write_labelme(
        source / "a.json",
        [
            labelme_shape([[30, 25], [10, 5]], kind="rectangle"),
            labelme_shape([[30, 20], [30, 30]], kind="circle"),
            labelme_shape([[3, 3]], kind="point"),
        ],
    )
    conversion = convert()
    box, circle = document(conversion)["annotations"]
    assert box["bbox"] == [10, 5, 20, 20]
    assert "segmentation" not in box
    assert circle["area"] == pytest.approx(np.pi * 100, rel=0.05)
    assert conversion.changed == {"box without a mask, kept as a box": ["a.json, shape 0"]}
    assert conversion.left_out == {"shape without an area (point)": ["a.json, shape 2"]}


def test_labelme_is_annotated_upright(source: Path, convert: Convert) -> None:
    # labelme shows and measures the upright image: 40 x 60 of 60 x 40 stored pixels.
    write_photo(source / "a.jpg", orientation=6)
    write_labelme(source / "a.json", [labelme_shape([[5, 10], [25, 10], [25, 30]])], image="a.jpg", size=(40, 60))
    conversion = convert()
    image = document(conversion)["images"][0]
    assert (image["width"], image["height"]) == (40, 60)
    assert decode_image((source / "a.jpg").read_bytes()).shape[:2] == (60, 40)
    assert conversion.changed == {}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_what_was_annotated_on_the_stored_pixels_is_turned(source: Path, convert: Convert, orientation: int) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[5:25, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(source / "a.png", exif=exif)
    patch = labelme_shape([[10, 5], [29, 24]], "dog", kind="mask", mask=png_base64(np.ones((20, 20))))
    write_labelme(source / "a.json", [labelme_shape(SQUARE), patch])
    conversion = convert()
    upright = decode_image((source / "a.png").read_bytes())[:, :, 0] > 0
    for mask in masks(conversion):
        np.testing.assert_array_equal(mask.astype(bool), upright)
    assert [*conversion.changed] == ["annotated on the stored pixels, turned upright by the EXIF orientation"]


def test_labelme_finds_the_image_that_the_file_names(source: Path, convert: Convert) -> None:
    write_photo(source / "pictures" / "a.png", 1)
    write_photo(source / "pictures" / "a.jpg", 2)
    write_labelme(source / "json" / "a.json", [labelme_shape(SQUARE)], image="..\\pictures\\a.jpg")
    conversion = convert()
    assert [image["file_name"] for image in document(conversion)["images"]] == ["a.jpg"]


def test_two_images_of_one_stem_are_not_guessed(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png", 1)
    write_photo(source / "a.jpg", 2)
    write_photo(source / "b.png", 3)
    write_labelme(source / "a.json", [labelme_shape(SQUARE)], image="gone.jpg")
    write_labelme(source / "b.json", [labelme_shape(SQUARE)])
    conversion = convert()
    assert conversion.images == 1
    assert conversion.left_out == {"image that was not found": ["a.json"]}


def test_an_image_inside_its_labelme_file_is_written(source: Path, convert: Convert) -> None:
    import base64

    payload = write_photo(source.parent / "elsewhere" / "a.png").read_bytes()
    path = write_labelme(source / "a.json", [labelme_shape(SQUARE)])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"imageData": base64.b64encode(payload).decode()}))
    conversion = convert()
    assert (conversion.folder / "images" / "a.png").read_bytes() == payload


def test_images_without_a_labelme_file_are_named_or_taken(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png", 1)
    write_photo(source / "b.png", 2)
    write_labelme(source / "a.json", [labelme_shape(SQUARE)])
    conversion = convert()
    assert conversion.images == 1
    assert "--keep-empty" in conversion.notes[0]
    assert convert(keeps_empty=True).images == 2


def test_damaged_labelme_files_are_named_and_the_others_read(source: Path, convert: Convert) -> None:
    for number, name in enumerate("abcd"):
        write_photo(source / f"{name}.png", number)
        write_labelme(source / f"{name}.json", [labelme_shape(SQUARE)])
    (source / "b.json").write_bytes((source / "b.json").read_bytes()[:-40])
    (source / "c.json").write_bytes((source / "c.json").read_text().replace("cat", "Köter").encode("latin-1"))
    conversion = convert()
    assert conversion.images == 2
    named = conversion.left_out["JSON file that cannot be read"]
    assert "b.json is not JSON (cut short?)" in named[0]
    assert "c.json" in named[1]
    assert "UTF-8" in named[1]


def test_shapes_off_the_image_are_clipped_or_left_out(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png")
    write_labelme(
        source / "a.json",
        [
            labelme_shape([[50, 30], [70, 30], [70, 50], [50, 50]]),
            labelme_shape([[80, 5], [90, 5], [90, 15]]),
            labelme_shape([[5, 5], [9, 9]]),
            labelme_shape([[5, 5], [9, 9], [5, 5]]),
            labelme_shape([[5, 5], [20, 5], [12, 5]]),
            labelme_shape([["x", 5]]),
            labelme_shape(SQUARE, label=" "),
        ],
    )
    conversion = convert()
    assert document(conversion)["annotations"][0]["bbox"] == [50, 30, 10, 10]
    assert conversion.changed == {"mask partly off the image, clipped": ["a.json, shape 0"]}
    assert {kind: len(names) for kind, names in conversion.left_out.items()} == {
        "mask off the image": 1,
        "polygon with < 3 points": 2,
        "polygon without an area": 1,
        "shape whose points are not pairs of numbers": 1,
        "shape without a label": 1,
    }
    assert json.loads((conversion.folder / "convert_report.json").read_text())["left_out"]["mask off the image"] == [
        "a.json, shape 1"
    ]


@pytest.mark.parametrize(
    ("damage", "kind"), [("gone", "not found"), ("cut", "cannot be read"), ("size", "another size")]
)
def test_images_that_cannot_be_used_are_named(source: Path, convert: Convert, damage: str, kind: str) -> None:
    for number, name in enumerate("ab"):
        write_photo(source / f"{name}.png", number)
        write_labelme(source / f"{name}.json", [labelme_shape(SQUARE)])
    if damage == "gone":
        (source / "b.png").unlink()
    elif damage == "cut":
        (source / "b.png").write_bytes(b"no image")
    else:
        write_photo(source / "b.png", size=(30, 20))
    conversion = convert()
    assert conversion.images == 1
    ((found, names),) = conversion.left_out.items()
    assert kind in found
    assert "b.json" in names[0]


# CVAT


def test_cvat_polygons_masks_ellipses_and_boxes(source: Path, convert: Convert) -> None:
    write_photo(source / "images" / "default" / "a.png")
    write_cvat(
        source / "annotations.xml",
        f'<image id="0" name="a.png" subset="default" task_id="1" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="cat" source="manual" occluded="0" points="10.00,5.00;30.00,5.00;30.00,25.00;10.00,25.00" '
        'z_order="0"><attribute name="name">no label</attribute></polygon>'
        # Row by row in a box of 4 x 3: 1 off, 2 on, 2 off, 2 on; the rest is left out.
        '<mask label="dog" source="manual" occluded="0" rle="1, 2, 2, 2" left="7" top="3" width="4" height="3"></mask>'
        '<ellipse label="cat" cx="30" cy="20" rx="10" ry="5"></ellipse>'
        '<box label="cat" xtl="1" ytl="2" xbr="11" ybr="12"></box>'
        '<box label="cat" xtl="20" ytl="10" xbr="40" ybr="20" rotation="90.0"></box>'
        '<polyline label="cat" points="1,1;2,2"></polyline><tag label="cat"></tag></image>',
    )
    conversion = convert()
    assert conversion.format == "CVAT XML"
    # CVAT's own order of labels.
    assert document(conversion)["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    polygon, mask, ellipse, _, turned = masks(conversion)
    np.testing.assert_array_equal(polygon, SQUARE_MASK)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:6, 7:11] = [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(mask, expected)
    assert ellipse.sum() == pytest.approx(np.pi * 50, rel=0.08)
    assert document(conversion)["annotations"][3]["bbox"] == [1, 2, 10, 10]
    assert document(conversion)["annotations"][4]["bbox"] == [25, 5, 10, 20]
    assert turned.sum() == 200
    assert len(conversion.left_out) == 2


def test_cvat_groups_join_shapes_and_group_0_does_not(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png")
    shape = '<polygon label="cat" points="{0},1;{1},1;{1},9" group_id="{2}"></polygon>'
    shapes = [shape.format(1, 5, 7), shape.format(10, 15, 7), shape.format(20, 25, 0), shape.format(30, 35, 0)]
    write_cvat(source / "a.xml", f'<image id="0" name="a.png" width="60" height="40">{"".join(shapes)}</image>')
    assert convert().objects == 3


def test_a_box_in_the_group_of_a_mask_is_not_filled(source: Path, convert: Convert) -> None:
    # As Datumaro writes CVAT's XML.
    write_photo(source / "a.png")
    polygon = '<polygon label="cat" points="1,1;30,1;1,30" group_id="3"></polygon>'
    box = '<box label="cat" xtl="1" ytl="1" xbr="30" ybr="30" group_id="3"></box>'
    write_cvat(source / "a.xml", f'<image id="0" name="a.png" width="60" height="40">{box}{polygon}</image>')
    conversion = convert()
    (entry,) = document(conversion)["annotations"]
    assert entry["segmentation"] == [[1, 1, 30, 1, 1, 30]]
    assert conversion.changed == {"box in a group that has a mask, taken as its box": ["a.png, box 0"]}


def test_cvat_subsets_become_splits(source: Path, convert: Convert) -> None:
    images = ""
    for number, subset in enumerate(("Train", "Train", "Validation")):
        write_photo(source / "images" / subset / f"{number}.png", number)
        shape = '<polygon label="cat" points="1,1;9,1;9,9"></polygon>'
        images += f'<image id="{number}" name="{number}.png" subset="{subset}" width="60" height="40">{shape}</image>'
    write_cvat(source / "annotations.xml", images)
    conversion = convert()
    assert [path.name for path in conversion.files] == ["train.json", "val.json"]
    assert [image["file_name"] for image in document(conversion, "val.json")["images"]] == ["Validation/2.png"]
    assert document(conversion, "train.json")["categories"] == document(conversion, "val.json")["categories"]


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda text: text[:-60], SpecError, "cut short"),
        (lambda text: text.replace("utf-8", "utf-9"), SpecError, "not XML"),
        (lambda text: text.replace("<image", '<track id="0"></track><image', 1), SpecError, "tracks of a video"),
        (lambda text: text.replace("?>", '?><!DOCTYPE a [<!ENTITY b "c">]>', 1), SpecError, "entities"),
        (lambda text: text.replace("<image", "<other").replace("</image", "</other"), InputError, "no images"),
    ],
)
def test_cvat_files_that_cannot_be_used(
    source: Path, convert: Convert, change: Callable[[str], str], error: type[Exception], word: str
) -> None:
    write_photo(source / "a.png")
    path = write_cvat(source / "a.xml", '<image id="0" name="a.png" width="60" height="40"></image>')
    path.write_text(change(path.read_text()))
    with pytest.raises(error, match=word):
        convert()


def test_cvat_masks_longer_than_their_box_are_left_out(source: Path, convert: Convert) -> None:
    write_photo(source / "a.png")
    mask = '<mask label="cat" rle="0, 13" left="0" top="0" width="4" height="3"></mask>'
    good = '<polygon label="cat" points="1,1;9,1;9,9"></polygon>'
    write_cvat(source / "a.xml", f'<image id="0" name="a.png" width="60" height="40">{mask}{good}</image>')
    conversion = convert()
    assert conversion.objects == 1
    assert "longer than the mask" in next(iter(conversion.left_out))


# YOLO


def test_yolo_polygons_and_boxes(source: Path, convert: Convert) -> None:
    write_yolo(
        source,
        {
            "a": f"1 {10 / 60} {5 / 40} {30 / 60} {5 / 40} {30 / 60} {25 / 40} {10 / 60} {25 / 40}\n",
            "b": f"0 {20 / 60} {15 / 40} {20 / 60} {20 / 40}\n",
            "empty": "",
        },
    )
    conversion = convert()
    assert (conversion.format, conversion.images, conversion.objects) == ("YOLO", 3, 2)
    assert [path.name for path in conversion.files] == ["train.json"]
    polygon, box = document(conversion, "train.json")["annotations"]
    assert polygon["segmentation"] == [[10, 5, 30, 5, 30, 25, 10, 25]]
    assert polygon["category_id"] == 2
    assert box["bbox"] == [10, 5, 20, 20]


def test_yolo_polygons_with_two_points_are_left_out(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n0 .1 .1 .9 .9\n0 .1 .1 .9 .1 .9\nx y\n"})
    conversion = convert()
    assert conversion.objects == 1
    assert conversion.left_out == {
        "line with half a point": ["labels/train/a.txt, line 3"],
        "line that is not numbers": ["labels/train/a.txt, line 4"],
        "polygon with < 3 points": ["images/train/a.png, line 2"],
    }


def test_a_yolo_label_without_a_class_name_is_refused(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "2 .1 .1 .9 .1 .9 .9\n"})
    with pytest.raises(SpecError, match=r"labels/train/a.txt, line 1: the class 2 has no name in data.yaml.*cat \(0\)"):
        convert()


def test_yolo_splits_and_roboflows_paths(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n"}, names={0: "cat", 5: "dog"}, val="../valid/images")
    write_photo(source / "valid" / "images" / "b.png", 9)
    (source / "valid" / "labels").mkdir()
    (source / "valid" / "labels" / "b.txt").write_text("5 .1 .1 .9 .1 .9 .9\n")
    conversion = convert()
    assert [path.name for path in conversion.files] == ["train.json", "val.json"]
    assert conversion.classes == {"cat": 1, "dog": 1}


def test_yolo_labels_and_images_without_each_other(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n", "b": "0 .1 .1 .9 .1 .9 .9\n"})
    (source / "images" / "train" / "b.png").unlink()
    write_photo(source / "images" / "train" / "c.png", 7)
    conversion = convert()
    assert conversion.images == 2
    assert conversion.left_out == {"label file without an image": ["labels/train/b.txt"]}


def test_yolo_images_that_share_a_label_file_are_left_out(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n", "b": "0 .1 .1 .9 .1 .9 .9\n"})
    write_photo(source / "images" / "train" / "b.jpg", 7)
    conversion = convert()
    assert conversion.images == 1
    assert [len(names) for names in conversion.left_out.values()] == [2]
    assert "b.jpg, b.png" in next(iter(conversion.left_out))


def test_yolo_listings_name_images_of_another_machine(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n", "b": "0 .1 .1 .9 .1 .9 .9\n"}, train="train.txt")
    (source / "train.txt").write_text("images/train/a.png\ndata/images/train/b.png\n/gone/c.png\n\n")
    conversion = convert()
    assert (conversion.images, conversion.objects) == (2, 2)
    assert [*conversion.left_out] == ["image that cannot be read"]


@pytest.mark.parametrize(
    ("names", "word"), [("cat", "list of class names"), ({"a": "b"}, "list of class names"), ([None], "no name")]
)
def test_yolo_names_that_cannot_be_used(source: Path, convert: Convert, names: object, word: str) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n"}, names=names)
    with pytest.raises(SpecError, match=word):
        convert()


def test_yolo_folders_that_do_not_exist_are_named(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n"}, val="images/absent")
    with pytest.raises(SpecError, match="images/absent as val"):
        convert()


# COCO


def test_coco_is_read_again_as_it_was_written(source: Path, convert: Convert, tmp_path: Path) -> None:
    original = write_coco(source / "instances.json", names=("cat", "dog"))
    conversion = convert()
    again = convert_dataset(conversion.folder, tmp_path / "again")
    for each in (conversion, again):
        assert document(each)["images"] == original["images"]
        assert document(each)["categories"] == original["categories"]
        assert [entry["image_id"] for entry in document(each)["annotations"]] == [0, 1, 2]
    assert document(again) == document(conversion)


def test_coco_holes_and_crowds_are_kept(source: Path, convert: Convert) -> None:
    ring = SQUARE_MASK.copy()
    ring[10:15, 15:20] = 0
    rle = pycocotools.mask.encode(np.asfortranarray(ring))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    annotations = [
        square_annotation(1, 0, segmentation=segmentation),
        square_annotation(2, 0, iscrowd=1),
        square_annotation(3, 9),
        square_annotation(4, 0, 9),
        square_annotation(5, 0, segmentation=[[1, 1, 2]]),
    ]
    write_coco(source / "coco.json", photos=1, annotations=annotations)
    conversion = convert()
    np.testing.assert_array_equal(masks(conversion)[0], ring)
    assert [entry["iscrowd"] for entry in document(conversion)["annotations"]] == [0, 1]
    assert len(conversion.left_out) == 3
    assert "1 masks of coco.json are marked as crowds" in conversion.notes[0]
    assert convert(crowds="objects").objects == 2


def test_cvats_coco_export_has_masks_that_are_not_crowds(source: Path, convert: Convert) -> None:
    plain = np.diff(np.flatnonzero(np.diff(np.r_[2, SQUARE_MASK.ravel(order="F"), 2]))).tolist()
    rle = {"size": [HEIGHT, WIDTH], "counts": plain}
    annotation = square_annotation(1, 0, segmentation=rle, iscrowd=1, attributes={"occluded": False})
    (source / "annotations").mkdir()
    write_coco(source / "annotations" / "instances_default.json", photos=1, annotations=[annotation])
    conversion = convert()
    assert document(conversion)["annotations"][0]["iscrowd"] == 0
    assert "CVAT marks every brush mask" in conversion.notes[0]
    np.testing.assert_array_equal(masks(conversion)[0], SQUARE_MASK)
    assert document(convert(crowds="keep"))["annotations"][0]["iscrowd"] == 1


def test_coco_files_of_several_splits(source: Path, convert: Convert) -> None:
    for number, split in enumerate(("train", "valid")):
        (source / split).mkdir()
        write_coco(source / split / "_annotations.coco.json", photos=1, first=number, folder=".")
    conversion = convert()
    assert [path.name for path in conversion.files] == ["train.json", "val.json"]
    write_coco(source / "valid" / "_annotations.coco.json", photos=1, names=("dog",), folder=".")
    with pytest.raises(SpecError, match="other categories"):
        convert()


def test_coco_cut_short_is_refused(source: Path, convert: Convert) -> None:
    write_coco(source / "coco.json")
    (source / "coco.json").write_bytes((source / "coco.json").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"coco.json is not JSON \(cut short"):
        convert()
    with pytest.raises(SpecError, match="cut short"):
        convert(format="coco")


# Label maps


def write_maps(source: Path, name: str, objects: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
    write_photo(source / "JPEGImages" / f"{name}.jpg")
    for folder, pixels in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        (source / folder).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(source / folder / f"{name}.png")


def test_values_of_wrong_types_are_flaws(source: Path, convert: Convert) -> None:
    annotations = [
        square_annotation(1, 0),
        square_annotation(2, 0, segmentation=[[10**30, 1, 2, 2, 3, 3]]),
        square_annotation(3, 0, segmentation={"size": [[], 3], "counts": None}),
        square_annotation(4, 0, bbox=[float("nan")] * 4, segmentation=[]),
        {"image_id": [], "category_id": {}},
        7,  # type: ignore[list-item]
    ]
    write_coco(source / "coco.json", photos=1, annotations=annotations)
    conversion = convert()
    assert conversion.objects == 1
    assert sum(map(len, conversion.left_out.values())) == 5


def test_label_maps_of_pascal_voc(source: Path, convert: Convert) -> None:
    objects = np.zeros((HEIGHT, WIDTH), np.uint8)
    objects[5:25, 10:30], objects[30:35, 40:50], objects[26:28, 10:30] = 1, 2, 255
    classes = np.where(objects == 1, 8, np.where(objects == 2, 15, objects)).astype(np.uint8)
    write_maps(source, "a", objects, classes)
    conversion = convert()
    assert {name: count for name, count in conversion.classes.items() if count} == {"cat": 1, "person": 1}
    cat = max(masks(conversion), key=lambda mask: int(mask.sum()))
    np.testing.assert_array_equal(cat, SQUARE_MASK)


def test_label_maps_of_cvat_have_colours(source: Path, convert: Convert) -> None:
    (source / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nball:250,50,83::\n")
    objects = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    objects[5:25, 10:30], objects[30:35, 40:50] = (128, 0, 0), (0, 128, 0)
    classes = np.where(objects.any(axis=2, keepdims=True), np.uint8([250, 50, 83]), np.uint8(0)).astype(np.uint8)
    write_maps(source, "a", objects, classes)
    assert convert().classes == {"ball": 2}
    (source / "labelmap.txt").write_text("background:0,0,0::\n")
    with pytest.raises(SpecError, match=r"colour \(250, 50, 83\)"):
        convert()


def test_label_maps_may_be_numbered_in_the_order_of_the_labelmap(source: Path, convert: Convert) -> None:
    (source / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:::\nball:::\nbat:::\n")
    objects = np.zeros((HEIGHT, WIDTH), np.uint8)
    objects[5:25, 10:30] = 1
    write_maps(source, "a", objects, objects * 2)
    assert convert().classes == {"ball": 0, "bat": 1}
    write_maps(source, "a", objects, objects * 3)
    with pytest.raises(SpecError, match=r"colour \(128, 128, 0\), which labelmap.txt does not name"):
        convert()


def test_label_maps_of_classes_alone_are_no_instances(source: Path, convert: Convert) -> None:
    write_maps(source, "a", np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8))
    for path in (source / "SegmentationObject").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no instances"):
        convert()


# Whole sources


def test_an_unknown_format_names_the_known_ones(source: Path, convert: Convert) -> None:
    (source / "list.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"no annotations of a known format; known are labelme.*CVAT.*YOLO.*COCO"):
        convert()


def test_an_empty_folder_and_images_alone_are_named(source: Path, convert: Convert) -> None:
    with pytest.raises(InputError, match="is empty"):
        convert()
    write_photo(source / "a.png")
    with pytest.raises(InputError, match="1 images and no annotations"):
        convert()


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        convert_dataset(tmp_path / "absent", tmp_path / "to")


def test_an_archive_is_to_be_unpacked(source: Path, convert: Convert) -> None:
    (source / "export.zip").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="unpack it"):
        convert()


def test_two_formats_in_one_folder_are_not_guessed(source: Path, convert: Convert) -> None:
    write_yolo(source, {"a": "0 .1 .1 .9 .1 .9 .9\n"})
    write_labelme(source / "images" / "train" / "a.json", [labelme_shape(SQUARE)])
    with pytest.raises(SpecError, match=r"several formats: labelme, yolo.*--format"):
        convert()
    assert convert(format="yolo").format == "YOLO"
    assert convert(format="labelme").format == "labelme"


def test_similar_names_are_noted_and_joined_by_renaming(source: Path, convert: Convert) -> None:
    for number, name in enumerate(("cat", "Cat ", "dog")):
        write_photo(source / f"{number}.png", number)
        write_labelme(source / f"{number}.json", [labelme_shape(SQUARE, name)])
    conversion = convert()
    assert "'Cat ' and 'cat' differ only in case or spaces" in conversion.notes[0]
    joined = convert(renamed={"Cat ": "cat"})
    assert (dict(joined.classes), joined.notes) == ({"cat": 2, "dog": 1}, ())
    with pytest.raises(SpecError, match="--rename"):
        convert(renamed={"cow": "cat"})


def test_chosen_classes_give_the_order_of_the_ids(source: Path, convert: Convert) -> None:
    for number, name in enumerate(("ant", "bee", "cow")):
        write_photo(source / f"{number}.png", number)
        write_labelme(source / f"{number}.json", [labelme_shape(SQUARE, name)])
    conversion = convert(classes=("cow", "ant"))
    assert document(conversion)["categories"] == [{"id": 1, "name": "cow"}, {"id": 2, "name": "ant"}]
    assert (conversion.images, conversion.objects) == (3, 2)
    with pytest.raises(SpecError, match="--class: the source has no class 'gnu'"):
        convert(classes=("gnu",))


def test_strict_refuses_what_must_be_left_out(source: Path, convert: Convert, tmp_path: Path) -> None:
    write_photo(source / "a.png")
    write_labelme(source / "a.json", [labelme_shape(SQUARE), labelme_shape([[1, 1], [2, 2]])])
    with pytest.raises(SpecError, match=r"1 x polygon with < 3 points \(a.json, shape 1\)"):
        convert(is_strict=True)
    assert not (tmp_path / "to").exists()


def test_links_instead_of_copies_and_images_elsewhere(source: Path, convert: Convert, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "photos" / "deep" / "a.png")
    write_labelme(source / "a.json", [labelme_shape(SQUARE)])
    with pytest.raises(InputError, match="not found"):
        convert()
    conversion = convert(images=tmp_path / "photos", is_linked=True)
    link = conversion.folder / "images" / "a.png"
    assert link.is_symlink()
    assert link.resolve() == photo
    # A copy afterwards replaces the link, not the photo behind it.
    convert(images=tmp_path / "photos")
    assert not link.is_symlink()
    assert photo.read_bytes() == link.read_bytes()


def test_an_earlier_conversion_is_replaced_and_other_files_are_not(
    source: Path, convert: Convert, tmp_path: Path
) -> None:
    write_photo(source / "a.png")
    write_labelme(source / "a.json", [labelme_shape(SQUARE)])
    convert()
    write_labelme(source / "a.json", [labelme_shape(SQUARE)] * 2)
    assert convert().objects == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(OutputOccupiedError, match=r"notes.txt"):
        convert_dataset(source, tmp_path / "mine")
    with pytest.raises(SpecError, match="lies in the source"):
        convert_dataset(source, source / "to")
