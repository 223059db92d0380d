"""Scores equal those of pycocotools as its own page uses it, on real photos' annotations."""

import contextlib
import io
import json

import numpy as np
import pycocotools.mask
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from htc_model.training.coco_eval import coco_document, count_by_size, score_results, score_with_classes
from htc_model.training.coco_reader import read_annotations
from tests.support.builders.training_data import SIDE, small_document
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TINY = ROOT / "examples" / "training" / "tiny"
STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def detections_near(truth):
    """Each object's mask, shifted, with a box twice as wide; every fifth is missing, every third is doubled."""
    random = np.random.default_rng(0)
    found = []
    for number, entry in enumerate(truth.dataset["annotations"]):
        mask = np.roll(truth.annToMask(entry), random.integers(0, 6, 2), axis=(0, 1))
        if number % 5 == 0 or not mask.any():
            continue
        rle = pycocotools.mask.encode(np.asfortranarray(mask))
        x, y, width, height = pycocotools.mask.toBbox(rle).tolist()
        for _ in range(2 if number % 3 == 0 else 1):
            found.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": entry["category_id"],
                    "score": float(random.random()),
                    "bbox": [x, y, 2 * width, height],
                    "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                }
            )
    return found


def scores_of_pycocotools(annotation_file, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        if kind == "segm":
            results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATS, evaluation.stats.tolist(), strict=False))


def shrunk(document, factor):
    """Real photos' annotations as they would be of photos of a fraction of the size: the bundled objects are large."""
    for image in document["images"]:
        image |= {"height": image["height"] // factor, "width": image["width"] // factor}
    for entry in document["annotations"]:
        entry["bbox"] = [value / factor for value in entry["bbox"]]
        entry["area"] /= factor**2
        entry["segmentation"] = [[value / factor for value in part] for part in entry["segmentation"]]
    return document


@pytest.mark.parametrize("factor", [1, 4, 10])
def test_scores_equal_pycocotools_on_real_annotations(factor, tmp_path):
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(shrunk(json.loads((TINY / "instances_train.json").read_text()), factor)))
    with contextlib.redirect_stdout(io.StringIO()):
        results = detections_near(COCO(str(file)))
    annotations = read_annotations(json.loads(file.read_text()), keeps_empty_images=True, is_truth=True)
    assert (annotations.bad, annotations.mended) == ((), ())
    places = {image.image_id: place for place, image in enumerate(annotations.images)}
    document = coco_document(annotations)
    moved = [result | {"image_id": places[result["image_id"]]} for result in results]
    scores = score_results(moved, document, list(places.values()), annotations.category_ids, has_masks=True)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        asked = scores_of_pycocotools(file, results, kind)
        assert {stat: scores[f"{name}_{stat}"] for stat in STATS} == pytest.approx(asked)
    counts = count_by_size(document, list(places.values()))
    assert counts["all"] == sum(not entry["iscrowd"] for entry in document["annotations"])
    assert {1: counts["large"], 4: counts["medium"], 10: counts["small"]}[factor] > 1


def one_of(**changes):
    document = small_document(1)
    document["annotations"][0] |= changes
    return document


def scored(document, results, **options):
    annotations = read_annotations(document, keeps_empty_images=True, is_truth=True, **options)
    places = list(range(len(annotations.images)))
    return annotations, score_results(
        results, coco_document(annotations), places, annotations.category_ids, has_masks=True
    )


def right(document):
    """The answer that is right for the first object of `small_document`."""
    entry = small_document(1)["annotations"][0]
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(entry["segmentation"], SIDE, SIDE))
    return [{"image_id": 0, "category_id": 3, "score": 0.9, "bbox": entry["bbox"], "segmentation": rle}]


def test_the_size_of_a_detection_is_that_of_its_mask():
    # 20 x 20 pixels, small, in a box of 96 x 96, large.
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    document = one_of(segmentation=square, bbox=[5, 5, 20, 20], area=400)
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(square, SIDE, SIDE))
    result = [{"image_id": 0, "category_id": 3, "score": 0.9, "bbox": [0, 0, SIDE, SIDE], "segmentation": rle}]
    wrong = [result[0] | {"score": 0.95, "segmentation": pycocotools.mask.encode(np.ones((SIDE, SIDE), np.uint8, "F"))}]
    _, scores = scored(document, wrong + result)
    # The false detection is of 96 x 96 pixels, so it is none of the small ones.
    assert scores["mask_ap_small"] == pytest.approx(1)
    assert scores["mask_ap"] == pytest.approx(0.5)


