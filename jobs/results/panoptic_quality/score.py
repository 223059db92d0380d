"""Scores a run's panoptic table against a truth in COCO's panoptic format; needs no torch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from htc_model.masks.label_maps import label_bands
from jobs.results.evaluation.rows import RunRows
from jobs.results.evaluation.run_images import MatchRule, RunImage, names_in
from jobs.results.evaluation.truth import alike, listed
from jobs.results.map_tables import check_table, rows_by_image
from jobs.results.panoptic_quality.quality import VOID, Segment, SegmentCounts, judge_segments
from jobs.results.panoptic_quality.result import JudgedImage, PanopticEvaluation
from jobs.results.panoptic_quality.truth import (
    PanopticTruth,
    check_panoptic,
    known_size,
    read_panoptic_truth,
    read_segment_png,
    segment_numbers,
)
from jobs.results.threads import in_order
from pipeline.errors import InputError, SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.output.mask_functions import decode_masks
from pipeline.output.results import Results, open_results
from pipeline.output.schema import MASK_TYPE
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

DEFAULT_WORST = 12
_COLUMNS = ("image_id", "segment", "category", "mask")
# A pair of numbers as one: of the truth up to 2 ** 24, found ones up to this.
_FOUND_BITS = 31


def evaluate_panoptic(
    output_uri: str,
    truth: str,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
    match: str = "name",
    worst: int = DEFAULT_WORST,
    storage_section: "StorageSection | None" = None,
) -> PanopticEvaluation:
    """Judge the panoptic segments of a run of an output; see `judge_panoptic`.

    Raises:
        InputError, SpecError: as `judge_panoptic`.
    """
    storage = Storage(storage_section)
    results = open_results(output_uri, storage)
    return judge_panoptic(
        results, truth, storage, run=run, classes=classes, is_strict=is_strict, match=MatchRule(match), worst=worst
    )[0]


def judge_panoptic(
    results: Results,
    uri: str,
    storage: Storage,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
    match: MatchRule = MatchRule.file_name,
    worst: int = DEFAULT_WORST,
) -> tuple[PanopticEvaluation, PanopticTruth]:
    """Judge the panoptic segments of a run; also return the truth, for pictures.

    Every annotated image with a row counts, also if it failed; other images of the run do not.

    Args:
        uri: of the truth's JSON file, also gzipped; its PNGs are in the folder beside it of its name without the
            ending.
        run: None takes the newest run that has images; "current" the newest ok rows of each image, of all runs.
        classes: names of categories to score; all of the truth by default.
        is_strict: refuse a truth whose JSON names segments that its PNGs do not have.
        match: how an annotated image is found in the run.
        worst: how many images with mistakes to name.

    Raises:
        InputError: no such run, no panoptic table in it, no annotated image in it, images of another size, none of the
            categories, or a damaged mask.
        SpecError: the truth cannot be used: the message names the file and the part.
    """
    stored = RunRows(results, run)
    for name in stored.runs():
        check_table(results, name, "panoptic")
    document = read_coco(uri, storage)
    check_panoptic(document, uri)
    images = stored.images(match, names_in(document))
    truth = read_panoptic_truth(document, uri, images.find_size)
    matches = images.match(truth.images, uri, stored.name)
    images.refuse_other_sizes(truth.images, matches.places, uri)
    labels = _labels_of_names(truth)
    scored = _scored_labels(truth, classes, uri)
    rows = images.by_id()
    work = _Work(storage, truth, matches.places, rows, labels)

    def judge() -> "list[_Judged]":
        return list(in_order(work.judge, _segments_of_images(results, stored, matches.places)))

    # An image after another in the order of the truth: sums do not depend on the order in which they were read.
    judged = sorted(results.retry_moved(judge), key=lambda each: each.place)
    if is_strict and (flaws := _flaws(judged, truth, uri)):
        raise SpecError(f"{' '.join(flaws)} With --strict, flawed annotations are refused.")
    all_counts = [SegmentCounts()] * len(truth.categories)
    for each in judged:
        for label, counts in each.all_counts.items():
            all_counts[label] += counts
    found = sum((each.found for each in judged), Counter[str]())
    notes = [
        *stored.progress(),
        *_flaws(judged, truth, uri),
        *images.notes,
        *_on_categories(truth, all_counts, found, labels, uri, run=stored.name),
    ]
    if truth.unannotated:
        notes.append(f"Not scored: {count_of(truth.unannotated, 'image')} of {uri} without an annotation.")
    evaluation = PanopticEvaluation(
        run=stored.name,
        truth=uri,
        categories=tuple(truth.categories[label] for label in scored),
        all_counts=tuple(all_counts[label] for label in scored),
        images=len(judged),
        segments=sum(number for name, number in found.items() if _key(name) in labels and labels[_key(name)] in scored),
        worst=_worst(judged, scored, truth, rows, worst),
        missing=matches.missing,
        notes=tuple(notes),
    )
    return evaluation, truth


@dataclass(frozen=True)
class _Judged:
    """One image: its id, its place in the truth, counts by label, found segments by name, absent segments."""

    image_id: int
    place: int
    all_counts: dict[int, SegmentCounts]
    found: Counter[str]
    absent: tuple[int, ...]


@dataclass(frozen=True)
class _Work:
    storage: Storage
    truth: PanopticTruth
    places: Mapping[int, int]
    rows: Mapping[int, RunImage]
    labels: Mapping[str, int]

    def judge(self, work: tuple[int, list[dict[str, Any]]]) -> _Judged:
        """Judge one image from its rows of the panoptic table."""
        image_id, rows = work
        place = self.places[image_id]
        image = self.truth.images.images[place]
        size = self.rows[image_id].size or known_size(image)
        png = read_segment_png(self.truth.pngs[place], self.storage, size, image=image.file_name)
        size = (png.height, png.width)
        masks = decode_masks(pa.array([row["mask"] for row in rows], MASK_TYPE))
        if not masks.is_valid.all() or (masks.sizes != np.array(size)).any():
            raise InputError(
                f"{self.rows[image_id].uri}: a mask of its panoptic segments is damaged; run this image again."
            )
        shared: Counter[tuple[int, int]] = Counter()
        for top, band in label_bands(masks.runs(), size):
            strip = png.crop((0, top, size[1], top + len(band)))
            numbers = segment_numbers(strip).astype(np.int64)
            pairs, counts = np.unique((numbers << _FOUND_BITS) | band, return_counts=True)
            for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
                shared[pair >> _FOUND_BITS, pair & ((1 << _FOUND_BITS) - 1)] += count
        areas, found_areas = Counter[int](), Counter[int]()
        for (number, other), count in shared.items():
            areas[number] += count
            found_areas[other] += count
        known = self.truth.segments[place]
        unknown = sorted(set(areas) - {segment.number for segment in known} - {VOID})
        if unknown:
            raise SpecError(
                f"{self.truth.pngs[place]} has the segment {unknown[0]} ({count_of(len(unknown), 'such segment')}), "
                f"which segments_info of {image.file_name} does not list; list it there, or make its pixels black."
            )
        wanted = [Segment(each.number, each.label, areas[each.number], each.is_crowd) for each in known]
        found = [
            Segment(number, self.labels[_key(row["category"])], found_areas[number])
            for number, row in enumerate(rows, 1)
            if _key(row["category"]) in self.labels and found_areas[number]
        ]
        return _Judged(
            image_id,
            place,
            judge_segments(wanted, found, shared),
            Counter(row["category"] for row in rows),
            tuple(each.number for each in known if not areas[each.number]),
        )


def _segments_of_images(
    results: Results, stored: RunRows, places: Mapping[int, int]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield each scored image with its rows; at the end those without a row."""
    by_run = stored.by_run(list(places))
    left = set(places)
    for run, image_ids in by_run.items():
        for image_id, rows in rows_by_image(results, "panoptic", run, image_ids, _COLUMNS):
            left.discard(image_id)
            yield image_id, rows
    for image_id in sorted(left):
        yield image_id, []


