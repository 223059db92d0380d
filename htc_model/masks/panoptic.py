"""Things and stuff in one map: the panoptic segments of an image, from its instances and its semantic masks.

Numpy only, and in runs: nothing here draws a mask, so that an image of any size takes memory for its runs alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.many_runs import (
    ForegroundRuns,
    decode_counts,
    intersection_areas,
    join_texts,
    subtract,
    unite,
)

if TYPE_CHECKING:  # structures.py imports torch
    from htc_model.structures import Rle


@dataclass(frozen=True)
class MergeRules:
    """When an instance or a region of stuff becomes a segment.

    The procedure is section 7 of "Panoptic Segmentation" (Kirillov and others, arXiv:1801.00868) with the area limit of
    "Panoptic Feature Pyramid Networks" (arXiv:1901.02446, section 3); the values are the defaults of the authors'
    programs, panopticapi (combine_semantic_and_instance_predictions.py: 0.5, 0.5 and 64 * 64) and detectron2
    (MODEL.PANOPTIC_FPN.COMBINE: 0.5, 0.5 and 4096).

    min_score: an instance that scores less is left out.
    max_overlap: an instance is left out if instances before it cover a larger share of it, in [0, 1].
    min_stuff_area: a stuff class with fewer pixels left in the image is left out; its pixels belong to no segment.
    """

    min_score: float = 0.5
    max_overlap: float = 0.5
    min_stuff_area: int = 4096


@dataclass(frozen=True)
class PanopticSegment:
    """One segment; those of an image do not overlap.

    label: of a thing the instance's label, of stuff the semantic class.
    instance: of a thing its place among the instances that were given, of stuff None.
    score: of a thing its instance's, of stuff None.
    mask: COCO RLE of the image's size: what is left of the instance or of the class. area: its pixels, at least 1.
    bbox: (x, y, width, height) of the mask, in pixels.
    """

    label: int
    is_thing: bool
    instance: int | None
    score: float | None
    mask: "Rle"
    area: int
    bbox: tuple[float, float, float, float]


def merge_panoptic(
    scores: Sequence[float],
    labels: Sequence[int],
    masks: "Sequence[Rle]",
    stuff: "Mapping[int, Rle]",
    *,
    size: tuple[int, int],
    rules: MergeRules | None = None,
) -> list[PanopticSegment]:
    """Merge the instances and the stuff of one image into segments that do not overlap.

    Instances are taken in the order of their scores, equal ones in the order in which they are given. Each keeps the
    pixels that none before it has; a stuff class keeps those that no thing has. A pixel that nothing claims belongs to
    no segment.

    Args:
        scores, labels, masks: N instances, in any order; an instance with an empty mask is left out.
        stuff: by semantic class its mask. Give the stuff classes only: the instances speak for the things, so their
            channels of a semantic branch are left out by the caller. Where masks overlap, the class given first keeps
            the pixels.
        size: (height, width) of the image and of every mask, in pixels.
        rules: None for the published ones.

    Returns:
        The things, most confident first, then the stuff in the order of `stuff`.

    Raises:
        ValueError: a mask has another size or cannot be read, or scores, labels and masks differ in number.
    """
    rules = rules or MergeRules()
    if not len(scores) == len(labels) == len(masks):
        raise ValueError(f"{len(scores)} scores, {len(labels)} labels and {len(masks)} masks are not one each")
    able = [place for place in range(len(scores)) if scores[place] >= rules.min_score]
    order = sorted(able, key=lambda place: -scores[place])
    instances = _read([masks[place] for place in order], size)
    kept, things = _resolve(instances, rules.max_overlap)
    found = [
        PanopticSegment(labels[order[place]], True, order[place], float(scores[order[place]]), *segment)
        for place, segment in zip(kept, _describe(things), strict=True)
    ]
    for label, left in _leave(stuff, things, size, rules.min_stuff_area):
        found += [PanopticSegment(label, False, None, None, *segment) for segment in _describe(left)]
    return found


def _read(masks: "Sequence[Rle]", size: tuple[int, int]) -> ForegroundRuns:
    sizes = np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2)
    if (sizes != np.array(size)).any():
        raise ValueError(f"a mask has another size than its image, {size[0]} x {size[1]}")
    lengths = decode_counts(*join_texts([mask["counts"] for mask in masks]), sizes)
    if not lengths.is_valid.all():
        raise ValueError("a mask's counts are not a COCO run-length code of its size")
    return lengths.runs()


def _resolve(instances: ForegroundRuns, max_overlap: float) -> tuple[list[int], ForegroundRuns]:
    """Take the instances in their order; return the places of those that are kept, and what each of them keeps.

    What is kept does not overlap, so the pixels that an instance shares with all before it are the sum of those that
    it shares with each; and only those before it whose boxes meet its own can share any.
    """
    boxes, areas = instances.boxes_xywh(), instances.areas()
    begins, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    kept: dict[int, ForegroundRuns] = {}
    is_kept = np.zeros(len(areas), bool)
    for place in map(int, np.flatnonzero(areas)):
        own = instances.take(np.array([place]))
        meets = ((begins[:place] < ends[place]) & (ends[:place] > begins[place])).all(axis=1) & is_kept[:place]
        near = [kept[other] for other in np.flatnonzero(meets).tolist()]
        if near:
            taken = _join(near)
            shared = int(intersection_areas(own, taken)[0])
            if shared / int(areas[place]) > max_overlap or shared == areas[place]:
                continue
            own = subtract(own, taken)
        kept[place] = own
        is_kept[place] = True
    return list(kept), ForegroundRuns.concatenate(list(kept.values()))


def _leave(
    stuff: "Mapping[int, Rle]", things: ForegroundRuns, size: tuple[int, int], min_area: int
) -> Iterator[tuple[int, ForegroundRuns]]:
    """Yield the stuff classes that are kept, each with what things and classes before leave of it.

    One after another: in a large image the runs of all classes together are many.
    """
    taken = _join([things]) if len(things.first) > 1 else _nothing(size)
    for label, mask in stuff.items():
        left = subtract(_read([mask], size), taken)
        if left.areas()[0] >= max(min_area, 1):
            yield label, left
            taken = unite(taken, left)


def _join(pieces: Sequence[ForegroundRuns]) -> ForegroundRuns:
    """Return one mask of all pixels of masks of one size that do not overlap."""
    begins = np.concatenate([piece.begins for piece in pieces])
    ends = np.concatenate([piece.ends for piece in pieces])
    order = np.argsort(begins, kind="stable")
    return ForegroundRuns.of(begins[order], ends[order], np.array([len(begins)]), pieces[0].sizes[:1])


def _nothing(size: tuple[int, int]) -> ForegroundRuns:
    none = np.zeros(0, np.int64)
    return ForegroundRuns(none, none, np.zeros(2, np.int64), np.array([size], np.int64))


def _describe(
    segments: ForegroundRuns,
) -> "list[tuple[Rle, int, tuple[float, float, float, float]]]":
    """Return each mask's RLE, area and box."""
    boxes: NDArray[np.float64] = segments.boxes_xywh()
    return [
        ({"size": [int(height), int(width)], "counts": counts.encode()}, int(area), (x, y, box_width, box_height))
        for counts, area, (x, y, box_width, box_height), (height, width) in zip(
            segments.encode(), segments.areas(), boxes.tolist(), segments.sizes.tolist(), strict=True
        )
    ]