@pytest.mark.parametrize("bbox", [[0, 0, 0, 0], None, [], [500, 500, 9, 9], [5, 5, -3, 9], ["a", 1, 2, 3]])
def test_a_box_that_cannot_be_used_is_taken_from_the_mask(bbox):
    annotations, scores = scored(one_of(bbox=bbox), right(None))
    assert annotations.bad == ()
    assert len(annotations.mended) == bool(bbox)
    assert (scores["box_ap"], scores["mask_ap"]) == pytest.approx((1, 1))


@pytest.mark.parametrize("area", [None, -1, "many", float("nan")])
def test_a_missing_area_is_that_of_the_mask(area):
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    annotations = read_annotations(one_of(segmentation=square, bbox=[0, 0, SIDE, SIDE], area=area))
    assert annotations.images[0].objects[0].area == 400


@pytest.mark.parametrize("segmentation", [None, [], {}, [[]], [[1, 1, 9, 9]], {"size": [4, 4], "counts": [16]}])
def test_an_object_without_a_mask_counts_for_boxes_only(segmentation):
    document = one_of(segmentation=segmentation)
    second = small_document(2)["annotations"][1] | {"image_id": 0, "category_id": 3}
    document["annotations"].append(second)
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(second["segmentation"], SIDE, SIDE))
    results = [*right(None), right(None)[0] | {"bbox": second["bbox"], "segmentation": rle, "score": 0.5}]
    annotations, scores = scored(document, results)
    # A detection of the object whose mask is not known is neither right nor wrong.
    assert (scores["box_ap"], scores["mask_ap"]) == pytest.approx((1, 1))
    assert annotations.bad == ()
    assert len(annotations.mended) == bool(segmentation)


def test_truth_of_boxes_alone_gives_no_mask_ap():
    _, scores = scored(one_of(segmentation=None), right(None))
    assert scores["box_ap"] == pytest.approx(1)
    assert "mask_ap" not in scores


def test_a_box_beyond_the_image_is_scored_unclipped():
    document = one_of(bbox=[-10, -10, 60, 60], segmentation=None)
    result = [{"image_id": 0, "category_id": 3, "score": 0.9, "bbox": [-10, -10, 60, 60]}]
    assert scored(document, result)[1]["box_ap"] == pytest.approx(1)


def test_no_detections_score_zero_and_sizes_without_objects_minus_one():
    _, scores = scored(one_of(area=400), [])
    assert (scores["mask_ap"], scores["mask_ap_small"], scores["mask_ap_large"]) == (0, 0, -1)


@pytest.mark.parametrize("ids", [["a.png", "b.png"], [1.0, 2.0], [1.5, "7"], [0, 2**60 + 1]])
def test_ids_of_images_may_be_any_number_or_text(ids):
    document = small_document(2)
    for image, entry, number in zip(document["images"], document["annotations"], ids, strict=True):
        image["id"] = entry["image_id"] = number
    annotations, scores = scored(document, right(None))
    assert [len(image.objects) for image in annotations.images] == [1, 1]
    assert annotations.bad == ()
    assert scores["mask_ap"] == pytest.approx(0.5)
    assert bool(annotations.notes) == any(isinstance(number, float) for number in ids)


@pytest.mark.parametrize("ids", [("three", "seven"), (3.0, 7.0), (1.5, "x")])
def test_ids_of_categories_may_be_any_number_or_text(ids):
    document = small_document(2)
    numbers = dict(zip((3, 7), ids, strict=True))
    for category in document["categories"]:
        category["id"] = numbers[category["id"]]
    for entry in document["annotations"]:
        entry["category_id"] = numbers[entry["category_id"]]
    annotations = read_annotations(document, is_truth=True)
    assert set(annotations.classes) == {"three", "seven"}
    assert all(isinstance(number, int) for number in annotations.category_ids)
    assert annotations.bad == ()
    by_label = [annotations.classes[image.objects[0].label] for image in annotations.images]
    assert by_label == ["three", "seven"]


def test_an_id_of_the_other_type_is_named():
    document = small_document(2)
    document["annotations"][0]["image_id"] = "0"
    document["annotations"][1]["category_id"] = "7"
    document["annotations"].append(small_document(1)["annotations"][0] | {"id": 9})
    kinds = [flaw.kind for flaw in read_annotations(document, is_truth=True).bad]
    assert kinds == [
        "the image is not in the file: image_id is text, the id a number",
        "the category is not in the file: category_id is text, the id a number",
    ]


