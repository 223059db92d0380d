"""Average precision: perfect answers score one, none score nothing, crowds are forgiven."""

import pytest
import torch

from htc_model.masks.rle import encode_bitmap
from htc_model.network.detector import build_model
from htc_model.training.annotations import decode_mask
from htc_model.training.coco_eval import coco_document, score_results
from htc_model.training.coco_reader import read_annotations
from htc_model.training.evaluate import evaluate_model
from tests.support.builders.training_data import SIDE, draw_image, small_config, small_document

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def perfect_results(document):
    annotations = read_annotations(document)
    for image in annotations.images:
        for entry in image.objects:
            x1, y1, x2, y2 = entry.box_xyxy
            yield {
                "image_id": image.image_id,
                "category_id": annotations.category_ids[entry.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": 0.9,
                "segmentation": encode_bitmap(decode_mask(entry, SIDE, SIDE)),
            }


def score(document, results):
    return score_results(results, document, [image["id"] for image in document["images"]], (3, 7), has_masks=True)


def test_perfect_answers_score_one():
    document = small_document(4)
    scores = score(document, list(perfect_results(document)))
    assert scores["mask_ap"] == scores["box_ap"] == scores["mask_ap50"] == pytest.approx(1)
    assert scores["mask_ap_small"] == -1


def test_no_answer_scores_zero():
    assert score(small_document(2), [])["mask_ap50"] == 0


def test_a_wrong_answer_costs_and_one_on_a_crowd_does_not():
    document = small_document(2)
    results = list(perfect_results(document))
    extra = [results[1] | {"image_id": 0, "score": 0.95}]
    assert score(document, results + extra)["mask_ap50"] < 0.9
    document["annotations"].append(
        {
            "id": 99,
            "image_id": 0,
            "category_id": results[1]["category_id"],
            "bbox": [0, 0, SIDE, SIDE],
            "segmentation": {"size": [SIDE, SIDE], "counts": [0, SIDE * SIDE]},
            "area": SIDE * SIDE,
            "iscrowd": 1,
        }
    )
    assert score(document, results + extra)["mask_ap50"] == pytest.approx(1)


def test_broken_annotations_are_left_out_of_the_scoring():
    document = small_document(4)
    results = list(perfect_results(document))
    first = document["annotations"][0]
    broken = [
        {"segmentation": [[1, 1, 2, 2]]},
        {"category_id": 99},
        {"image_id": 99},
        {"bbox": [0, 0, 0, 9], "segmentation": None},
    ]
    document["annotations"] += [first | {"id": 50 + number} | flaw for number, flaw in enumerate(broken)]
    del first["area"]
    document["annotations"][1] |= {"segmentation": [*document["annotations"][1]["segmentation"], [3, 3, 4, 4]]}
    del document["annotations"][2]["segmentation"]
    scores = score(coco_document(read_annotations(document)), results)
    assert scores["mask_ap"] == scores["box_ap"] == pytest.approx(1)


def test_a_model_is_scored_and_left_in_its_mode():
    document = small_document(2)
    torch.manual_seed(0)
    model = build_model(small_config()).train()
    scores = evaluate_model(model, read_annotations(document), draw_image)
    assert set(scores) == {f"{kind}_{s}" for kind in ("box", "mask") for s in
                           ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")}  # fmt: skip
    assert model.training
