"""Wrong annotations are named and left out; unusable files are refused in one sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htc_model.training.annotations import AnnotationError, decode_mask
from htc_model.training.coco_eval import coco_document
from htc_model.training.coco_reader import read_annotations
from tests.support.builders.training_data import SIDE, small_document

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def broken(**changes):
    document = small_document(2)
    document["annotations"][0] |= changes
    return document


def test_category_ids_with_gaps_become_labels_in_their_order():
    annotations = read_annotations(small_document(2))
    assert annotations.classes == ("three", "seven")
    assert annotations.category_ids == (3, 7)
    assert [image.objects[0].label for image in annotations.images] == [0, 1]
    assert annotations.bad == ()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"image_id": 99}, "the image is not in the file"),
        ({"category_id": 4}, "the category is not in the file"),
        ({"segmentation": [[1, 1, 5, 5]]}, "polygon with < 3 points"),
        ({"segmentation": [[1, 1, 5, 5, 9]]}, "polygon with half a point"),
        ({"segmentation": [[1, 1, 5, 5, float("nan"), 9]]}, "polygon with coordinates that are not finite numbers"),
        ({"segmentation": {"size": [4, 4], "counts": [8, 8]}}, "the run lengths do not fit the image"),
        ({"segmentation": {"size": [SIDE, SIDE], "counts": [8, 8]}}, "the run lengths do not fit the image"),
        ({"bbox": [500, 500, 10, 10], "segmentation": None}, "no area inside the image"),
        ({"bbox": [-50, 5, 20, 20], "segmentation": None}, "no area inside the image"),
        ({"bbox": [5, 5, 0, 10], "segmentation": None}, "the box has no area"),
        ({"bbox": None, "segmentation": None}, "no box and no mask"),
        ({"bbox": ["a", 1, 2, 3], "segmentation": None}, "the box is not four numbers"),
        ({"bbox": [None, 1, 2, 3], "segmentation": None}, "the box is not four numbers"),
        ({"bbox": [0, 0, float("inf"), 3], "segmentation": None}, "the box is not four numbers"),
        ({"image_id": [0]}, "the image is not in the file"),
        ({"category_id": {}}, "the category is not in the file"),
        # pycocotools would walk along these edges pixel by pixel.
        ({"segmentation": [[0, 0, 4e9, 0, 4e9, 4e9]]}, "polygon far outside the image"),
        ({"segmentation": [[True] * 6]}, "polygon with coordinates that are not finite numbers"),
        ({"segmentation": 7}, "the segmentation is neither polygons nor run lengths"),
        ({"segmentation": {"size": None, "counts": [SIDE * SIDE]}}, "run lengths without size or counts"),
        ({"segmentation": {"size": [SIDE, SIDE], "counts": ["a"]}}, "the run lengths do not fit the image"),
        ({"segmentation": {"size": [SIDE, SIDE], "counts": "~~~~zzzz"}}, "the run lengths do not fit the image"),
    ],
)
def test_a_broken_annotation_is_named_counted_and_left_out(changes, kind):
    annotations = read_annotations(broken(**changes))
    assert [(bad.annotation_id, bad.kind) for bad in annotations.bad] == [(1, kind)]
    assert annotations.bad_counts() == {kind: 1}
    assert kind in str(annotations.bad[0])
    assert [image.file_name for image in annotations.images] == ["1.png"]
    assert annotations.images_without_objects == 1


@pytest.mark.parametrize(
    ("key", "entry", "expected"),
    [
        ("annotations", None, "the file: annotation without keys: NoneType"),
        ("annotations", {}, "image None: the image is not in the file"),
        ("images", None, "an image: image without keys: NoneType"),
        ("images", {"id": 7, "file_name": "7.png"}, "7.png: image without height and width"),
        ("images", {"id": 7, "height": 1, "width": 1}, "an image: image without file_name"),
        ("images", {"file_name": "7.png", "height": 1, "width": 1}, "7.png: image without id"),
        ("images", {"id": [1], "file_name": "7.png", "height": 1, "width": 1}, "7.png: image whose id is neither"),
        ("images", {"id": 7, "file_name": "7.png", "height": -1, "width": "1"}, "7.png: image without height and"),
        ("images", {"id": 1, "file_name": "7.png", "height": 1, "width": 1}, "7.png: image id that another image has"),
    ],
)
def test_an_invalid_entry_is_named_and_left_out(key, entry, expected):
    document = small_document(2)
    document[key].append(entry)
    annotations = read_annotations(document)
    assert [str(bad)[: len(expected)] for bad in annotations.bad] == [expected]
    assert [image.file_name for image in annotations.images] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("category", "message"),
    [
        (None, "The category None needs an id"),
        ({"id": "9", "name": "nine"}, "needs an id, a whole number"),
        ({"id": 9}, "needs an id, a whole number"),
        ({"id": 7, "name": "another"}, "Two categories have the same id"),
    ],
)
def test_ambiguous_categories_are_refused(category, message):
    document = small_document(2)
    document["categories"].append(category)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(document)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner),
    max_leaves=12,
)
_KEYS = st.sampled_from(["id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"])


@settings(deadline=None)
@given(st.dictionaries(_KEYS, _VALUES, min_size=1))
def test_the_other_annotations_are_read_whatever_one_contains(changes):
    document = small_document(2)
    document["annotations"].append(document["annotations"][0] | {"id": 3} | changes)
    annotations = read_annotations(document)
    assert [image.file_name for image in annotations.images] == ["0.png", "1.png"]
    for image in annotations.images:
        for entry in image.objects:
            assert decode_mask(entry, SIDE, SIDE).shape == (SIDE, SIDE)
    assert len(coco_document(annotations)["annotations"]) == sum(len(image.objects) for image in annotations.images)


def test_the_valid_polygons_of_an_object_are_kept():
    document = small_document(1)
    document["annotations"][0]["segmentation"].append([1, 1, 2, 2])
    annotations = read_annotations(document)
    assert annotations.bad_counts() == {"polygon with < 3 points": 1}
    assert len(annotations.images[0].objects) == 1


def test_run_lengths_among_an_objects_polygons_are_named_and_the_polygons_kept():
    document = small_document(1)
    document["annotations"][0]["segmentation"].append({"size": [SIDE, SIDE], "counts": [SIDE * SIDE]})
    annotations = read_annotations(document)
    assert annotations.bad_counts() == {"run lengths among polygons": 1}
    assert len(annotations.images[0].objects[0].segmentation) == 1


def test_a_box_beyond_the_image_is_clipped():
    annotations = read_annotations(broken(bbox=[-5, 80, 30, 500]))
    assert annotations.images[0].objects[0].box_xyxy == (0.0, 80.0, 25.0, float(SIDE))


def test_empty_images_are_kept_only_when_asked():
    document = small_document(3)
    document["annotations"] = document["annotations"][:1]
    assert len(read_annotations(document).images) == 1
    assert len(read_annotations(document, keeps_empty_images=True).images) == 3


def test_an_image_of_crowds_alone_counts_as_empty():
    document = broken(iscrowd=1)
    assert [image.file_name for image in read_annotations(document).images] == ["1.png"]
    kept = read_annotations(document, keeps_empty_images=True).images[0]
    assert [entry.is_crowd for entry in kept.objects] == [True]


def test_other_classes_are_left_out_without_being_bad():
    annotations = read_annotations(small_document(4), classes=["seven"])
    assert (annotations.classes, annotations.category_ids) == (("seven",), (7,))
    assert [image.file_name for image in annotations.images] == ["1.png", "3.png"]
    assert annotations.bad == ()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "COCO annotation file"),
        ({"images": [], "annotations": []}, "COCO annotation file"),
        ({"images": [], "annotations": [], "categories": []}, "No image has an object to train on"),
    ],
)
def test_a_file_without_annotations_is_refused(document, message):
    with pytest.raises(AnnotationError, match=message):
        read_annotations(document)


def test_a_class_that_is_not_there_is_refused_by_name():
    with pytest.raises(AnnotationError, match=r"The class 'dog' is not in the file; it has seven, three"):
        read_annotations(small_document(1), classes=["dog"])
