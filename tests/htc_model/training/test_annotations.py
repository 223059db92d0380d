"""Masks of annotations, and merging of data sets."""

import copy

import numpy as np
import pycocotools.mask
import pytest

from htc_model.training.annotations import AnnotationError, decode_mask, merge_annotations
from htc_model.training.coco_reader import read_annotations
from tests.support.builders.training_data import SIDE, box_of, small_document

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_polygons_and_all_kinds_of_run_lengths_draw_the_same_mask():
    document = small_document(1)
    x, y, width, height = box_of(0)
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[y : y + height, x : x + width] = 1
    flat = expected.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    plain = np.diff(edges, prepend=0, append=len(flat)).tolist()
    compressed = pycocotools.mask.encode(np.asfortranarray(expected))
    masks = [document["annotations"][0]["segmentation"], {"size": [SIDE, SIDE], "counts": plain}]
    masks.append({"size": [SIDE, SIDE], "counts": compressed["counts"].decode()})
    masks.append(None)
    for segmentation in masks:
        changed = copy.deepcopy(document)
        changed["annotations"][0]["segmentation"] = segmentation
        entry = read_annotations(changed).images[0].objects[0]
        assert np.array_equal(decode_mask(entry, SIDE, SIDE), expected), segmentation


def test_data_sets_merge_if_their_classes_agree():
    document = small_document(2)
    document["annotations"][0]["image_id"] = 99
    both = merge_annotations([read_annotations(small_document(2)), read_annotations(document)])
    assert len(both.images) == 3
    assert both.bad_counts() == {"the image is not in the file": 1}
    with pytest.raises(AnnotationError, match="three, seven and seven"):
        merge_annotations([read_annotations(small_document(2)), read_annotations(small_document(2), classes=["seven"])])
