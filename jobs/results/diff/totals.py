"""Batch: the compared instances of some images; Totals: the sums over all batches."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.results.diff.images import JoinedImages
from jobs.results.diff.matching import Instances, Pairs, match_instances
from jobs.results.diff.result import CategoryChanges, ChangedImage, Diff, InstanceChange, OutcomeChange, RunSide
from jobs.results.diff.rules import FATES, DiffRules, ImageFate, Kind
from pipeline.text import count_of

Numbers = NDArray[np.int64]
# Named of each fate and outcome.
MAX_EXAMPLES = 5
# Instances named of one of the most changed images.
MAX_CHANGES = 100
MAX_NAMED = 5
# IoUs are summed as multiples of this fraction, exactly: in every order of batches the mean is the same.
IOU_STEPS = 1 << 24


@dataclass(frozen=True)
class Batch:
    """The images of a batch, and of each instance that counts what became of it.

    Args:
        images: of both sides. a, b: the instances of compared images, tables with the columns of
            `SideTables.instances`.
        names: of the categories, by code. category_a, category_b: codes, a row of a (b) each.
        place_a, place_b: [K] rows in a and b, -1 where the instance is not there.
        image: [K] the image's place in `images`. kind: [K] `Kind`. iou: [K], NaN without a partner.
        lost: of each image of `images` the instances that count, if it was ok in A and is not in B.
    """

    images: JoinedImages
    a: pa.Table
    b: pa.Table
    names: tuple[str, ...]
    category_a: Numbers
    category_b: Numbers
    place_a: Numbers
    place_b: Numbers
    image: Numbers
    kind: Numbers
    iou: NDArray[np.float64]
    lost: Numbers

    @classmethod
    def of(cls, images: JoinedImages, all_a: pa.Table, all_b: pa.Table, rules: DiffRules) -> "Batch":
        """Compare the instances of a batch of images.

        Args:
            all_a, all_b: the instances of all of its images.

        Raises:
            DamagedMaskError: a mask is damaged; `compared_rows` has its row.
        """
        a, b = cls.compared_rows(images, all_a), cls.compared_rows(images, all_b)
        codes = pa.chunked_array([*a.column("category").chunks, *b.column("category").chunks], pa.string())
        encoded = codes.dictionary_encode().combine_chunks()
        category = np.asarray(encoded.indices, np.int64)
        sides = (
            _instances(a, images, category[: len(a)]),
            _instances(b, images, category[len(a) :]),
        )
        pairs = match_instances(*sides, rules)
        alone_a, alone_b = (
            _alone(side, places, rules.least_score) for side, places in zip(sides, (pairs.a, pairs.b), strict=True)
        )
        none_a, none_b = np.full(len(alone_b), -1), np.full(len(alone_a), -1)
        return cls(
            images=images,
            a=a,
            b=b,
            names=tuple(encoded.dictionary.to_pylist()),
            category_a=sides[0].category,
            category_b=sides[1].category,
            place_a=np.concatenate([pairs.a, alone_a, none_a]),
            place_b=np.concatenate([pairs.b, none_b, alone_b]),
            image=np.concatenate([sides[0].image[pairs.a], sides[0].image[alone_a], sides[1].image[alone_b]]),
            kind=np.concatenate(
                [
                    _kinds(*sides, pairs, rules),
                    np.full(len(alone_a), Kind.VANISHED),
                    np.full(len(alone_b), Kind.APPEARED),
                ]
            ),
            iou=np.concatenate([pairs.iou, np.full(len(alone_a) + len(alone_b), np.nan)]),
            lost=_lost(images, all_a, rules.least_score),
        )

    @staticmethod
    def compared_rows(images: JoinedImages, rows: pa.Table) -> pa.Table:
        """Return the rows of instances whose image is compared."""
        keys = images.a.column("key").filter(pa.array(images.is_(ImageFate.COMPARED)))
        return rows.filter(pc.is_in(rows.column("key"), value_set=_one_array(keys)))

    @property
    def category(self) -> Numbers:
        """The code that each instance is counted under, [K]: A's, and B's where it is only there."""
        in_a = self.place_a >= 0
        category = np.empty(len(self.kind), np.int64)
        category[in_a] = self.category_a[self.place_a[in_a]]
        category[~in_a] = self.category_b[self.place_b[~in_a]]
        return category

    def scores(self, side: str) -> NDArray[np.float64]:
        """Return the scores on a side, "a" or "b", [K]; NaN where the instance is not there."""
        table, places = (self.a, self.place_a) if side == "a" else (self.b, self.place_b)
        scores = np.append(_floats(table.column("score")), np.nan)
        return scores[places]


def _instances(rows: pa.Table, images: JoinedImages, category: Numbers) -> Instances:
    """Return the rows as arrays; they are sorted by key, as the images of A are."""
    image = np.asarray(pc.index_in(rows.column("key"), value_set=_one_array(images.a.column("key"))), np.int64)
    boxes = _one_array(rows.column("bbox"))
    sides = [_floats(boxes.field(name)) for name in ("x", "y", "width", "height")]
    sizes = [np.asarray(pc.fill_null(images.a.column(name), 0), np.int64) for name in ("height", "width")]
    return Instances(
        image=image,
        category=category,
        score=_floats(rows.column("score")),
        boxes_xywh=np.stack(sides, axis=1),
        areas=_floats(pc.fill_null(rows.column("area"), 0)),
        masks=_one_array(rows.column("mask")),
        sizes=np.stack(sizes, axis=1),
    )


def _alone(side: Instances, paired: Numbers, min_score: float) -> Numbers:
    """Return the places of instances that count and have no partner."""
    is_alone = side.score >= min_score
    is_alone[paired] = False
    return np.flatnonzero(is_alone)


def _kinds(a: Instances, b: Instances, pairs: Pairs, rules: DiffRules) -> Numbers:
    # Scores are float32: 0.9 and 0.8 differ by a little more than 0.1 in double precision.
    difference = np.abs(a.score[pairs.a] - b.score[pairs.b]).astype(np.float32)
    conditions = {
        Kind.CLASS_CHANGED: a.category[pairs.a] != b.category[pairs.b],
        Kind.MOVED: pairs.iou < rules.same_iou,
        Kind.SCORE_CHANGED: difference > np.float32(rules.score_change + 1e-6),
    }
    return np.select(list(conditions.values()), [int(kind) for kind in conditions], int(Kind.SAME)).astype(np.int64)


def _lost(images: JoinedImages, rows: pa.Table, min_score: float) -> Numbers:
    was_ok = np.asarray(pc.fill_null(pc.equal(images.a.column("status"), "ok"), False), dtype=bool)
    is_lost = images.is_(ImageFate.OUTCOME_CHANGED) & was_ok
    if not is_lost.any():
        return np.zeros(len(images), np.int64)
    counted = rows.filter(pc.greater_equal(rows.column("score"), pa.scalar(min_score, pa.float32())))
    image = np.asarray(pc.index_in(counted.column("key"), value_set=_one_array(images.a.column("key"))), np.int64)
    counts = np.bincount(image, minlength=len(images))
    return np.where(is_lost, counts, 0)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _floats(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float64]:
    return np.asarray(column, np.float64)


class Totals:
    """Sums over the batches.

    Attributes:
        images_in: images of A and of B. images_in_both: with a row on both sides. first_uris: one of each side.
    """

    def __init__(self, rules: DiffRules, *, largest: int, is_relative: bool) -> None:
        self._rules = rules
        self._is_relative = is_relative
        self._most = largest
        self.images_in = [0, 0]
        self.images_in_both = 0
        self.first_uris: list[str] = ["", ""]
        self._fates = np.zeros(len(FATES), np.int64)
        self._examples: dict[str, list[str]] = {}
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._outcome_examples: dict[tuple[str, str], list[str]] = {}
        self._unversioned = 0
        self._other_status = 0
        self._codes: dict[str, int] = {}
        self._kinds = np.zeros((0, len(Kind)), np.int64)
        self._in = np.zeros((0, 2), np.int64)
        self._ious = np.zeros((0, 2))
        self._class_changes: Counter[tuple[str, str]] = Counter()
        self._identical = 0
        self._lost = 0
        self._one_sided_masks = 0
        self._heap: list[tuple[float, int, ChangedImage]] = []
        self._order = 0

    def add(self, batch: Batch) -> None:
        """Add a batch."""
        self._add_images(batch)
        self._add_instances(batch)
        self._add_largest(batch)

    def _add_images(self, batch: Batch) -> None:
        images = batch.images
        in_a, in_b = (np.asarray(pc.is_valid(side.column("key")), dtype=bool) for side in (images.a, images.b))
        for place, (side, is_there) in enumerate(((images.a, in_a), (images.b, in_b))):
            self.images_in[place] += int(is_there.sum())
            if not self.first_uris[place] and is_there.any():
                self.first_uris[place] = side.column("uri")[int(np.flatnonzero(is_there)[0])].as_py()
        self.images_in_both += int((in_a & in_b).sum())
        self._fates += np.bincount(images.fate, minlength=len(FATES))
        for fate in FATES:
            if fate in (ImageFate.COMPARED, ImageFate.CARRIED_OVER):
                continue
            _extend(self._examples.setdefault(fate, []), images, np.flatnonzero(images.is_(fate)))
        self._unversioned += int((images.is_unversioned & images.is_(ImageFate.COMPARED)).sum())
        for place in np.flatnonzero(images.is_(ImageFate.OUTCOME_CHANGED)).tolist():
            outcome = (images.a.column("status")[place].as_py(), images.b.column("status")[place].as_py())
            self._outcomes[outcome] += 1
            _extend(self._outcome_examples.setdefault(outcome, []), images, [place])
        self._lost += int(batch.lost.sum())

    def _add_instances(self, batch: Batch) -> None:
        code = np.array([self._codes.setdefault(name, len(self._codes)) for name in batch.names], np.int64)
        self._grow()
        if not len(batch.kind):
            return
        category = code[batch.category]
        np.add.at(self._kinds, (category, batch.kind), 1)
        for side, (places, categories) in enumerate(
            ((batch.place_a, batch.category_a), (batch.place_b, batch.category_b))
        ):
            self._in[:, side] += np.bincount(code[categories[places[places >= 0]]], minlength=len(self._in))
        is_pair = ~np.isnan(batch.iou)
        has_mask_a, has_mask_b = (
            np.asarray(pc.is_valid(side.column("mask")), dtype=bool)[places[is_pair]]
            for side, places in ((batch.a, batch.place_a), (batch.b, batch.place_b))
        )
        self._one_sided_masks += int((has_mask_a != has_mask_b).sum())
        is_class = batch.kind == Kind.CLASS_CHANGED
        of_one = is_pair & ~is_class
        self._ious[:, 0] += np.bincount(category[of_one], np.rint(batch.iou[of_one] * IOU_STEPS), len(self._ious))
        self._ious[:, 1] += np.bincount(category[of_one], minlength=len(self._ious))
        for place_a, place_b in zip(batch.place_a[is_class].tolist(), batch.place_b[is_class].tolist(), strict=True):
            one, other = batch.category_a[place_a], batch.category_b[place_b]
            self._class_changes[batch.names[one], batch.names[other]] += 1
        self._identical += int(((batch.iou == 1) & ~is_class & (batch.scores("a") == batch.scores("b"))).sum())

    def _grow(self) -> None:
        missing = len(self._codes) - len(self._kinds)
        self._kinds = np.pad(self._kinds, ((0, missing), (0, 0)))
        self._in = np.pad(self._in, ((0, missing), (0, 0)))
        self._ious = np.pad(self._ious, ((0, missing), (0, 0)))

    def _add_largest(self, batch: Batch) -> None:
        is_change = batch.kind != Kind.SAME
        if not self._most or not is_change.any():
            return
        score = np.fmax(batch.scores("a"), batch.scores("b"))
        weights = np.bincount(batch.image[is_change], score[is_change], minlength=len(batch.images))
        changed = np.flatnonzero(weights > 0)
        best = changed[np.argsort(-weights[changed], kind="stable")][: self._most]
        for image in best.tolist():
            self._order += 1
            # Of equal weights the earlier image stays.
            entry = (float(weights[image]), -self._order)
            if len(self._heap) == self._most and entry <= self._heap[0][:2]:
                continue
            push = heapq.heappush if len(self._heap) < self._most else heapq.heappushpop
            push(self._heap, (*entry, _changed_image(batch, image, entry[0], score)))

    def finish(self, a: RunSide, b: RunSide) -> Diff:
        """Return the result."""
        categories = [
            CategoryChanges(
                category=name,
                in_a=int(self._in[code, 0]),
                in_b=int(self._in[code, 1]),
                counts=tuple(map(int, self._kinds[code])),
                mean_iou=float(self._ious[code, 0] / self._ious[code, 1] / IOU_STEPS) if self._ious[code, 1] else None,
            )
            for name, code in sorted(self._codes.items())
            if self._kinds[code].any() or self._in[code].any()
        ]
        fates = {fate.value: int(count) for fate, count in zip(FATES, self._fates, strict=True)}
        diff = Diff(
            a=a,
            b=b,
            rules=self._rules,
            images=fates,
            categories=tuple(categories),
            class_changes=tuple((*pair, n) for pair, n in _most_frequent(self._class_changes)),
            outcomes=tuple(
                OutcomeChange(*pair, n, tuple(self._outcome_examples[pair]))
                for pair, n in _most_frequent(self._outcomes)
            ),
            lost=self._lost,
            identical=self._identical,
            largest=tuple(entry[2] for entry in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))),
            examples={fate: tuple(uris) for fate, uris in self._examples.items() if uris},
        )
        return diff.with_notes(self._notes(diff))

    def _notes(self, diff: Diff) -> list[str]:
        notes = []
        if diff.a.model != diff.b.model:
            notes.append(
                f"The runs are of different models: {diff.a.model or 'unknown'} and {diff.b.model or 'unknown'}."
            )
        notes += _other_categories(diff)
        if self._is_relative:
            notes.append("No image has the same uri in both runs; images are matched by name below each run's input.")
        for side in (diff.a, diff.b):
            if not side.is_complete:
                notes.append(
                    f"The run {side.run} is not complete: it is still going on, or was interrupted; what is committed "
                    "so far is compared."
                )
        if self._one_sided_masks:
            notes.append(
                f"{count_of(self._one_sided_masks, 'pair')} compared by boxes, as only one of the two instances has a "
                "mask."
            )
        if self._unversioned:
            notes.append(
                f"{count_of(self._unversioned, 'compared image')} without a version: neither run knows whether the "
                "content has changed."
            )
        if diff.images[ImageFate.CONTENT_CHANGED]:
            notes.append(
                f"{count_of(diff.images[ImageFate.CONTENT_CHANGED], 'image')} with other content (ETag or size): the "
                "instances are not compared."
            )
        return notes


def _other_categories(diff: Diff) -> list[str]:
    only = {
        "A": [each.category for each in diff.categories if not each.in_b],
        "B": [each.category for each in diff.categories if not each.in_a],
    }
    if diff.a.model == diff.b.model:
        return []
    return [f"Only {side} has instances of {_named(names)}." for side, names in only.items() if names]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


def _most_frequent(counts: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _extend(examples: list[str], images: JoinedImages, places: "Sequence[int] | Numbers") -> None:
    for place in places[: MAX_EXAMPLES - len(examples)]:
        examples.append(images.text("uri", int(place)))


def _changed_image(batch: Batch, image: int, weight: float, score: NDArray[np.float64]) -> ChangedImage:
    of_image = batch.image == image
    rows = np.flatnonzero(of_image & (batch.kind != Kind.SAME))
    rows = rows[np.argsort(-score[rows], kind="stable")][:MAX_CHANGES]
    row_a, row_b = (side.slice(image, 1).to_pylist()[0] for side in (batch.images.a, batch.images.b))
    return ChangedImage(
        image_id=row_a["image_id"],
        uri_a=row_a["uri"],
        uri_b=row_b["uri"],
        run_a=row_a["run"],
        run_b=row_b["run"],
        same=int((of_image & (batch.kind == Kind.SAME)).sum()),
        weight=weight,
        changes=tuple(_change(batch, row) for row in rows.tolist()),
    )


def _change(batch: Batch, row: int) -> InstanceChange:
    values = {}
    for side, table, place in (("a", batch.a, batch.place_a[row]), ("b", batch.b, batch.place_b[row])):
        for name in ("instance", "category", "score"):
            values[f"{name}_{side}"] = None if place < 0 else table.column(name)[int(place)].as_py()
    iou = float(batch.iou[row])
    return InstanceChange(kind=Kind(int(batch.kind[row])), iou=None if np.isnan(iou) else iou, **values)
