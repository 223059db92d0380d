"""How much every detection overlaps every object of its image, whatever their categories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.training.annotation_parsing import to_rle
from htc_model.training.coco_eval import KINDS, truth_entry

# TIDE's two thresholds (arXiv:2008.08115, section 2.2): from 0.5 on a detection is of the object, up to 0.1 it is of
# the background.
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
# COCOeval's Params.maxDets: the best of a category in an image.
MAX_DETECTIONS = 100

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Overlaps:
    """The detections and the objects of the scored images.

    D detections, in the order of images and in each by falling score, at most `MAX_DETECTIONS` of a category in an
    image; G objects, without crowds; P pairs of a detection and an object of its image.

    det_image, det_label, det_score, det_row: [D]; the image's index in the truth, the category's place, the score, and
        the place in the given detections.
    in_crowd: [D] bool; at least half of the detection lies in a crowd of its category, or in the box of an object
        whose mask is not known. It is neither right nor wrong unless it has an object.
    obj_image, obj_label, obj_row: [G]; as above, and the place in the document's annotations.
    pair_det, pair_obj, pair_iou: [P]; all pairs of an IoU of at least `BACKGROUND_IOU`.
    """

    det_image: Integers
    det_label: Integers
    det_score: NDArray[np.float64]
    det_row: Integers
    in_crowd: NDArray[np.bool_]
    obj_image: Integers
    obj_label: Integers
    obj_row: Integers
    pair_det: Integers
    pair_obj: Integers
    pair_iou: NDArray[np.float64]

    @property
    def is_same_label(self) -> NDArray[np.bool_]:
        """[P] whether the pair is of one category."""
        same: NDArray[np.bool_] = self.det_label[self.pair_det] == self.obj_label[self.pair_obj]
        return same

    @property
    def by_score(self) -> Integers:
        """[D] the detections by falling score, equal ones in COCO's order."""
        return np.argsort(-self.det_score, kind="stable")


def measure_overlaps(
    document: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    name: str,
) -> Overlaps:
    """Measure the overlaps of one kind.

    Args:
        document: from `coco_document`.
        detections: image_id, category_id, score, bbox and segmentation, as COCO's results.
        image_ids, category_ids: those that are scored.
        name: "box" or "mask".
    """
    kind = KINDS[name]
    key = "bbox" if kind == "bbox" else "segmentation"
    labels = {number: label for label, number in enumerate(category_ids)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    scored = set(image_ids)
    of_image: dict[int, list[tuple[int, Mapping[str, Any]]]] = {number: [] for number in image_ids}
    for row, entry in enumerate(document["annotations"]):
        if entry["image_id"] in scored and entry["category_id"] in labels:
            of_image[entry["image_id"]].append((row, truth_entry(entry, kind)))
    kept = _kept(detections, labels, scored, key)
    objects: list[tuple[int, int, int]] = []
    pairs: list[tuple[Integers, Integers, NDArray[np.float64]]] = []
    in_crowd = np.zeros(len(kept.image), bool)
    for image, entries in of_image.items():
        rows = np.arange(np.searchsorted(kept.image, image), np.searchsorted(kept.image, image, side="right"))
        first = len(objects)
        is_crowd = np.array([bool(entry.get("iscrowd", 0)) for _, entry in entries], bool)
        objects.extend((image, labels[each["category_id"]], row) for row, each in entries if not each.get("iscrowd", 0))
        if not len(rows) or not entries:
            continue
        regions = [_region(entry, key, sizes[image]) for _, entry in entries]
        iou = _iou([detections[kept.row[row]][key] for row in rows], regions, is_crowd)
        if is_crowd.any():
            crowd_labels = np.array([labels[each["category_id"]] for _, each in entries], np.int64)[is_crowd]
            is_same = kept.label[rows][:, None] == crowd_labels[None, :]
            in_crowd[rows] = (iou[:, is_crowd] * is_same).max(axis=1) >= FOREGROUND_IOU
        found, places = np.nonzero(iou[:, ~is_crowd] >= BACKGROUND_IOU)
        pairs.append((rows[found], first + places, iou[:, ~is_crowd][found, places]))
    table = np.array(objects, np.int64).reshape(-1, 3)
    return Overlaps(
        det_image=kept.image,
        det_label=kept.label,
        det_score=kept.score,
        det_row=kept.row,
        in_crowd=in_crowd,
        obj_image=table[:, 0],
        obj_label=table[:, 1],
        obj_row=table[:, 2],
        pair_det=np.concatenate([np.zeros(0, np.int64), *(pair[0] for pair in pairs)]),
        pair_obj=np.concatenate([np.zeros(0, np.int64), *(pair[1] for pair in pairs)]),
        pair_iou=np.concatenate([np.zeros(0), *(pair[2] for pair in pairs)]),
    )


@dataclass(frozen=True)
class _Kept:
    """The detections that COCO looks at, in the order of images and falling score."""

    image: Integers
    label: Integers
    score: NDArray[np.float64]
    row: Integers


def _kept(detections: Sequence[Mapping[str, Any]], labels: Mapping[int, int], scored: set[int], key: str) -> _Kept:
    rows = [
        row
        for row, each in enumerate(detections)
        if each["image_id"] in scored and each["category_id"] in labels and key in each
    ]
    row = np.array(rows, np.int64)
    image = np.array([detections[place]["image_id"] for place in rows], np.int64)
    label = np.array([labels[detections[place]["category_id"]] for place in rows], np.int64)
    score = np.array([detections[place]["score"] for place in rows], np.float64)
    order = np.lexsort((row, -score, image))
    image, label, score, row = image[order], label[order], score[order], row[order]
    grouped = np.lexsort((np.arange(len(row)), label, image))
    is_first = np.ones(len(row), bool)
    is_first[1:] = (np.diff(image[grouped]) != 0) | (np.diff(label[grouped]) != 0)
    begins = np.flatnonzero(is_first)
    rank = np.arange(len(row)) - begins[np.cumsum(is_first) - 1]
    chosen = np.sort(grouped[rank < MAX_DETECTIONS])
    return _Kept(image[chosen], label[chosen], score[chosen], row[chosen])


def _region(entry: Mapping[str, Any], key: str, size: tuple[int, int]) -> Any:
    return entry["bbox"] if key == "bbox" else to_rle(entry["segmentation"], size)


def _iou(detections: Sequence[Any], regions: Sequence[Any], is_crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return [D, G]: the IoU, and for a crowd the share of the detection in it."""
    import pycocotools.mask

    if isinstance(regions[0], list):
        found = pycocotools.mask.iou(
            np.array(detections, np.float64), np.array(regions, np.float64), is_crowd.astype(np.uint8)
        )
    else:
        found = pycocotools.mask.iou(list(detections), list(regions), is_crowd.astype(np.uint8))
    return np.asarray(found, np.float64).reshape(len(detections), len(regions))