def _key(name: str) -> str:
    return name.strip().casefold()


def _labels_of_names(truth: PanopticTruth) -> dict[str, int]:
    labels: dict[str, int] = {}
    for label, category in enumerate(truth.categories):
        labels.setdefault(_key(category.name), label)
    return labels


def _scored_labels(truth: PanopticTruth, classes: Sequence[str], uri: str) -> list[int]:
    names = [category.name for category in truth.categories]
    if not classes:
        return list(range(len(names)))
    places = _labels_of_names(truth)
    for name in classes:
        if _key(name) not in places:
            raise SpecError(f"{uri} has no category {name}; it has {listed(names, 20)}.")
    return sorted({places[_key(name)] for name in classes})


def _flaws(judged: "Sequence[_Judged]", truth: PanopticTruth, uri: str) -> list[str]:
    """Name the segments that the JSON has and the PNGs have not: they count as missed, as panopticapi has it."""
    absent = [(each.place, number) for each in judged for number in each.absent]
    if not absent:
        return []
    place, number = absent[0]
    name = truth.images.images[place].file_name
    return [
        f"{uri}: {count_of(len(absent), 'segment')} of segments_info without a pixel in the PNG, such as {number} of "
        f"{name}; they count as missed."
    ]


def _on_categories(
    truth: PanopticTruth,
    all_counts: Sequence[SegmentCounts],
    found: Mapping[str, int],
    labels: Mapping[str, int],
    uri: str,
    *,
    run: str,
) -> list[str]:
    """Return sentences on categories of other names in the run and in the truth.

    Raises:
        InputError: the two have no category in common.
    """
    names = [category.name for category in truth.categories]
    others = {name: number for name, number in found.items() if _key(name) not in labels}
    if found and len(others) == len(found):
        raise InputError(
            f"Run {run} has no segment of the categories in {uri}: it has {listed(sorted(found))}, the file has "
            f"{listed(names)}.{alike(names, sorted(found))}"
        )
    sentences = [
        f"The annotations' class {names[labels[_key(name)]]!r} is treated as {name!r}."
        for name in sorted(found)
        if _key(name) in labels and names[labels[_key(name)]] != name
    ]
    if others:
        most = sorted(others, key=lambda name: (-others[name], name))
        sentences.append(
            f"Not scored: {count_of(sum(others.values()), 'segment')} of "
            f"{count_of(len(others), 'category', 'categories')} that {uri} does not have ({listed(most)})."
        )
    found_keys = {_key(name) for name in found}
    lost = [
        name
        for name, counts in zip(names, all_counts, strict=True)
        if counts.missed and not counts.right and _key(name) not in found_keys
    ]
    if lost:
        sentences.append(
            f"The run has no segment at all of {count_of(len(lost), 'category', 'categories')} of the truth "
            f"({listed(lost)}), which count with 0.{alike(lost, sorted(others))}"
        )
    return sentences


def _worst(
    judged: "Sequence[_Judged]",
    scored: Sequence[int],
    truth: PanopticTruth,
    rows: Mapping[int, RunImage],
    limit: int,
) -> tuple[JudgedImage, ...]:
    """Return the images with most mistakes; of equally many, the one with fewer right segments first."""
    images = []
    for each in judged:
        counts = sum((each.all_counts[label] for label in scored if label in each.all_counts), SegmentCounts())
        row = rows[each.image_id]
        image = truth.images.images[each.place]
        images.append(JudgedImage(row.image_id, row.uri, image.file_name, row.status, counts))
    with_some = [image for image in images if image.mistakes]
    with_some.sort(key=lambda image: (-image.mistakes, image.counts.right, image.uri))
    return tuple(with_some[:limit])