def test_categories_of_one_name_count_as_one():
    document = small_document(4)
    document["categories"] = [{"id": 3, "name": "thing"}, {"id": 7, "name": "thing"}]
    annotations = read_annotations(document)
    assert (annotations.classes, annotations.category_ids) == (("thing",), (3,))
    assert [image.objects[0].label for image in annotations.images] == [0, 0, 0, 0]
    assert "3, 7 are all called thing" in annotations.notes[0]


def test_annotations_and_images_that_are_listed_twice_count_once():
    document = small_document(2)
    document["annotations"].append(dict(document["annotations"][0]))
    document["annotations"].append(document["annotations"][0] | {"bbox": [1, 1, 50, 50]})
    document["images"].append(dict(document["images"][0]))
    annotations = read_annotations(document)
    assert annotations.bad_counts() == {"annotation listed twice": 1}
    # Another object that happens to have its number is an object.
    assert [len(image.objects) for image in annotations.images] == [2, 1]
    assert [flaw.kind.split(":")[0] for flaw in annotations.mended] == [
        "image listed twice, counted once",
        "annotation id that another annotation has",
    ]


@pytest.mark.parametrize("size", [(None, None), (-1, -1), (0, 96), ("96", "96")])
def test_a_size_that_is_missing_is_asked_for(size):
    document = small_document(1)
    document["images"][0] |= {"height": size[0], "width": size[1]}
    annotations, scores = scored(
        document, right(None), find_size=lambda name: (SIDE, SIDE) if name == "0.png" else None
    )
    assert scores["mask_ap"] == pytest.approx(1)
    assert "those of the image itself" in annotations.mended[0].kind


def test_sizes_and_run_lengths_may_be_decimals():
    document = one_of(segmentation={"size": [96.0, 96.0], "counts": [96.0 * 96 - 5, 5.0]})
    document["images"][0] |= {"height": 96.0, "width": 96.0}
    annotations = read_annotations(document)
    assert (annotations.images[0].height, annotations.bad) == (96, ())
    assert annotations.images[0].objects[0].segmentation == {"size": [96, 96], "counts": [9211, 5]}


@pytest.mark.parametrize(("value", "is_crowd"), [("0", False), ("1", True), (0.0, False), (True, True), (None, False)])
def test_iscrowd_in_all_spellings(value, is_crowd):
    document = small_document(2)
    document["annotations"][0]["iscrowd"] = value
    annotations = read_annotations(document, keeps_empty_images=True)
    assert annotations.images[0].objects[0].is_crowd == is_crowd


def test_one_polygon_without_a_list_around_it_is_a_polygon():
    entry = small_document(1)["annotations"][0]
    annotations = read_annotations(one_of(segmentation=entry["segmentation"][0]))
    assert annotations.bad == ()
    assert annotations.images[0].objects[0].segmentation == entry["segmentation"]


def test_scores_of_a_class_are_those_of_scoring_it_alone():
    annotations = read_annotations(small_document(6))
    document = coco_document(annotations)
    results = []
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        shift = 3 * (entry["id"] % 3)
        # One class is found a little beside itself, the other is found on one image only.
        if entry["category_id"] == 3 or entry["id"] == 2:
            box = [x + shift, y, width, height]
            corners = [x + shift, y, x + shift + width, y, x + shift + width, y + height, x + shift, y + height]
            mask = pycocotools.mask.merge(pycocotools.mask.frPyObjects([corners], SIDE, SIDE))
            results.append(
                {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": 0.5, "bbox": box,
                 "segmentation": mask}
            )  # fmt: skip
    images = list(range(6))
    overall, classes = score_with_classes(results, document, images, (3, 7, 9), has_masks=True)
    assert overall == score_results(results, document, images, (3, 7, 9), has_masks=True)
    for number, found in zip((3, 7), classes, strict=False):
        alone = score_results(results, document, images, (number,), has_masks=True)
        assert found["objects"] == 3
        for name in ("mask_ap", "mask_ap50", "box_ap", "box_ap50"):
            assert found[name] == pytest.approx(alone[name]), (number, name)
    assert classes[0]["mask_ap"] > classes[1]["mask_ap"] > 0
    assert classes[2] == {"objects": 0, "box_ap": -1.0, "box_ap50": -1.0, "mask_ap": -1.0, "mask_ap50": -1.0}
